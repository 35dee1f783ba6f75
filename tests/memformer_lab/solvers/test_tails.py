from __future__ import annotations

import math

import pytest
import torch

from memformer_lab.solvers.tails import tail_index, trimmed_mean


@pytest.mark.parametrize("index", [0.7, 1.5, 3.0])
def test_the_index_of_a_pareto_sample(index: float) -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = uniform ** (-1 / index)
    assert tail_index(values) == pytest.approx(index, rel=0.1)
    assert tail_index(7 * values) == pytest.approx(tail_index(values), rel=1e-9)


def test_light_tails_have_a_large_index() -> None:
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    assert tail_index(values) > 50
    assert tail_index(torch.ones(1000)) == math.inf


@pytest.mark.parametrize("values", [torch.rand(100), torch.tensor([math.nan, 1.0] * 500), torch.zeros(1000)])
def test_samples_without_a_tail(values: torch.Tensor) -> None:
    assert math.isnan(tail_index(values))


def test_the_trimmed_mean_leaves_the_largest_out() -> None:
    values = torch.arange(100.0)
    values[17] = 1e30
    assert trimmed_mean(values, 0.01) == pytest.approx((99 * 100 / 2 - 17) / 99)
    assert trimmed_mean(torch.arange(10.0), 0.01) == pytest.approx(4.5)
