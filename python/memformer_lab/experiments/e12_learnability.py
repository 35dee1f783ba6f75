"""Experiment 12: the generalisation gap against the number of training tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks, solver_of
from memformer_lab.reports.curves import interval, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check
from memformer_lab.runs.fitting import Recipe, fit_fixed, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import Solver, quadratics_of, query_errors, solver_errors
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 2
_SLOPE, _LOW, _HIGH = ("slope of ln gap against ln m", "lower end of its 95% interval", "upper end of its 95% interval")
_BOUND, _FAST = -0.5, -1.0


def run(setting: Setting) -> Results:
    """Fits models to m fixed tasks and measures fresh loss less training loss, both less those of the optimum."""
    sizes = setting.pick(tiny=(8, 32), quick=(30, 100, 300, 1000), full=(30, 100, 300, 1000, 3000, 10_000))
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    recipe = Recipe(setting.pick(tiny=3, quick=600, full=3000), learning_rate=0.05)
    count = setting.pick(tiny=500, quick=100_000, full=1_000_000)
    best = exact_optimum(tasks, _LAYERS).method(torch.float32).solver(layers=False)

    def losses(seed: int, recipe: Recipe) -> tuple[list[float], list[float], list[float]]:
        """Training losses, fresh losses, and gaps."""
        fixed = [tasks.tokens(size, generator_for("training", seed, 1 + index)) for index, size in enumerate(sizes)]
        models = [_fitted(tasks, one, recipe, seed) for one in fixed]
        solvers = [best, *map(solver_of, models)]
        optimum, *fresh = (
            math.exp(one.log_mean) for one in estimate(solver_errors(tasks, solvers), count, setting.seed)
        )
        training = [_loss(solver_of(model), one) for model, one in zip(models, fixed, strict=True)]
        gaps = [new - old - (optimum - _loss(best, one)) for new, old, one in zip(fresh, training, fixed, strict=True)]
        return training, fresh, gaps

    rows = [losses(seed, recipe) for seed in setting.seeds]
    further = [losses(setting.seeds[0], one) for one in recipe.further()]
    training, fresh, gaps = ([row[kind] for row in rows] for kind in range(3))
    slopes = [_slope(sizes, row) for row in gaps]
    low, high = interval(slopes)
    first = float(np.mean([row[0] for row in gaps]))
    reference = [first * math.sqrt(sizes[0] / size) for size in sizes]
    exact = math.exp(exact_optimum(tasks, _LAYERS).log_error)
    panels = (
        Panel(
            "gap",
            f"Generalisation gap of {_LAYERS}-layer LFOM models fitted to m tasks",
            "m",
            "fresh loss - training loss",
            (
                series("gap", sizes, gaps, longer=[row[2] for row in further]),
                series("1/sqrt(m) from the first point", sizes, reference, reference=True),
            ),
            log_x=True,
            log_y=True,
            digits=3,
        ),
        Panel(
            "loss",
            "Losses on the training tasks and on fresh tasks",
            "m",
            "mean squared error",
            (
                series("training tasks", sizes, training, longer=[row[0] for row in further]),
                series("fresh tasks", sizes, fresh, longer=[row[1] for row in further]),
                series("the optimum, in expectation", sizes, [exact] * len(sizes), reference=True),
            ),
            log_x=True,
            log_y=True,
            digits=3,
        ),
    )
    return Results(panels, {_SLOPE: float(np.mean(slopes)), _LOW: low, _HIGH: high})


def _fitted(tasks: GaussianTasks, fixed: TaskBatch, recipe: Recipe, seed: int) -> Memformer:
    model = memformer(seed, tasks.d, _LAYERS, rule="lfom")
    fit_fixed(model, fixed, recipe, seed)
    return model


def _loss(solver: Solver, fixed: TaskBatch) -> float:
    with torch.no_grad():
        weights = solver(*quadratics_of(fixed.z, fixed.context))[0]
    return float(query_errors(weights, fixed.z, fixed.target).double().mean())


def _slope(sizes: Sequence[int], gaps: Sequence[float]) -> float:
    """Of the logarithms by least squares; NaN where a gap is not positive."""
    if min(gaps) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(gaps), 1)[0])


def judge(results: Results) -> Sequence[Check]:
    """An upper bound of a rate with a free constant can be contradicted, not shown: it stays open else."""
    slope, low, high = (results.numbers[name] for name in (_SLOPE, _LOW, _HIGH))
    text = f"slope of ln gap against ln m: {slope:.2f} [{low:.2f}, {high:.2f}]"
    return [
        *_bound_checks(results),
        Check(f"{text}: wholly below {_BOUND}, faster than the bound asks", high < _BOUND, essential=False),
        Check(
            f"{text}: holds {_FAST}, the rate of a smooth fit about its optimum", low <= _FAST <= high, essential=False
        ),
    ]


def _bound_checks(results: Results) -> list[Check]:
    """The theorem's own gap, fresh less training loss: its fall from the fewest tasks against that of 1/sqrt(m)."""
    fresh, training = (results["loss"][name] for name in ("fresh tasks", "training tasks"))
    few, checks = fresh.x[0], []
    _, _, largest = fresh.difference(training, few)
    for m in fresh.x[1:]:
        _, low, _ = fresh.difference(training, m)
        allowed = largest * math.sqrt(few / m)
        name = f"m = {m:g}: fresh less training loss is not wholly above what 1/sqrt(m) allows from m = {few:g}"
        sign, holds = (">", False) if low > allowed else ("≤", None)
        checks.append(Check(f"{name}: {low:.3g} {sign} {allowed:.3g}", holds))
    return checks


def find(results: Results) -> str:
    """The slope with its interval, and what the plain gaps say of the bound."""
    gap = results["gap"]["gap"]
    slope, low, high = (results.numbers[name] for name in (_SLOPE, _LOW, _HIGH))
    said = "Contradicted" if any(check.passed is False for check in _bound_checks(results)) else "Not contradicted"
    law = f"like m^{slope:.2f} (95% interval {low:.2f} to {high:.2f})"
    return (
        f"{said}: from m = {gap.x[0]:g} to {gap.x[-1]:g} the gap less the optimum's falls from "
        f"{gap.mean(gap.x[0]):.2g} to {gap.mean(gap.x[-1]):.2g}, "
        f"{'by no power, since a gap is not positive' if math.isnan(slope) else law}; the bound: m^-0.5."
    )


EXPERIMENT = Experiment(
    number=12,
    name="learnability",
    title="Generalisation gap against the number of training tasks",
    claim="The loss of a learned first-order method on fresh tasks exceeds its training loss by at most order "
    "1/sqrt(m) for m training tasks.",
    source="Dutta & Sra, arXiv 2410.07263, Theorem 5.1",
    protocol="m tasks with one query each, fixed, all of them in every step; the loss on them and on fresh tasks. The "
    "rules on the bound read the difference of these two, as the theorem does: an upper bound with a free constant "
    "cannot be reproduced, only contradicted, by a difference that is wholly above what 1/sqrt(m) allows from the "
    "fewest tasks on. Most of that difference is the chance of the m tasks drawn, which falls like 1/sqrt(m) for any "
    "fixed method. So the known optimum's own difference between the same fresh and training tasks, 0 in expectation, "
    "is taken off in the first panel: the rest is what fitting adds, and its slope, with an interval over seeds, "
    "qualifies.",
    asks="the theorem's own constant, and networks with Bm free, whose losses are heavy-tailed",
    minutes=2,
    run=run,
    judge=judge,
    find=find,
)
