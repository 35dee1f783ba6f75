"""Running means and centred Gram matrices of columns, one block of rows after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, means and centred Gram matrix of the rows seen.

    Attributes:
        count: rows.
        mean: (D,) column means.
        scatter: (D, D) sum over rows of (z - mean)(z - mean)^T.
        constant: (D,) whether a column has had the same value in every row.
    """

    count: int
    mean: Array
    scatter: Array
    constant: NDArray[np.bool_]
    first: Array

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows, `width` columns wide."""
        return cls(0, np.zeros(width), np.zeros((width, width)), np.ones(width, dtype=bool), np.zeros(width))

    def with_rows(self, rows: Array) -> Moments:
        """The moments of the rows seen and of `rows` (n, D), in O(n D^2) (Chan, Golub and LeVeque 1983)."""
        added = len(rows)
        first = self.first if self.count else rows[0]
        constant = self.constant & (rows == first).all(0)
        own_mean = rows.mean(0)
        centred = rows - own_mean
        total = self.count + added
        gap = own_mean - self.mean
        scatter = self.scatter + centred.T @ centred + np.outer(gap, gap) * (self.count * added / total)
        mean = np.where(constant, first, self.mean + gap * (added / total))
        return Moments(total, mean, scatter, constant, first)

    def standardised(self) -> tuple[Array, Array]:
        """Standard deviations (D,), 0 for constant columns, and the Gram matrix in standard units over the count."""
        variance = np.where(self.constant, 0.0, np.diagonal(self.scatter).clip(min=0) / max(1, self.count))
        deviation = np.sqrt(variance)
        inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        gram = self.scatter / max(1, self.count) * np.outer(inverse, inverse)
        return deviation, gram
