"""Training for experiments: one loop for everything that has a loss, one entry for Memformers on Gaussian tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from memformer_kernels.nn import Memformer
from memformer_lab.models import reads_statistics_alone
from memformer_lab.seeds import generator_for, seed_for
from memformer_lab.tasks import GaussianTasks, TaskBatch
from memformer_lab.trainer import clip_gradients

Draw = Callable[[int, Generator], TaskBatch]
"""(batch, generator) -> tasks."""


@dataclass(frozen=True)
class Recipe:
    """Adam's settings: linear warm-up to the learning rate, then a cosine to zero.

    Attributes:
        steps: optimiser steps.
        batch: tasks a step.
        learning_rate: at the peak.
        clip: as in `memformer_lab.trainer.clip_gradients`.
        warmup: steps of warm-up.
    """

    steps: int
    batch: int = 256
    learning_rate: float = 0.1
    clip: float | None = 1.0
    warmup: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Fit:
    """Losses by step, and whether training ended early in a non-finite loss or gradient."""

    losses: tuple[float, ...]
    diverged: bool


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` makes with torch's global generator seeded; the global state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("initialisation", seed))
        return build()


def memformer(seed: int, d: int, layers: int, **arguments: Any) -> Memformer:
    """A fresh `Memformer` with seeded parameters."""
    model = seeded(lambda: Memformer(d, layers, **arguments), seed)
    assert isinstance(model, Memformer)
    return model


def draws_statistics(model: Memformer, tasks: GaussianTasks) -> bool:
    """Whether tasks can be drawn as statistics with the query integrated out, without changing the expected loss."""
    return tasks.n >= tasks.d and reads_statistics_alone(model)


def drawer(model: Memformer, tasks: GaussianTasks) -> Draw:
    """How a model's tasks are drawn: as statistics where that is the same, else as tokens with one query."""
    return tasks.compressed if draws_statistics(model, tasks) else tasks.tokens


def fit_on_tasks(model: Memformer, tasks: GaussianTasks, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on fresh Gaussian tasks, by statistics where it reads nothing else."""
    return fit_memformer(model, drawer(model, tasks), recipe, seed)


def fit_memformer(model: Memformer, draw: Draw, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on fresh tasks of any kind."""

    def loss(generator: Generator) -> Tensor:
        batch = draw(recipe.batch, generator)
        return batch.query_scale * model.loss(batch.z, batch.target, context=batch.context)

    return fit(model, loss, recipe, seed)


def fit_fixed(model: Memformer, batch: TaskBatch, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on one fixed set of tasks, all of them in every step."""
    return fit(
        model, lambda _: batch.query_scale * model.loss(batch.z, batch.target, context=batch.context), recipe, seed
    )


def fit(model: nn.Module, loss: Callable[[Generator], Tensor], recipe: Recipe, seed: int) -> Fit:
    """Train any module in place on a loss that draws its own tasks; stops before the first non-finite step."""
    generator = generator_for("training", seed)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.Adam(parameters.values(), lr=recipe.learning_rate, fused=True)
    losses: list[float] = []
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        optimizer.zero_grad()
        value = loss(generator)
        torch.autograd.backward(value)
        norm = clip_gradients(parameters, recipe.clip)
        numbers = torch.stack([value.detach().double(), norm]).tolist()
        if not all(map(math.isfinite, numbers)):
            return Fit(tuple(losses), True)
        losses.append(numbers[0])
        optimizer.step()
    return Fit(tuple(losses), False)
