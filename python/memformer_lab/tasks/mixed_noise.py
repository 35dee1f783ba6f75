"""Linear regression tasks whose response noise differs from task to task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator

from memformer_lab.tasks.gaussian import TaskBatch, check_batch, check_sizes


@dataclass(frozen=True)
class MixedNoiseTasks:
    """x ~ N(0, I), w* ~ N(0, I), y = x . w* + sigma e with sigma ~ U(0, largest) for a task and e ~ N(0, 1).

    Attributes:
        d: features.
        n: labelled examples in a context.
        largest: standard deviation of the noisiest task's noise.

    Raises:
        ValueError: for sizes below 1, or unless largest is finite and at least 0.
    """

    d: int
    n: int
    largest: float

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, torch.float32)
        if not 0 <= self.largest < math.inf:
            raise ValueError(f"largest must be finite and >= 0, got {self.largest}")

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """As `GaussianTasks.tokens`; queries have no noise."""
        return self.with_noise(batch, generator, queries)[0]

    def with_noise(self, batch: int, generator: Generator, queries: int = 1) -> tuple[TaskBatch, torch.Tensor]:
        """Tasks and each one's sigma (batch,)."""
        check_batch(batch, queries)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)

        weights, x = normal(batch, self.d), normal(batch, self.n + queries, self.d)
        sigma = self.largest * torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float32)
        z = torch.cat([x, x @ weights.unsqueeze(-1)], dim=-1)
        target = z[:, self.n :, -1].clone()
        z[:, self.n :, -1] = 0
        z[:, : self.n, -1] += sigma[:, None] * normal(batch, self.n)
        return TaskBatch(z=z, target=target, weights=weights, context=self.n), sigma
