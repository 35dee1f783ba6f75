"""Regression tasks in standard units: every column centred and scaled by its context alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from memformer_lab.tasks.gaussian import TaskBatch, check_batch, check_sizes


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


@dataclass(frozen=True)
class StandardisedTasks:
    """Tasks shaped like measured data: features correlated differently in every task, all in standard units.

    Features follow a factor model of unit variances, x = sqrt(u) e + sqrt(1 - u) L f with e and f standard normal and
    half as many common factors as features, rounded up. The share u of its own in each feature's variance is
    log-uniform in `own_share`, from nearly collinear to independent features. Row j of the loadings L is a random
    direction, with factor k weighted by r^k before the row is scaled to length 1, and r uniform in [0, 1]: from one
    dominant common factor to equal ones.

    Weights are N(0, I), and the noise is set so that the features explain a share of the response's variance that is
    uniform in `explained`. Then x and y are centred and scaled column by column by the context alone, exactly as
    rows of real data are (`standardise`). Queries carry no noise.

    Attributes:
        d: number of features.
        n: number of labelled examples in a context, at least 2.
        own_share: range of the share u within (0, 1].
        explained: range of the explained share of the response's variance within (0, 1]; 1 is no noise.
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int
    n: int
    own_share: tuple[float, float] = (1e-3, 1.0)
    explained: tuple[float, float] = (0.2, 1.0)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, self.dtype)
        if self.n < 2:
            raise ValueError(f"n must be at least 2, one example has no spread to scale by, got {self.n}")
        for name, (low, high) in (("own_share", self.own_share), ("explained", self.explained)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be a range within (0, 1], got ({low}, {high})")

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """Draw tasks: z (batch, n + queries, d + 1), targets and weights in the scaled units of each context.

        The weights are w*_j sd(x_j) / sd(y) with the context's standard deviations. A target is weights . x less the
        mean of the context's noise in the same units, which centring has moved there.

        Raises:
            ValueError: if batch < 0 or queries < 0.
        """
        check_batch(batch, queries)

        def uniform() -> Tensor:
            return torch.rand(batch, 1, 1, generator=generator, dtype=self.dtype, device=generator.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator, dtype=self.dtype, device=generator.device)

        rows, factors = self.n + queries, (self.d + 1) // 2
        low, high = self.own_share
        # Rounding may carry a share past 1, where square roots below would turn NaN.
        own = (low * (high / low) ** uniform()).clamp(max=high)
        order = torch.arange(factors, dtype=self.dtype, device=generator.device)
        loadings = normal(self.d, factors) * uniform() ** order
        loadings = loadings / torch.linalg.vector_norm(loadings, dim=-1, keepdim=True)
        x = own.sqrt() * normal(rows, self.d) + (1 - own).sqrt() * (normal(rows, factors) @ loadings.mT)

        weights = normal(self.d, 1)
        signal = own * weights.square().sum(1, keepdim=True)
        signal = signal + (1 - own) * (loadings.mT @ weights).square().sum(1, keepdim=True)
        low, high = self.explained
        share = (low + (high - low) * uniform()).clamp(max=high)
        noise = (signal * (1 - share) / share).sqrt() * normal(self.n, 1)
        y = x @ weights
        y[:, : self.n] += noise

        scaled = standardise(x, y.squeeze(-1), self.n)
        scaled_weights = weights.squeeze(-1) * scaled.x_scale / scaled.y_scale.unsqueeze(-1)
        return TaskBatch(z=scaled.z, target=scaled.target, weights=scaled_weights, context=self.n)
