from __future__ import annotations

import pytest
import torch

from memformer_lab.tasks.gaussian import GaussianTasks, chi_by_rejection


@pytest.mark.parametrize("freedom", [2, 5, 300, 100_000])
def test_moments_are_those_of_chi_squared(freedom: int) -> None:
    count = 200_000
    square = chi_by_rejection(freedom, count, torch.Generator().manual_seed(0), torch.float64).square()
    error = (2 * freedom / count) ** 0.5
    assert abs(float(square.mean()) - freedom) < 4 * error
    assert float(square.var()) == pytest.approx(2 * freedom, rel=0.05)
    skewness = float(((square - square.mean()) / square.std()).pow(3).mean())
    assert skewness == pytest.approx((8 / freedom) ** 0.5, abs=0.06)


def test_long_contexts_have_the_right_gram_matrices() -> None:
    tasks = GaussianTasks.isotropic(3, 5000, dtype=torch.float64)
    h = tasks.quadratics(20_000, torch.Generator().manual_seed(1)).h
    assert float((h.mean(0) - torch.eye(3, dtype=torch.float64)).abs().max()) < 1e-3
    assert float(h[:, 0, 0].var()) == pytest.approx(2 / 5000, rel=0.05)


def test_draws_follow_the_generator() -> None:
    one, other = (chi_by_rejection(400, 100, torch.Generator().manual_seed(5), torch.float32) for _ in range(2))
    assert torch.equal(one, other)
    assert one.dtype == torch.float32
