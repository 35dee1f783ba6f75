"""Networks that are functions of the whitened spectrum, and GD++ with its scales folded in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memformer_lab.experiments.common import network
from memformer_lab.experiments.published_mixture import PublishedExpert, PublishedTasks
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.solvers.spectral import (
    SpectralNetwork,
    best_network,
    exact_spectrum,
    folded,
    sampled_spectrum,
)
from memformer_lab.tasks.gaussian import GaussianTasks

TASKS = GaussianTasks.nonisotropic(dtype=torch.float64)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(layers: int, seed: int) -> SpectralNetwork:
    random = np.random.default_rng(seed)
    features, responses = (-0.3 * np.tril(random.random((layers, layers))) for _ in range(2))
    features[-1] = 0
    return SpectralNetwork(features, responses)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_free_scales_fold_into_a_and_bm(layers: int) -> None:
    """A weight for each layer and feature without memory is GD++ without memory, to rounding."""
    wide = network(0, 5, layers, structure="block", rule="lfom", registers=1, dtype=torch.float64)
    with torch.no_grad():
        for value in wide.parameters():
            value += 0.3 * torch.randn(value.shape, generator=_generator(1), dtype=value.dtype)
    batch = TASKS.tokens(50, _generator(2), queries=3)
    with torch.no_grad():
        expected, found = (one.predict(batch.z, context=batch.context, layers=True) for one in (wide, folded(wide)))
    assert folded(wide).gamma is None
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9


def test_memory_does_not_fold() -> None:
    model = network(0, 5, 2, structure="block", rule="lfom")
    assert model.gamma is not None
    with torch.no_grad():
        model.gamma[1, 0] = 0.1
    with pytest.raises(ValueError, match="weight their own register alone"):
        folded(model)
    with pytest.raises(ValueError, match="Bm free"):
        folded(network(0, 5, 2, rule="lfom", registers=1))


def test_a_spectral_network_is_its_memformer() -> None:
    """Squared errors, integrated over queries, by the spectrum and by the network on the tasks' own features."""
    spectral = _random(3, 0)
    batch = TASKS.compressed(40, _generator())
    with torch.no_grad():
        predicted = spectral.network(TASKS, torch.float64).predict(batch.z, context=batch.context)
    found = (predicted - batch.target).square().sum(1)
    x = batch.z[:, : batch.context, :-1] @ torch.linalg.inv(TASKS.factor).T
    values, vectors = torch.linalg.eigh(x.mT @ x / batch.context)
    parts = (vectors.mT @ (batch.weights @ TASKS.factor).unsqueeze(-1)).squeeze(-1)
    residual = torch.from_numpy(spectral.residual(values.flatten().numpy())).view_as(values)
    torch.testing.assert_close((residual * parts).square().sum(1), found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_exact_error_is_the_mean_over_drawn_spectra(layers: int) -> None:
    """Small weights leave light tails, so 200,000 tasks estimate the mean: within five standard errors."""
    spectral = _random(layers, 3)
    drawn = sampled_spectrum(5, 20, 200_000, 0)
    errors = (spectral.residual(drawn.values) ** 2).reshape(-1, 5).sum(1)
    spread = errors.std() / math.sqrt(len(errors))
    assert abs(errors.mean() - spectral.error(exact_spectrum(5, 20, layers))) < 5 * spread
    assert spectral.error(drawn) == pytest.approx(errors.mean())


def test_the_best_weights_of_one_layer_are_the_known_optimum() -> None:
    best = best_network(exact_spectrum(5, 20, 1), 1, memory=False)
    assert best.responses[0, 0] == pytest.approx(-20 / 26)
    assert best.error(exact_spectrum(5, 20, 1)) == pytest.approx(30 / 26)
    assert math.log(30 / 26) == pytest.approx(exact_optimum(TASKS, 1).log_error)


def test_best_weights_are_stationary_and_memory_never_loses() -> None:
    spectrum = exact_spectrum(5, 20, 2)
    plain = best_network(spectrum, 2, memory=False, random=5)
    with_memory = best_network(spectrum, 2, memory=True, starts=[plain])
    assert with_memory.error(spectrum) < plain.error(spectrum)
    assert not np.tril(plain.responses, -1).any()
    assert not with_memory.features[-1].any()
    least = with_memory.error(spectrum)
    for place in ((0, 0), (1, 0), (1, 1)):
        for change in (-1e-3, 1e-3):
            responses = with_memory.responses.copy()
            responses[place] += change
            assert SpectralNetwork(with_memory.features, responses).error(spectrum) > least
    # The known values, to three decimals: what memory adds at two layers is 0.013.
    assert math.log(plain.error(spectrum)) == pytest.approx(-2.856, abs=5e-4)
    assert math.log(least) == pytest.approx(-2.869, abs=5e-4)


def test_what_is_best_for_a_sample_is_decided_by_spectra_beyond_it() -> None:
    """At three layers: the same weights have an error e^4 times larger in expectation than over 5,000 tasks."""
    few, many = (sampled_spectrum(5, 20, 5_000, seed) for seed in (0, 1))
    best = best_network(few, 3, memory=False, random=0)
    assert math.log(best.error(many)) < -7.1
    assert math.log(best.error(exact_spectrum(5, 20, 3))) > -3.5


def test_published_tasks_have_the_scales_of_the_notebooks() -> None:
    """x has covariance v Sigma, w* the variance v Sigma^-1, for g, h ~ N(0, v I)."""
    batch = PublishedTasks(2.0, 0, 1).tokens(40_000, _generator(), queries=1)
    tasks = GaussianTasks(5, 20, (1.0, 1.0, 0.5, 0.25, 1.0), 1)
    x, w = batch.z[:, 0, :-1].double(), batch.weights.double()
    torch.testing.assert_close(x.T @ x / len(x), 2 * tasks.covariance, rtol=0.1, atol=0.05)
    torch.testing.assert_close(
        tasks.factor.T @ (w.T @ w / len(w)) @ tasks.factor, 2 * torch.eye(5, dtype=torch.float64), rtol=0.1, atol=0.05
    )
    torch.testing.assert_close((x * w).sum(1), batch.z[:, 0, -1].double(), rtol=1e-4, atol=1e-4)
    assert bool((batch.z[:, 20:, -1] == 0).all())


def test_a_published_expert_shares_its_weights_between_layers() -> None:
    torch.manual_seed(0)
    expert = PublishedExpert(3)
    with torch.no_grad():
        expert.weights.normal_()
    gamma = expert.gamma()
    assert gamma.shape == (3, 3, 1, 21, 6)
    assert torch.equal(gamma[1, 0], gamma[2, 0])
    assert all(bool((gamma[layer, layer] == 1).all()) for layer in range(3))
