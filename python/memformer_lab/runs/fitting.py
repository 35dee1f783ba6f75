"""Training for experiments: Memformers by `train_steps` where the native library serves them, all else by one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import (
    Adam,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    explain_training,
    train_steps,
)
from memformer_kernels.nn import Memformer
from memformer_lab.runs.models import reads_statistics_alone
from memformer_lab.runs.trainer import clip_gradients
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.samplers import step_sampler
from memformer_lab.tasks.seeds import generator_for, seed_for

Draw = Callable[[int, Generator], TaskBatch]
"""(batch, generator) -> tasks."""

_Sampler = GaussianStatistics | GaussianTokens | FixedTasks

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
        clip: as in `memformer_lab.runs.trainer.clip_gradients`.
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
    model = seeded(lambda: Memformer(d, layers, **{"device": "cpu", "dtype": torch.float32, **arguments}), seed)
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
    statistics = draws_statistics(model, tasks)
    if statistics and tasks.n > _LONG:
        return fit_memformer(model, tasks.compressed, recipe, seed)
    sampler = step_sampler(tasks, recipe.batch, statistics=statistics)
    run = _NativeRun.of(model, sampler, recipe, seed)
    return run.take([(sampler, recipe.steps)]) if run else _fit_in_python(model, drawer(model, tasks), recipe, seed)


def fit_on_lengths(model: Memformer, lengths: Sequence[GaussianTasks], recipe: Recipe, seed: int) -> Fit:
    """As `fit_on_tasks`, with every step's tasks of one kind, drawn evenly out of several context lengths."""
    samplers = [step_sampler(tasks, recipe.batch, statistics=draws_statistics(model, tasks)) for tasks in lengths]
    chosen = torch.randint(
        len(lengths), (recipe.steps,), generator=generator_for("training", seed, 1), device="cpu", dtype=torch.int64
    ).tolist()
    if run := _NativeRun.of(model, samplers[0], recipe, seed):
        return run.take((samplers[index], 1) for index in chosen)
    steps = iter(chosen)

    def draw(batch: int, generator: Generator) -> TaskBatch:
        return drawer(model, lengths[next(steps)])(batch, generator)

    return _fit_in_python(model, draw, recipe, seed)


def fit_memformer(model: Memformer, draw: Draw, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on fresh tasks of any kind, drawn in Python."""
    generator = generator_for("training", seed)
    few = _given(draw(recipe.batch, generator_for("training", seed, 1)))
    many = min(recipe.steps, max(1, _DRAWN // (recipe.batch * model.d)), max(1, _HELD // few.z.numel()))

    def chunks() -> Iterator[tuple[FixedTasks, int]]:
        for first in range(0, recipe.steps, many):
            steps = min(many, recipe.steps - first)
            yield _given(draw(many * recipe.batch, generator), recipe.batch), steps

    run = _NativeRun.of(model, few, recipe, seed)
    return run.take(chunks()) if run else _fit_in_python(model, draw, recipe, seed)


def fit_fixed(model: Memformer, batch: TaskBatch, recipe: Recipe, seed: int) -> Fit:
    """Train a Memformer in place on one fixed set of tokens, all of them in every step."""
    tasks = _given(batch)
    run = _NativeRun.of(model, tasks, recipe, seed)
    return run.take([(tasks, recipe.steps)]) if run else _fit_in_python(model, lambda *_: batch, recipe, seed)


@dataclass(frozen=True)
class _NativeRun:
    """A model's run through `train_steps` where the native library serves it: microseconds a step."""

    model: Memformer
    state: TrainState
    optimizer: Adam

    @classmethod
    def of(cls, model: Memformer, sampler: _Sampler, recipe: Recipe, seed: int) -> _NativeRun | None:
        """None where the native library does not train such a model on such tasks."""
        if (state := _state(model, seed)) is None:
            return None
        schedule = Schedule("cosine", warmup=recipe.warmup, steps=recipe.steps)
        optimizer = Adam(recipe.learning_rate, clip=recipe.clip, schedule=schedule)
        native = explain_training(state, sampler, optimizer=optimizer).backend == "cpu"
        return cls(model, state, optimizer) if native else None

    def take(self, parts: Iterable[tuple[_Sampler, int]]) -> Fit:
        """Take some steps on each sampler in turn and put what was learnt into the model."""
        losses: list[float] = []
        for sampler, steps in parts:
            losses += train_steps(self.state, sampler, steps, optimizer=self.optimizer, max_skipped=1)[:, 0].tolist()
            if int(self.state.skipped):
                break
        with torch.no_grad():
            for name, value in self.state.model(0).items():
                self.model.get_parameter(name).copy_(value)
        skipped = int(self.state.skipped)
        return Fit(tuple(losses[: len(losses) - skipped]), skipped > 0)


def _state(model: Memformer, seed: int) -> TrainState | None:
    """The model as `train_steps` takes it, or None where its parameters are not what the stack reads."""
    own = dict(model.named_parameters())
    read = {name: value for name, value in model.stack_arguments().items() if isinstance(value, Tensor)}
    if "gate" in own or {name: value.shape for name, value in own.items()} != {n: v.shape for n, v in read.items()}:
        return None
    # An entry that the model holds fixed, such as the residual rule's own 1, has no gradient.
    total = torch.stack([value.sum() for value in read.values()]).sum()
    trained = [name for name, value in own.items() if value.requires_grad]
    gradients = dict(zip(trained, torch.autograd.grad(total, [own[name] for name in trained]), strict=True))
    trainable = {name: gradients.get(name, torch.zeros_like(value)) != 0 for name, value in own.items()}
    return TrainState.of([read], seeds=seed_for("training", seed) >> 1, trainable=[trainable])


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
