from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from memformer_lab.experiments.common import network
from memformer_lab.runs import fitting
from memformer_lab.runs.fitting import Recipe, fit, fit_fixed, fit_memformer, fit_on_lengths, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import (
    classical_estimates,
    distributions,
    memformer_estimates,
    network_errors,
    solver_errors,
    steps_of,
)
from memformer_lab.tasks.gaussian import GaussianTasks

TASKS = GaussianTasks.isotropic(3, 12)


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    models = [memformer(4, 3, 2, rule="lfom") for _ in range(2)]
    before = memformer_estimates(models[:1], TASKS, 4000, 0)[0][0].log_mean
    fits = [fit_on_tasks(model, TASKS, Recipe(40, 64), 4) for model in models]
    assert fits[0] == fits[1]
    assert not fits[0].diverged
    assert len(fits[0].losses) == 40
    assert memformer_estimates(models[:1], TASKS, 4000, 0)[0][0].log_mean < before - 0.5
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "lfom"},
        {"rule": "lfom_residual"},
        {"rule": "cgd", "structure": "block"},
        {"rule": "lfom", "registers": 2},
        {"rule": "linear", "preconditioner": "scalar", "heads": 2},
    ],
    ids=str,
)
def test_native_steps_are_those_of_the_loop(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks, drawn in Python: all that the stack reads ends where autograd and torch's Adam leave it."""
    recipe = Recipe(12, 16, 0.05, 0.1, warmup=3)
    native, plain = network(1, 3, 3, **arguments), network(1, 3, 3, **arguments)
    drawn = TASKS.compressed(16, torch.Generator().manual_seed(0))
    fits = [fit_fixed(native, drawn, recipe, 0)]
    monkeypatch.setattr(fitting, "state_of", lambda *_: None)
    fits.append(fit_fixed(plain, drawn, recipe, 0))
    assert fits[0].losses == pytest.approx(fits[1].losses, rel=1e-4)
    for name, value in plain.stack_arguments().items():
        torch.testing.assert_close(native.stack_arguments()[name], value, rtol=1e-3, atol=1e-4)
    assert not torch.equal(native.q, network(1, 3, 3, **arguments).q) or not native.q.requires_grad


def test_every_kind_of_draw_trains_alike() -> None:
    """Statistics, chunks of tokens and chunks of long contexts' statistics have one expected loss."""
    recipe, ends = Recipe(300, 64), []
    long = GaussianTasks.isotropic(3, 300)
    for fit_one in (
        lambda model: fit_on_tasks(model, TASKS, recipe, 0),
        lambda model: fit_memformer(model, TASKS.tokens, recipe, 0),
        lambda model: fit_on_lengths(model, [TASKS, TASKS], recipe, 0),
    ):
        model = memformer(0, 3, 2, rule="lfom")
        fit_one(model)
        ends.append(memformer_estimates([model], TASKS, 20_000, 0)[0][0].log_mean)
    assert max(ends) - min(ends) < 0.1
    model = memformer(0, 3, 2, rule="lfom")
    assert not fit_on_tasks(model, long, recipe, 0).diverged
    assert memformer_estimates([model], long, 4000, 0)[0][0].log_mean < min(ends) - 1


def test_divergence_ends_training_before_the_parameters_break() -> None:
    model = memformer(0, 3, 6, rule="lfom")
    with torch.no_grad():
        model.q.mul_(1e12)
    ended = fit_on_tasks(model, TASKS, Recipe(20, 16), 0)
    assert ended.diverged
    assert len(ended.losses) < 20
    assert all(value.isfinite().all() for value in model.parameters())


def test_fixed_tasks_are_fitted_and_fresh_ones_are_not() -> None:
    fixed = TASKS.tokens(1, torch.Generator().manual_seed(0))
    model = memformer(0, 3, 2, rule="lfom")
    fitted = fit_fixed(model, fixed, Recipe(150, learning_rate=0.03), 0)
    assert fitted.losses[-1] < 1e-3 * fitted.losses[0]
    assert memformer_estimates([model], TASKS, 4000, 0)[0][0].log_mean > -2


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(100, learning_rate=0.5, warmup=10)
    schedule = recipe.optimizer().schedule
    rates = [recipe.learning_rate * schedule.factor(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_any_module_can_be_fitted() -> None:
    layer = torch.nn.Linear(2, 1)

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(64, 2, generator=generator)
        return (layer(x)[:, 0] - x.sum(1)).square().mean()

    assert fit(layer, loss, Recipe(200, learning_rate=0.1), 0).losses[-1] < 1e-3


def test_models_are_judged_alike_by_every_way() -> None:
    """Response-only models run as solvers, or as networks on statistics, with one expectation."""
    models = [memformer(seed, 3, 2, rule="lfom") for seed in range(2)]
    quick = memformer_estimates(models, TASKS, 40_000, 0)
    slow = estimate(network_errors(models, TASKS.tokens), 40_000, 0)
    for one, other in zip(quick, slow, strict=True):
        assert one[0].log_mean == pytest.approx(other.log_mean, abs=0.1)
    by_layer = memformer_estimates(models, TASKS, 40_000, 0, layers=True)
    assert [one[-1] for one in by_layer] == [one[0] for one in quick]


def test_classical_methods_after_every_step() -> None:
    found = classical_estimates(["gradient_descent", "conjugate_gradient"], TASKS, 3, 2000, 0)
    assert len(found) == 6
    assert found[5] < found[2]
    alone = estimate(solver_errors(TASKS, [steps_of("conjugate_gradient", 3)]), 2000, 0)
    assert found[3:] == [one.log_mean for one in alone]


def test_distributions_tell_means_medians_and_tails_apart() -> None:
    def sample(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(1, batch, generator=generator).reciprocal().sqrt()

    one = distributions(sample, 50_000, 0)[0]
    assert one.log_mean == pytest.approx(math.log(2), abs=0.02)
    # P(error > t) = t^-2; without the largest 0.1% the mean is 2 (1 - sqrt(0.001)) / 0.999.
    assert one.log_trimmed == pytest.approx(math.log(2 * (1 - math.sqrt(0.001)) / 0.999), abs=0.01)
    assert one.tail_index == pytest.approx(2, rel=0.4)
    assert one.log_median == pytest.approx(0.5 * math.log(2), abs=0.02)
    assert one.log_tail == pytest.approx(0.5 * math.log(1000), abs=0.1)


def test_distributions_of_failures_are_infinite() -> None:
    one = distributions(lambda batch, _: torch.full((1, batch), math.nan), 100, 0)[0]
    assert one.log_mean == math.inf
