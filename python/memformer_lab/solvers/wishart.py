"""Exact moments of Gaussian Gram matrices, and the orthogonal polynomials that they define."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def spectral_moments(d: int, n: int, order: int) -> tuple[Fraction, ...]:
    """E[u^T H^k u] = E tr(H^k) / d for k = 0..order, for any unit vector u and H = X^T X / n with n rows x ~ N(0, I).

    From the direction u, Householder reflections make X bidiagonal, with independent entries chi(n), chi(d - 1),
    chi(n - 1), chi(d - 2), ... (Dumitriu & Edelman, math-ph/0206043). So u^T (X^T X)^k u is a sum over Dyck paths of
    length 2k. With m_i steps up from height i - 1 there are prod_i C(m_i + m_{i+1} - 1, m_{i+1}) of them, each of
    weight prod_i chi_i^(2 m_i). All terms are positive whole numbers: the sum is exact for any d and n, n < d too.

    Raises:
        ValueError: if d < 1, n < 1 or order < 0.
    """
    if d < 1 or n < 1 or order < 0:
        raise ValueError(f"expected d >= 1, n >= 1 and order >= 0, got d={d}, n={n}, order={order}")
    freedoms = [(n - i // 2) if i % 2 == 0 else (d - 1 - i // 2) for i in range(2 * min(d, n))]

    def chi(level: int, power: int) -> int:
        """E chi^(2 power) of the entry at a level, 0 past the last one."""
        freedom = freedoms[level] if level < len(freedoms) else 0
        return math.prod(freedom + 2 * j for j in range(power)) if freedom > 0 else 0

    @cache
    def above(level: int, ups: int, left: int) -> int:
        """Weights of what is above a level that has `ups` steps up, with `left` steps up to place there."""
        if left == 0:
            return 1
        if chi(level + 1, 1) == 0:
            return 0
        return sum(
            math.comb(ups + m - 1, m) * chi(level + 1, m) * above(level + 1, m, left - m) for m in range(1, left + 1)
        )

    found = [Fraction(1)]
    for k in range(1, order + 1):
        found.append(Fraction(sum(chi(0, m) * above(0, m, k - m) for m in range(1, k + 1)), n**k))
    return tuple(found)


def jacobi_matrix(moments: Sequence[Fraction], size: int) -> Tensor:
    """The (size, size) float64 Jacobi matrix of a measure, by Chebyshev's algorithm in exact arithmetic.

    Its eigenvalues are the zeros of the measure's orthogonal polynomial of degree `size`.

    Args:
        moments: of order 0 to 2 size - 1 at least.
        size: at least 1.

    Raises:
        ValueError: for too few moments, or those of a measure on fewer than `size` points.
    """
    if len(moments) < 2 * size or size < 1:
        raise ValueError(f"size {size} needs {2 * size} moments and must be at least 1, got {len(moments)}")
    before, row = [Fraction(0)] * (2 * size), list(moments[: 2 * size])
    diagonal, squares = [row[1] / row[0]], [row[0]]
    for k in range(1, size):
        after = [Fraction(0)] * (2 * size)
        for j in range(k, 2 * size - k):
            after[j] = row[j + 1] - diagonal[-1] * row[j] - squares[-1] * (before[j] if k > 1 else 0)
        if after[k] <= 0:
            raise ValueError(f"the measure has {k} points, which is fewer than {size}")
        diagonal.append(after[k + 1] / after[k] - row[k] / row[k - 1])
        squares.append(after[k] / row[k - 1])
        before, row = row, after
    matrix = torch.diag(torch.tensor([float(one) for one in diagonal], dtype=torch.float64, device="cpu"))
    for k in range(1, size):
        matrix[k, k - 1] = matrix[k - 1, k] = math.sqrt(squares[k])
    return matrix


def solve_exactly(matrix: Sequence[Sequence[Fraction]], vector: Sequence[Fraction]) -> list[Fraction]:
    """The solution of a symmetric positive definite system, without rounding."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    size = len(rows)
    for i in range(size):
        for j in range(i + 1, size):
            ratio = rows[j][i] / rows[i][i]
            rows[j] = [rows[j][k] - ratio * rows[i][k] if k > i else Fraction(0) for k in range(size + 1)]
    solution = [Fraction(0)] * size
    for i in reversed(range(size)):
        solution[i] = (rows[i][size] - sum(rows[i][j] * solution[j] for j in range(i + 1, size))) / rows[i][i]
    return solution
