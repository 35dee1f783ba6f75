"""Linear regression tasks with a covariance of features of their own in every prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Generator, Tensor

from memformer_lab.tasks.gaussian import GaussianTasks, Quadratics, TaskBatch


@dataclass(frozen=True)
class CovarianceTasks:
    """Tasks x ~ N(0, Sigma), y = x . w*, with Sigma = U diag(scales^2 * factors) U^T drawn anew for every task.

    U is Haar distributed, and each of the d factors log-uniform in [1 / spread, 1]. So a spread of 1 has another
    rotation of one spectrum in every prompt, and equal scales have condition numbers up to the spread.

    Attributes:
        d: number of features.
        n: number of labelled examples in a context, at least d.
        scales: d positive standard deviations.
        spread: largest ratio of two factors, at least 1.
        weights: "inverse", w* ~ N(0, Sigma^-1), so that all prompts have E[y^2] = d, or "isotropic", w* ~ N(0, I).
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int
    n: int
    scales: tuple[float, ...]
    spread: float = 1.0
    weights: Literal["inverse", "isotropic"] = "inverse"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        GaussianTasks(self.d, self.n, self.scales, weights=self.weights, dtype=self.dtype)
        if self.n < self.d:
            raise ValueError(f"n must be at least d={self.d}, got {self.n}")
        if not 1 <= self.spread < math.inf:
            raise ValueError(f"spread must be finite and at least 1, got {self.spread}")

    @cached_property
    def _whitened(self) -> GaussianTasks:
        return GaussianTasks.isotropic(self.d, self.n, dtype=self.dtype)

    def factors(self, batch: int, generator: Generator) -> Tensor:
        """C with Sigma = C C^T of every task, (batch, d, d)."""
        size = (batch, self.d)
        normal = torch.randn(*size, self.d, generator=generator, dtype=self.dtype, device=generator.device)
        q, r = torch.linalg.qr(normal)
        # Without the signs of R's diagonal, Q is not Haar distributed (Mezzadri, math-ph/0609050).
        rotation = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
        uniform = torch.rand(*size, generator=generator, dtype=self.dtype, device=generator.device)
        scales = torch.tensor(self.scales, dtype=self.dtype, device=generator.device)
        found: Tensor = rotation * (scales * self.spread ** (-0.5 * uniform)).unsqueeze(1)
        return found

    def quadratics(self, batch: int, generator: Generator) -> tuple[Quadratics, Tensor]:
        """Tasks as quadratics, and the factor C (batch, d, d) of each covariance. Neither has its batch axis last."""
        factor = self.factors(batch, generator)
        drawn = self._whitened.quadratics(batch, generator)
        h = factor @ drawn.h @ factor.mT
        weights = self._weights(factor, drawn.weights)
        return Quadratics(h=h, b=_times(h, weights), weights=weights), factor

    def compressed(self, batch: int, generator: Generator) -> TaskBatch:
        """As `GaussianTasks.compressed`: d context tokens of the statistics of n, and as queries the columns of C."""
        factor = self.factors(batch, generator)
        drawn = self._whitened.compressed(batch, generator)
        weights, z = self._weights(factor, drawn.weights), drawn.z.clone()
        z[:, : self.d, :-1] = drawn.z[:, : self.d, :-1] @ factor.mT
        z[:, : self.d, -1] = _times(z[:, : self.d, :-1], weights)
        z[:, self.d :, :-1] = factor.mT
        return TaskBatch(z, _times(factor.mT, weights), weights, self.d, float(self.d))

    def _weights(self, factor: Tensor, normal: Tensor) -> Tensor:
        if self.weights == "isotropic":
            return normal.contiguous()
        # C^-T = C (C^T C)^-1, and C^T C is diagonal.
        return _times(factor, normal / factor.square().sum(1))


def query_shifted(tasks: TaskBatch, factor: Tensor) -> TaskBatch:
    """The same prompts with queries x ~ N(0, C C^T) integrated out, whatever the context's features are.

    Args:
        tasks: prompts that have their queries integrated out.
        factor: C, (d, d).
    """
    z = tasks.z.clone()
    z[:, tasks.context :, :-1] = factor.T.to(z)
    return TaskBatch(z, tasks.weights @ factor.to(z), tasks.weights, tasks.context, tasks.query_scale)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
