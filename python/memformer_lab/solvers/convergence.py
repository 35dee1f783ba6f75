"""How an error falls with depth: by the same factor a layer, or with a doubling of its digits, as Newton's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ConvergenceFit:
    """Two models of ln error at depth k, with two parameters each, fitted by least squares.

    Attributes:
        linear: residual sum of squares of a - b k: every layer takes off the same factor (first-order methods).
        exponential: that of a - b 2^k: every layer doubles the digits (Newton's iteration, near its end).
        advantage: AIC of the linear model less that of the exponential one, places ln(linear / exponential). Positive
            where the exponential one fits better.
    """

    linear: float
    exponential: float
    advantage: float


def fit_convergence(depths: Sequence[float], log_errors: Sequence[float]) -> ConvergenceFit:
    """Fit both models to one curve.

    The base is 2 and not free, so that both models have as many parameters: with a free base the second contains the
    first, as the limit of bases near 1, and fits the slight bend of any curve.

    Raises:
        ValueError: for fewer than 3 places, with which both models fit exactly, or lengths that differ.
    """
    if len(depths) < 3 or len(depths) != len(log_errors):
        raise ValueError(f"depths and log_errors must be as many, at least 3, got {len(depths)} and {len(log_errors)}")
    y = np.asarray(log_errors, dtype=float)
    if not np.isfinite(y).all():
        return ConvergenceFit(*[float("nan")] * 3)
    k = np.asarray(depths, dtype=float)
    linear, exponential = (_residual(x, y) for x in (k, np.exp2(k)))
    advantage = len(y) * float(np.log(linear / exponential)) if linear > 0 and exponential > 0 else linear - exponential
    return ConvergenceFit(linear, exponential, advantage)


def _residual(x: np.ndarray, y: np.ndarray) -> float:
    design = np.stack([np.ones_like(x), x], axis=1)
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.square(y - design @ solution).sum())
