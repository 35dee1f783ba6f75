"""A causal Transformer and an LSTM trained on prompts of every length, with their learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor, nn

from memformer_lab.experiments.prompts import draw_prompts
from memformer_lab.experiments.sequence_models import CausalTransformer, RecurrentModel
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Setting
from memformer_lab.runs.fitting import Fit, Recipe, fit, seeded
from memformer_lab.solvers.estimates import log_of
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 3
_POINTS = 20


@dataclass(frozen=True)
class SequenceRuns:
    """What trained sequence models came to.

    Attributes:
        lengths: ln mean squared error by examples known, a curve a model; each is also trained for twice the steps.
        learning: ln training loss by steps taken, means of 20 equal parts of the run and of all lengths.
        tasks: prompts that a model was trained on.
    """

    lengths: tuple[Series, ...]
    learning: tuple[Series, ...]
    tasks: int


def sequence_recipe(setting: Setting) -> Recipe:
    """Adam's settings for sequence models."""
    return Recipe(
        setting.pick(tiny=20, quick=60, full=4_000), setting.pick(tiny=4, quick=32, full=64), 0.003, 1.0, warmup=10
    )


def train_sequence_models(setting: Setting, tasks: GaussianTasks, lengths: Sequence[int]) -> SequenceRuns:
    """Train a Transformer and an LSTM, three seeds each, and judge them on fresh prompts.

    Args:
        setting: scale and seeds.
        tasks: gives d and the longest prompt n.
        lengths: examples known where they are judged, at most n.
    """
    d, longest, recipe = tasks.d, tasks.n + 1, sequence_recipe(setting)
    width = setting.pick(tiny=8, quick=16, full=32)
    builders: dict[str, Callable[[], nn.Module]] = {
        f"Transformer, hidden size {width}": partial(CausalTransformer, d, width, _LAYERS, longest),
        f"LSTM, hidden size {width}": partial(RecurrentModel, d, width),
    }
    judged = draw_prompts(
        tasks, setting.pick(tiny=20, quick=1_000, full=4_000), generator_for("evaluation", setting.seed)
    )
    places = [recipe.steps * (part + 1) / _POINTS for part in range(_POINTS)]
    by_length, learning = [], []
    for label, build in builders.items():
        rows, curves = [], []
        for seed in setting.seeds[: setting.pick(tiny=2, quick=1, full=3)]:
            row, fitted = _trained(build, recipe, seed, tasks, judged, lengths)
            rows.append(row)
            curves.append(_parts(fitted, recipe.steps))
        twice = replace(recipe, steps=2 * recipe.steps)
        longer = _trained(build, twice, setting.seeds[0], tasks, judged, lengths)[0]
        by_length.append(series(label, lengths, rows, longer=[longer]))
        learning.append(series(label, places, curves))
    return SequenceRuns(tuple(by_length), tuple(learning), recipe.steps * recipe.batch)


def _trained(
    build: Callable[[], nn.Module],
    recipe: Recipe,
    seed: int,
    tasks: GaussianTasks,
    judged: tuple[Tensor, Tensor],
    lengths: Sequence[int],
) -> tuple[list[float], Fit]:
    """Errors by length of one trained model, and its training."""
    network = seeded(build, seed)

    def loss(generator: Generator) -> Tensor:
        x, y = draw_prompts(tasks, recipe.batch, generator)
        error: Tensor = (network(x, y) - y).square().mean()
        return error

    fitted = fit(network, loss, recipe, seed)
    total = judged[1].new_zeros(judged[1].shape[1], dtype=torch.float64)
    with torch.no_grad():
        for x, y in zip(*(torch.split(part, 1000) for part in judged), strict=True):
            total += (network(x, y) - y).double().square().sum(0)
    errors = (total / len(judged[1])).tolist()
    return [log_of(errors[length]) for length in lengths], fitted


def _parts(fitted: Fit, steps: int) -> list[float]:
    """ln of the mean loss in equal parts of a training; NaN where it ended before."""
    losses = np.full(steps, math.nan)
    losses[: len(fitted.losses)] = fitted.losses
    return [float(np.log(part.mean())) for part in np.array_split(losses, _POINTS)]
