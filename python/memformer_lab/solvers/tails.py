"""Heavy-tailed samples: how far their mean can be trusted, and what to give beside it."""

from __future__ import annotations

import math

from torch import Tensor


def tail_index(values: Tensor, share: float = 0.01) -> float:
    """Hill's estimate of a such that P(value > t) falls like t^-a, from the largest `share` of the values.

    A mean exists only for a > 1, and its usual interval only for a > 2 (Hill 1975). Infinite where the largest values
    are all equal, NaN where there are fewer than three of them, or one is not positive and finite.

    Args:
        values: (count,).
        share: of the values that are taken for the tail.
    """
    kept = int(share * len(values))
    if kept < 3:
        return math.nan
    largest = values.double().topk(kept + 1).values
    if not bool((largest > 0).all() and largest.isfinite().all()):
        return math.nan
    mean = float((largest[:-1] / largest[-1]).log().mean())
    return 1 / mean if mean > 0 else math.inf


def trimmed_mean(values: Tensor, share: float = 0.01) -> float:
    """The mean without the largest `share` of the values, rounded down to whole values: a lower bound of the mean."""
    kept = len(values) - int(share * len(values))
    return float(values.double().sort().values[:kept].mean())
