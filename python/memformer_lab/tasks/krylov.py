"""Isotropic tasks of any size as their Krylov spaces, which is all that a method without a preconditioner sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from memformer_lab.tasks.gaussian import Quadratics, TaskBatch, check_batch, check_sizes, chi


@dataclass(frozen=True)
class KrylovTasks:
    """Tasks x ~ N(0, I_d), w* ~ N(0, I_d), y = x . w*, in the orthonormal basis of span{w*, H w*, ..., H^steps w*}.

    Golub and Kahan's bidiagonalisation of X from w* / |w*| has independent entries chi(n), chi(d - 1), chi(n - 1), ...
    (Dumitriu & Edelman, math-ph/0206043), and |w*| is chi(d). In that basis H is tridiagonal and w* the first axis. A
    method whose errors are polynomials in H of degree `steps` at most, with coefficients that are fixed or follow from
    inner products in the space, has the same errors there as among all d features: gradient methods of so many steps,
    conjugate gradients, and response-only networks whose A_l are multiples of I. Tasks of a thousand features cost what
    those of steps + 1 do.

    Attributes:
        d: number of features.
        n: number of examples, at least that of axes.
        steps: of the methods that are run.
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int
    n: int
    steps: int
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, self.dtype)
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        if self.n < self.axes:
            raise ValueError(f"n must be at least {self.axes}, the number of axes, got {self.n}")

    @property
    def axes(self) -> int:
        """Dimensions of the space."""
        return min(self.d, self.steps + 1)

    @property
    def factor(self) -> Tensor:
        """The identity, (axes, axes) float64: the error of a random query is the distance from w*."""
        return torch.eye(self.axes, dtype=torch.float64, device="cpu")

    def quadratics(self, batch: int, generator: Generator) -> Quadratics:
        """H (batch, axes, axes), b and w* (batch, axes)."""
        check_batch(batch)
        root, weights = self._draw(batch, generator)
        h = root.mT @ root / self.n
        return Quadratics(h=h, b=(h @ weights[..., None])[..., 0], weights=weights)

    def compressed(self, batch: int, generator: Generator) -> TaskBatch:
        """As `GaussianTasks.compressed`: as many context tokens as axes, and the axes as queries."""
        check_batch(batch)
        root, weights = self._draw(batch, generator)
        size = self.axes
        z = torch.zeros(batch, 2 * size, size + 1, dtype=self.dtype, device=generator.device)
        z[:, :size, :size] = root * math.sqrt(size / self.n)
        z[:, :size, size] = (z[:, :size, :size] @ weights[..., None])[..., 0]
        z[:, size:, :size] = self.factor.to(z)
        return TaskBatch(z=z, target=weights.clone(), weights=weights, context=size, query_scale=float(size))

    def _draw(self, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The bidiagonal matrix (batch, axes, axes) and w* (batch, axes)."""
        root = torch.zeros(batch, self.axes, self.axes, dtype=self.dtype, device=generator.device)
        for i in range(self.axes):
            root[:, i, i] = chi(self.n - i, batch, generator, self.dtype)
            if i + 1 < self.axes:
                root[:, i, i + 1] = chi(self.d - 1 - i, batch, generator, self.dtype)
        weights = torch.zeros(batch, self.axes, dtype=self.dtype, device=generator.device)
        weights[:, 0] = chi(self.d, batch, generator, self.dtype)
        return root, weights
