"""Experiment 12: the generalisation gap against the number of training tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.runs.fitting import Recipe, fit_fixed, memformer
from memformer_lab.solvers.judging import memformer_estimates
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 2
_SLOPE = "slope of ln gap against ln m"


def run(setting: Setting) -> Results:
    """Fits models to m fixed tasks and measures fresh loss less training loss."""
    sizes = setting.pick(tiny=(8, 32), quick=(30, 100, 300, 1000), full=(30, 100, 300, 1000, 3000, 10_000))
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    recipe = Recipe(setting.pick(tiny=3, quick=600, full=3000), learning_rate=0.05)
    count = setting.pick(tiny=500, quick=200_000, full=1_000_000)
    gaps, training, fresh = [], [], []
    for seed in setting.seeds:
        models, losses = [], []
        for index, size in enumerate(sizes):
            fixed = tasks.tokens(size, generator_for("training", seed, 1 + index))
            model = memformer(seed, tasks.d, _LAYERS, rule="lfom")
            fit_fixed(model, fixed, recipe, seed)
            with torch.no_grad():
                losses.append(float(model.loss(fixed.z, fixed.target, context=fixed.context)))
            models.append(model)
        judged = [math.exp(one[0].log_mean) for one in memformer_estimates(models, tasks, count, setting.seed)]
        training.append(losses)
        fresh.append(judged)
        gaps.append([new - old for new, old in zip(judged, losses, strict=True)])
    mean_gaps = [max(float(np.mean(column)), 1e-12) for column in zip(*gaps, strict=True)]
    slope = float(np.polyfit(np.log(sizes), np.log(mean_gaps), 1)[0])
    reference = [mean_gaps[0] * math.sqrt(sizes[0] / size) for size in sizes]
    panels = (
        Panel(
            "gap",
            f"Generalisation gap of {_LAYERS}-layer LFOM models fitted to m tasks",
            "m",
            "fresh loss - training loss",
            (series("gap", sizes, gaps), series("1/sqrt(m) from the first point", sizes, reference, reference=True)),
            log_x=True,
            log_y=True,
            digits=3,
        ),
        Panel(
            "loss",
            "Losses on the training tasks and on fresh tasks",
            "m",
            "mean squared error",
            (series("training tasks", sizes, training), series("fresh tasks", sizes, fresh)),
            log_x=True,
            log_y=True,
            digits=3,
        ),
    )
    return Results(panels, {_SLOPE: slope})


def judge(results: Results) -> Sequence[Check]:
    """The mean gap falls at least as fast as the bound allows."""
    gap = results["gap"]["gap"]
    first, last = gap.x[0], gap.x[-1]
    bound = gap.mean(first) * math.sqrt(first / last)
    return [
        at_most("slope of ln gap against ln m", results.numbers[_SLOPE], -0.5, 0.05),
        at_most(f"gap at m = {last:g} is below 1/sqrt(m) from m = {first:g}", gap.mean(last), bound),
    ]


def find(results: Results) -> str:
    """The gap by number of tasks, and its slope."""
    gap = results["gap"]["gap"]
    gaps = ", ".join(f"{gap.mean(x):.2g}" for x in gap.x)
    return f"m = {', '.join(f'{x:g}' for x in gap.x)}: gap {gaps}; slope {results.numbers[_SLOPE]:.2f}"


EXPERIMENT = Experiment(
    number=12,
    name="learnability",
    title="Generalisation gap against the number of training tasks",
    claim="The loss of a learned first-order method on fresh tasks exceeds its training loss by at most order "
    "1/sqrt(m) for m training tasks.",
    source="Dutta & Sra, arXiv 2410.07263, Theorem 5.1",
    protocol="m tasks with one query each, fixed, all of them in every step; the loss on them and on fresh tasks. An "
    "upper bound cannot be reproduced, only contradicted: the gap must fall at least as fast as 1/sqrt(m).",
    run=run,
    judge=judge,
    find=find,
)
