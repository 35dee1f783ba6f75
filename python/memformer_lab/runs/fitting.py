"""Training for experiments: Memformers by `train_steps` where the native library serves them, all else by one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import Adam, FixedTasks, Schedule
from memformer_kernels.nn import Memformer
from memformer_lab.runs.steps import AutogradSteps, FusedSteps, Sampler, TrainingDiverged, state_of
from memformer_lab.solvers.first_order import Draw, drawer, draws_statistics
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch, step_sampler
from memformer_lab.tasks.seeds import generator_for, seed_for

_LONG = 256
"""Examples from which drawing the sums of their uniforms takes longer than Python's rejection sampler."""

_DRAWN = 2**17
"""Tasks times features that are drawn at once for the native trainer."""

_HELD = 2**25
"""Most numbers in the tokens that are drawn at once."""


@dataclass(frozen=True)
class Recipe:
    """Adam's settings: linear warm-up to the learning rate, then a cosine to zero.

    Attributes:
        steps: optimiser steps.
        batch: tasks a step.
        learning_rate: at the peak.
        clip: as in `steps.clip_gradients`.
        warmup: steps of warm-up.
    """

    steps: int
    batch: int = 256
    learning_rate: float = 0.1
    clip: float | None = 1.0
    warmup: int = 0

    def further(self) -> tuple[Recipe, Recipe]:
        """What shows that training came to its end: twice the steps, at the same rate and at a third of it."""
        longer = replace(self, steps=2 * self.steps)
        return longer, replace(longer, learning_rate=self.learning_rate / 3)

    def optimizer(self) -> Adam:
        """Adam with the recipe's clipping and schedule."""
        schedule = Schedule("cosine", warmup=self.warmup, steps=self.steps)
        return Adam(self.learning_rate, clip=self.clip, schedule=schedule)


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
    model = seeded(lambda: Memformer(d, layers, **{"device": "cpu", "dtype": torch.float32, **arguments}), seed)
    assert isinstance(model, Memformer)
    return model


def fit_on_tasks(model: Memformer, tasks: GaussianTasks, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on fresh Gaussian tasks, by statistics where it reads nothing else."""
    statistics = draws_statistics(model, tasks)
    if statistics and tasks.n > _LONG:
        return fit_memformer(model, tasks.compressed, recipe, seed)
    sampler = step_sampler(tasks, recipe.batch, statistics=statistics)
    fitted = _fit_natively(model, sampler, [(sampler, recipe.steps)], recipe, seed)
    return fitted or _fit_in_python(model, drawer([model], tasks), recipe, seed)


def fit_on_lengths(model: Memformer, lengths: Sequence[GaussianTasks], recipe: Recipe, seed: int) -> Fit:
    """As `fit_on_tasks`, with every step's tasks of one kind, drawn evenly out of several context lengths."""
    samplers = [step_sampler(tasks, recipe.batch, statistics=draws_statistics(model, tasks)) for tasks in lengths]
    chosen = torch.randint(
        len(lengths), (recipe.steps,), generator=generator_for("training", seed, 1), device="cpu", dtype=torch.int64
    ).tolist()
    steps = iter(chosen)

    def draw(batch: int, generator: Generator) -> TaskBatch:
        return drawer([model], lengths[next(steps)])(batch, generator)

    fitted = _fit_natively(model, samplers[0], ((samplers[index], 1) for index in chosen), recipe, seed)
    return fitted or _fit_in_python(model, draw, recipe, seed)


def fit_memformer(model: Memformer, draw: Draw, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on fresh tasks of any kind, drawn in Python."""
    generator = generator_for("training", seed)
    few = _given(draw(recipe.batch, generator_for("training", seed, 1)))
    many = min(recipe.steps, max(1, _DRAWN // (recipe.batch * model.d)), max(1, _HELD // few.z.numel()))

    def chunks() -> Iterator[tuple[Sampler, int]]:
        for first in range(0, recipe.steps, many):
            steps = min(many, recipe.steps - first)
            yield _given(draw(many * recipe.batch, generator), recipe.batch), steps

    return _fit_natively(model, few, chunks(), recipe, seed) or _fit_in_python(model, draw, recipe, seed)


def fit_fixed(model: Memformer, batch: TaskBatch, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on one fixed set of tokens, all of them in every step."""
    tasks = _given(batch)
    fitted = _fit_natively(model, tasks, [(tasks, recipe.steps)], recipe, seed)
    return fitted or _fit_in_python(model, lambda *_: batch, recipe, seed)


def _fit_natively(
    model: Memformer, sampler: Sampler, parts: Iterable[tuple[Sampler, int]], recipe: Recipe, seed: int
) -> Fit | None:
    """Take some steps on each sampler in turn; None where the native library does not train such a model on such tasks.

    Args:
        model: what is trained, in place.
        sampler: one like those of `parts`.
        parts: samplers, each with a number of steps.
        recipe: the optimiser's settings.
        seed: of the tasks.
    """
    if (state := state_of(model, seed_for("training", seed) >> 1)) is None:
        return None
    steps = FusedSteps(model, state, recipe.optimizer())
    if steps.backend_on(sampler) != "cpu":
        return None
    found = _collect(steps.take_on(part, count) for part, count in parts)
    steps.learned()
    return found


def _collect(parts: Iterable[list[float]]) -> Fit:
    """The losses of steps that are taken as `parts` is read, up to where they diverge."""
    losses: list[float] = []
    try:
        for part in parts:
            losses += part
    except TrainingDiverged as error:
        return Fit((*losses, *error.losses), True)
    return Fit(tuple(losses), False)


def _given(batch: TaskBatch, size: int | None = None) -> FixedTasks:
    """Tasks in their order, `size` a step. A prediction is linear in the query where queries stand for several."""
    root = math.sqrt(batch.query_scale)
    z = batch.z.clone()
    z[:, batch.context :] *= root
    return FixedTasks(z, root * batch.target, batch.context, size, shuffle=False)


def _fit_in_python(model: Memformer, draw: Draw, recipe: Recipe, seed: int) -> Fit:
    def loss(generator: Generator) -> Tensor:
        batch = draw(recipe.batch, generator)
        return batch.query_scale * model.loss(batch.z, batch.target, context=batch.context)

    return fit(model, loss, recipe, seed)


def fit(model: nn.Module, loss: Callable[[Generator], Tensor], recipe: Recipe, seed: int) -> Fit:
    """Train any module in place on a loss that draws its own tasks; stops before the first non-finite step."""
    generator = generator_for("training", seed)
    steps = AutogradSteps(model, lambda _: loss(generator), recipe.optimizer())
    return _collect(steps.take(1) for _ in range(recipe.steps))
