from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from memformer_lab.solvers.wishart import jacobi_matrix, solve_exactly, spectral_moments


@pytest.mark.parametrize(("d", "n"), [(1, 3), (5, 20), (4, 2), (256, 1024)])
def test_the_first_three_moments_are_the_known_ones(d: int, n: int) -> None:
    expected = (1, n, n * (n + d + 1), n * (n * n + 3 * n * (d + 1) + d * d + 3 * d + 4))
    assert spectral_moments(d, n, 3) == tuple(Fraction(one, n**k) for k, one in enumerate(expected))


def test_one_feature_has_the_moments_of_chi_squared() -> None:
    for k, moment in enumerate(spectral_moments(1, 7, 6)):
        assert moment == Fraction(math.prod(7 + 2 * j for j in range(k)), 7**k)


@pytest.mark.parametrize(("d", "n"), [(3, 8), (4, 2), (3, 3)])
def test_moments_are_those_of_drawn_tasks(d: int, n: int) -> None:
    x = torch.randn(200_000, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.eigvalsh(x.mT @ x / n)
    for k, moment in enumerate(spectral_moments(d, n, 5)):
        powers = values.pow(k).mean(1)
        error = float(powers.std()) / math.sqrt(len(powers))
        assert abs(float(powers.mean()) - float(moment)) < 5 * error + 1e-9


def test_sizes_below_one_are_refused() -> None:
    for arguments in ((0, 5, 2), (5, 0, 2), (5, 5, -1)):
        with pytest.raises(ValueError, match="expected d >= 1"):
            spectral_moments(*arguments)


def test_the_jacobi_matrix_of_the_uniform_measure_is_that_of_legendre() -> None:
    moments = [Fraction(1 + (-1) ** k, 2 * (k + 1)) for k in range(12)]
    found = jacobi_matrix(moments, 6)
    off = [k / math.sqrt(4 * k * k - 1) for k in range(1, 6)]
    expected = torch.diag(torch.tensor(off, dtype=torch.float64), 1)
    torch.testing.assert_close(found, expected + expected.T, rtol=1e-13, atol=1e-13)


def test_a_measure_on_too_few_points_is_refused() -> None:
    with pytest.raises(ValueError, match="the measure has 2 points, which is fewer than 3"):
        jacobi_matrix([Fraction(1 + 2**k, 2) for k in range(6)], 3)
    with pytest.raises(ValueError, match="size 3 needs 6 moments"):
        jacobi_matrix([Fraction(1)] * 5, 3)


def test_systems_are_solved_without_rounding() -> None:
    hilbert = [[Fraction(1, i + j + 1) for j in range(12)] for i in range(12)]
    vector = [sum(row, Fraction(0)) for row in hilbert]
    assert solve_exactly(hilbert, vector) == [1] * 12
