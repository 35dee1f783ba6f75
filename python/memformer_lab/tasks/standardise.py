"""Regression tasks in standard units: every column centred and scaled by its context alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardised:
    """Regression tasks whose context columns have mean 0 and variance 1.

    Attributes:
        z: (B, N, d+1) tokens as rows: scaled features, then the scaled response; the response slot of a query is 0.
        target: (B, N - context) scaled responses of the query rows.
        x_scale: (B, d) standard deviations of the features over the context; 1 where a column is constant there.
        y_scale: (B,) standard deviation of the response over the context; 1 where it is constant there.
    """

    z: Tensor
    target: Tensor
    x_scale: Tensor
    y_scale: Tensor


def standardise(x: Tensor, y: Tensor, context: int) -> Standardised:
    """Centre and scale features and response, one column at a time, with numbers taken from the context rows only.

    The standard deviation is the population one (division by n), so the context's H = X^T X / n has ones on its
    diagonal. Columns are not decorrelated. A feature that is constant over the context says nothing about its own
    weight there, so it becomes 0 in the context and in the queries. A response that is constant over the context is
    centred and left in its own units.

    Args:
        x: (B, N, d) features, floating; the first `context` rows are the labelled examples, the rest are queries.
        y: (B, N) responses in x's dtype, those of the queries included.
        context: number of labelled examples n, 1 <= n <= N.

    Raises:
        ValueError: for shapes that do not fit together or a context outside 1..N.
    """
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise ValueError(f"x and y must be (B, N, d) and (B, N), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not 1 <= context <= x.shape[1]:
        raise ValueError(f"context must be between 1 and the number of rows {x.shape[1]}, got {context}")
    columns = torch.cat([x, y.unsqueeze(-1)], dim=-1)
    # Relative to one of its own entries a constant column is exactly zero, and so are its mean and its deviation.
    columns = columns - columns[:, :1]
    columns = columns - columns[:, :context].mean(dim=1, keepdim=True)
    deviation = columns[:, :context].square().mean(dim=1).sqrt()
    scale = torch.where(deviation == 0, 1.0, deviation)
    factor = scale.reciprocal()
    factor[:, :-1].masked_fill_(deviation[:, :-1] == 0, 0.0)
    columns *= factor.unsqueeze(1)
    target = columns[:, context:, -1].clone()
    columns[:, context:, -1] = 0
    return Standardised(z=columns, target=target, x_scale=scale[:, :-1], y_scale=scale[:, -1])
