"""What optimisers meet when they train a linear Transformer: gradients, curvature along a path, noise of gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.runs.fitting import seeded
from memformer_lab.tasks.families import FamilyTasks
from memformer_lab.tasks.gaussian import TaskBatch
from memformer_lab.tasks.seeds import generator_for

Algorithm = Literal["SGD", "Adam"]

D, N = 5, 20
BATCH = 1_000
_START = 0.05
_CLIP = {"sphere": 0.1}
_STEP = 1e-5


def fresh(layers: int, seed: int) -> Memformer:
    """A linear Transformer with free blocks of P and Q, all entries N(0, 0.05^2)."""

    def build() -> Memformer:
        model = Memformer(D, layers, rule="linear", structure="block", device="cpu", dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, _START)
        return model

    model = seeded(build, seed)
    assert isinstance(model, Memformer)
    return model


@dataclass(frozen=True)
class Path:
    """A training run.

    Attributes:
        points: flat parameters by number of steps taken, at the checkpoints and one step after each.
        diverged: whether it met a loss that is not finite; there are no points from there on.
    """

    points: dict[int, Tensor] = field(default_factory=dict)
    diverged: bool = False


def train(
    model: Memformer, family: str, algorithm: Algorithm, rate: float, checkpoints: Sequence[int], seed: int
) -> Path:
    """Train in place as Ahn et al. (arXiv 2310.01082) do: batches of 1000, the gradient as a whole clipped to norm 1.

    SGD has momentum 0.9, Adam decay rates 0.9 and 0.9; rates are constant. On the sphere the norm is 0.1.
    """
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if algorithm == "SGD":
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.9))
    tasks, generator = FamilyTasks(family, D, N), generator_for("training", seed)
    wanted = {step + ahead for step in checkpoints for ahead in (0, 1)}
    path = Path()
    for step in range(max(checkpoints) + 2):
        if step in wanted:
            path.points[step] = torch.cat([value.detach().flatten() for value in parameters]).double()
        optimizer.zero_grad()
        drawn = tasks.tokens(BATCH, generator)
        loss = model.loss(drawn.z, drawn.target, context=drawn.context)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP.get(family, 1.0))
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            return Path(path.points, True)
        optimizer.step()
    return path


class Landscape:
    """The loss on fixed tasks as a function of flat parameters, in float64.

    Args:
        layers: of the network.
        batch: the tasks.
    """

    def __init__(self, layers: int, batch: TaskBatch) -> None:
        self._model = fresh(layers, 0).double()
        self._z, self._target, self._context = batch.z.double(), batch.target.double(), batch.context

    def loss(self, point: Tensor) -> float:
        """The mean squared error."""
        self._set(point)
        with torch.no_grad():
            return float(self._model.loss(self._z, self._target, context=self._context))

    def gradient(self, point: Tensor) -> Tensor:
        """Of the loss, as flat as the point."""
        self._set(point)
        loss = self._model.loss(self._z, self._target, context=self._context)
        found = torch.autograd.grad(loss, list(self._model.parameters()))
        return torch.cat([value.flatten() for value in found])

    def curvature(self, point: Tensor, direction: Tensor) -> float:
        """v^T (second derivative) v along the unit vector v of a direction, by central differences of gradients."""
        unit = direction / direction.norm()
        change = self.gradient(point + _STEP * unit) - self.gradient(point - _STEP * unit)
        return float(change @ unit) / (2 * _STEP)

    def robust_condition(self, point: Tensor) -> float:
        """Largest over median magnitude of the second derivative's diagonal (Jiang et al., arXiv 2204.00423)."""
        units = torch.eye(len(point), dtype=torch.float64, device=point.device)
        diagonal = torch.tensor([abs(self.curvature(point, unit)) for unit in units], device="cpu", dtype=torch.float64)
        return float(diagonal.max() / diagonal.median())

    def _set(self, point: Tensor) -> None:
        with torch.no_grad():
            start = 0
            for parameter in self._model.parameters():
                parameter.copy_(point[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()


def gradient_noise(layers: int, family: str, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Norms of stochastic gradients less their mean, at a fresh network, and those of Gaussian vectors like them.

    Returns:
        (samples,) norms of the noise of batches of 1000 tasks; (samples,) norms of Gaussian vectors of its covariance.
    """
    model, tasks = fresh(layers, seed), FamilyTasks(family, D, N)
    generator: Generator = generator_for("training", seed, 1)
    parameters = list(model.parameters())
    rows = []
    for _ in range(samples):
        drawn = tasks.tokens(BATCH, generator)
        found = torch.autograd.grad(model.loss(drawn.z, drawn.target, context=drawn.context), parameters)
        rows.append(torch.cat([value.flatten() for value in found]).double())
    noise = torch.stack(rows)
    noise = noise - noise.mean(0)
    # Random combinations of the samples: Gaussian, of the samples' own covariance.
    weights = torch.randn(samples, samples, generator=generator, dtype=torch.float64, device="cpu")
    return noise.norm(dim=1), (weights @ noise / math.sqrt(samples)).norm(dim=1)
