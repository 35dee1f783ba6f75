from __future__ import annotations

import math

import pytest
import torch

from memformer_lab.tasks.covariances import CovarianceTasks, query_shifted
from memformer_lab.tasks.gaussian import GaussianTasks

DOUBLE = torch.float64


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_prompt_has_its_own_rotation_of_one_spectrum() -> None:
    scales = (1.0, 0.5, 0.25)
    factor = CovarianceTasks(3, 9, scales, dtype=DOUBLE).factors(4000, _generator())
    sigma = factor @ factor.mT
    expected = torch.tensor(sorted(s * s for s in scales), dtype=DOUBLE).expand(4000, 3)
    torch.testing.assert_close(torch.linalg.eigvalsh(sigma), expected)
    mean = sigma.mean(0)
    torch.testing.assert_close(mean, mean.trace() / 3 * torch.eye(3, dtype=DOUBLE), rtol=0.05, atol=0.02)


def test_factors_are_log_uniform_up_to_the_spread() -> None:
    factor = CovarianceTasks(2, 9, (1.0, 1.0), spread=100.0, dtype=DOUBLE).factors(20_000, _generator())
    logs = torch.linalg.svdvals(factor).square().log().flatten() / math.log(100.0)
    assert -1 <= float(logs.min()) < -0.99
    assert -0.01 < float(logs.max()) <= 1e-12
    assert abs(float(logs.mean()) + 0.5) < 0.01
    assert abs(float(logs.var()) - 1 / 12) < 0.003


@pytest.mark.parametrize("weights", ["inverse", "isotropic"])
def test_responses_and_statistics_are_those_of_drawn_examples(weights: str) -> None:
    """Given C, n H is Wishart with mean Sigma; the response's variance is w^T Sigma w."""
    tasks = CovarianceTasks(3, 9, (1.0, 0.5, 2.0), spread=4.0, weights=weights, dtype=DOUBLE)  # type: ignore[arg-type]
    drawn, factor = tasks.quadratics(100_000, _generator())
    sigma = factor @ factor.mT
    whitened = torch.linalg.solve(factor, drawn.h) @ torch.linalg.inv(factor).mT
    mean = whitened.mean(0)
    torch.testing.assert_close(mean, torch.eye(3, dtype=DOUBLE), rtol=0.02, atol=0.01)
    square = (whitened @ whitened).mean(0).trace() / 3
    assert float(square) == pytest.approx((9 + 3 + 1) / 9, rel=0.01)
    torch.testing.assert_close((drawn.h @ drawn.weights[..., None])[..., 0], drawn.b)
    variance = (drawn.weights[:, None] @ sigma @ drawn.weights[..., None]).mean()
    expected = 3.0 if weights == "inverse" else float(sigma.diagonal(dim1=1, dim2=2).sum(1).mean())
    assert float(variance) == pytest.approx(expected, rel=0.02)


def test_tokens_carry_the_same_statistics_and_the_error_of_a_random_query() -> None:
    tasks = CovarianceTasks(3, 9, (1.0, 0.5, 2.0), spread=4.0, dtype=DOUBLE)
    drawn, factor = tasks.quadratics(5, _generator())
    batch = tasks.compressed(5, _generator())
    x, y = batch.z[:, :3, :3], batch.z[:, :3, 3]
    torch.testing.assert_close(x.mT @ x / 3, drawn.h)
    torch.testing.assert_close((x.mT @ y[..., None])[..., 0] / 3, drawn.b)
    guess = torch.randn(5, 3, generator=_generator(1), dtype=DOUBLE)
    errors = ((batch.z[:, 3:, :3] @ guess[..., None])[..., 0] - batch.target).square().mean(1) * batch.query_scale
    gap = guess - drawn.weights
    torch.testing.assert_close(errors, (gap[:, None] @ (factor @ factor.mT) @ gap[..., None])[:, 0, 0])


def test_a_query_shift_changes_the_queries_alone() -> None:
    batch = GaussianTasks.nonisotropic(dtype=DOUBLE).compressed(4, _generator())
    factor = torch.randn(5, 5, generator=_generator(1), dtype=DOUBLE)
    shifted = query_shifted(batch, factor)
    assert torch.equal(shifted.z[:, :5], batch.z[:, :5])
    assert torch.equal(shifted.z[:, 5:, :5], factor.T.expand(4, 5, 5))
    torch.testing.assert_close(shifted.target, (shifted.z[:, 5:, :5] @ batch.weights[..., None])[..., 0])
    assert torch.equal(shifted.z[:, 5:, 5], torch.zeros(4, 5, dtype=DOUBLE))


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="spread must be finite and at least 1"):
        CovarianceTasks(2, 5, (1.0, 1.0), spread=0.5)
    with pytest.raises(ValueError, match="n must be at least d=3"):
        CovarianceTasks(3, 2, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="scales must be d=2"):
        CovarianceTasks(2, 5, (1.0,))
