"""Classification tasks: Gaussian classes of one covariance, with means of their own in every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from memformer_lab.tasks.gaussian import GaussianTasks, check_batch, check_sizes


@dataclass(frozen=True)
class MixtureBatch:
    """A batch of classification tasks.

    Attributes:
        x: (B, n + queries, d) float32 features, examples first.
        labels: (B, n + queries) int64 classes: those given for examples, the true ones for queries.
        means: (B, m, d) of the classes.
        context: number of examples n.
    """

    x: Tensor
    labels: Tensor
    means: Tensor
    context: int

    @property
    def classes(self) -> int:
        """m."""
        return self.means.shape[1]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """z (B, n + queries, d + m), whose responses are one-hot labels less 1 / m and 0 for queries; and queries' own.

        Returns:
            z, and the responses of the queries (B, queries, m).
        """
        responses = one_hot(self.labels, self.classes).float() - 1 / self.classes
        target = responses[:, self.context :].clone()
        responses[:, self.context :] = 0
        return torch.cat([self.x, responses], dim=-1), target


@dataclass(frozen=True)
class MixtureTasks:
    """Labels uniform over m classes, x ~ N(mu_label, Sigma); mu_c = C u_c with u_c uniform on the sphere of a radius.

    Sigma = C C^T is common to all tasks. So mu_c^T Sigma^-1 mu_c is the same for all classes, as Frei & Vardi (arXiv
    2410.01774) and Shen et al. (arXiv 2410.11778) have it, and the best rule of known means is linear without a
    constant: the class of the largest mu_c^T Sigma^-1 x.

    Attributes:
        d: features.
        classes: m.
        radius: of the whitened means.
        scales: d positive standard deviations along the axes of a rotation.
        rotation_seed: of the rotation; None is none.

    Raises:
        ValueError: for sizes below 1, fewer than two classes, or a radius or scales that are not positive and finite.
    """

    d: int
    classes: int
    radius: float
    scales: tuple[float, ...]
    rotation_seed: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self.d, 1, torch.float32)
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius must be positive and finite, got {self.radius}")
        _ = self.factor

    @cached_property
    def factor(self) -> Tensor:
        """C, (d, d) float64 on the CPU."""
        return GaussianTasks(self.d, 1, self.scales, self.rotation_seed).factor

    def draw(
        self, batch: int, generator: Generator, context: int, queries: int = 1, *, flipped: float = 0.0
    ) -> MixtureBatch:
        """Fresh tasks.

        Args:
            batch: tasks.
            generator: of all randomness.
            context: examples a task, at least 1.
            queries: queries a task.
            flipped: the probability that an example is given the label of another class, each equally likely.

        Raises:
            ValueError: for negative sizes, no example, or a probability outside [0, 1].
        """
        check_batch(batch, queries)
        if context < 1 or not 0 <= flipped <= 1:
            raise ValueError(f"expected context >= 1 and flipped in [0, 1], got {context} and {flipped}")

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)

        def whole(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, device=generator.device, dtype=torch.int64)

        factor = self.factor.to(generator.device, torch.float32)
        directions = normal(batch, self.classes, self.d)
        means = self.radius * directions / directions.norm(dim=-1, keepdim=True)
        labels = whole(0, self.classes, batch, context + queries)
        own = means.gather(1, labels.unsqueeze(-1).expand(-1, -1, self.d))
        x = (own + normal(batch, context + queries, self.d)) @ factor.T
        if flipped:
            chance = torch.rand((batch, context), generator=generator, device=generator.device, dtype=torch.float32)
            moved = whole(1, self.classes, batch, context) * (chance < flipped)
            labels[:, :context] = (labels[:, :context] + moved) % self.classes
        return MixtureBatch(x, labels, means @ factor.T, context)
