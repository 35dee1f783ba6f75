"""Networks of every depth beside iterations of first and second order: errors, laws of convergence, similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from memformer_lab.experiments.common import half_widths
from memformer_lab.experiments.prompts import algorithm_predictions, best_match, draw_prompts, memformer_predictions
from memformer_lab.experiments.rows import rows_and_longer
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Panel
from memformer_lab.runs.fitting import Recipe, fit_on_lengths, fit_on_tasks, memformer
from memformer_lab.solvers.convergence import fit_convergence
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.judging import memformer_estimates, solver_errors, steps_of
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

GDPP, FIRST = "GD++", "LFOM, Bm = 0 (first order)"
NAMES = {"gradient_descent": "GD", "conjugate_gradient": "CGD", "iterative_newton": "Newton"}
"""How algorithms are called here."""

_MORE_NAMES = {"l_bfgs": "L-BFGS", "online": "online GD"}

_KINDS = {GDPP: ("linear", "block"), FIRST: ("lfom", "response-only")}
_D, _N = 10, 40
_LENGTHS = (15, 20, 25, 30, 35, 40)
_STEPS = 10


def order_recipe(setting: Setting, structure: str) -> Recipe:
    if structure == "block":
        steps, warmup = setting.pick(tiny=3, quick=1_500, full=20_000), setting.pick(tiny=1, quick=50, full=200)
        return Recipe(steps, setting.pick(tiny=8, quick=128, full=256), 0.03, 0.01, warmup)
    return Recipe(setting.pick(tiny=3, quick=800, full=6_000), setting.pick(tiny=8, quick=128, full=256))


def mean_and_median(one: Estimate) -> tuple[float, float]:
    return one.log_mean, one.log_median


def depth_panels(setting: Setting) -> tuple[Panel, Panel, Panel]:
    """Errors of networks trained for their own depth, and of algorithms; how well either law of convergence fits."""
    tasks, count = GaussianTasks.isotropic(_D, _N), setting.pick(tiny=200, quick=5_000, full=100_000)
    depths = setting.pick(tiny=(1, 2, 3), quick=(1, 2, 3), full=(1, 2, 3, 4, 5))
    means, medians, curves = [], [], {}
    for label, (rule, structure) in _KINDS.items():

        def judged(recipe: Recipe, seed: int, rule: str = rule, structure: str = structure) -> list[float]:
            models = [memformer(seed, _D, depth, rule=rule, structure=structure) for depth in depths]
            for model in models:
                fit_on_tasks(model, tasks, recipe, seed)
            return [
                value
                for (one,) in memformer_estimates(models, tasks, count, setting.seed)
                for value in mean_and_median(one)
            ]

        rows, longer = rows_and_longer(setting, order_recipe(setting, structure), judged)
        best = [] if structure == "block" else [exact_optimum(tasks, depth).log_error for depth in depths]
        more = [] if best else longer
        mean = [row[::2] for row in rows]
        means.append(series(label, depths, mean, optimum=best, longer=[row[::2] for row in more]))
        curves[label] = [row[1::2] for row in rows]
        medians.append(series(label, depths, curves[label], longer=[row[1::2] for row in more]))
    exact = GaussianTasks(_D, _N, tasks.scales, dtype=torch.float64)
    steps = range(1, _STEPS + 1)
    for name, label in NAMES.items():
        estimates = estimate(solver_errors(exact, [steps_of(name, _STEPS)]), count, setting.seed)
        found = list(map(mean_and_median, estimates))
        means.append(series(label, steps, [one for one, _ in found], sampling=half_widths([estimates])))
        medians.append(series(label, steps, [one for _, one in found]))
        curves[label] = [[one for _, one in found][: len(depths)]]
    what = f"isotropic, d = {_D}, n = {_N}; networks trained for each depth"
    axes = ("layers or iterations", "ln squared error")
    return (
        Panel("depth", f"Mean error by depth, {what}", *axes, tuple(means)),
        Panel("depth-median", f"Median error by depth, {what}", *axes, tuple(medians)),
        _fit_panel(depths, curves),
    )


def _fit_panel(depths: Sequence[int], curves: Mapping[str, list[list[float]]]) -> Panel:
    fits = {label: [fit_convergence(depths, row) for row in rows] for label, rows in curves.items()}
    width = max(map(len, fits.values()))
    # Algorithms have one curve, which is that of every seed.
    rows = [[one[min(seed, len(one) - 1)] for one in fits.values()] for seed in range(width)]
    return Panel(
        "fits",
        f"Ln residual sum of squares of two laws with two parameters, median errors at depths 1 to {depths[-1]}",
        "method",
        "ln residual sum of squares",
        (
            series("a - b k", range(len(fits)), [[_log(one.linear) for one in row] for row in rows]),
            series("a - b 2^k", range(len(fits)), [[_log(one.exponential) for one in row] for row in rows]),
        ),
        categories=tuple(fits),
    )


def similarity_panels(setting: Setting) -> tuple[Panel, Panel]:
    """Fu et al.'s map: for each depth the iteration of each algorithm whose errors are most similar."""
    tasks = GaussianTasks.isotropic(_D, _N)
    lengths = [GaussianTasks.isotropic(_D, n) for n in range(_LENGTHS[0], _N + 1)]
    depths = setting.pick(tiny=(1, 2), quick=(1, 2, 3), full=(1, 2, 3, 4))
    iterations = {
        "gradient_descent": tuple(2**k for k in range(setting.pick(tiny=4, quick=8, full=10))),
        "conjugate_gradient": tuple(range(1, _D)),
        "iterative_newton": tuple(range(1, 15)),
        "l_bfgs": tuple(range(1, _D)),
    }
    likeness: dict[str, list[list[float]]] = {}
    matches: dict[str, list[list[float]]] = {}
    for seed in setting.seeds:
        prompts = draw_prompts(tasks, setting.pick(tiny=20, quick=300, full=2_000), generator_for("evaluation", seed))
        iterates = algorithm_predictions(*prompts, _LENGTHS, iterations)
        del iterates["ols"]
        truth = torch.stack([prompts[1][:, length] for length in _LENGTHS])
        for label, (rule, structure) in _KINDS.items():
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in iterates}
            for depth in depths:
                model = memformer(seed, _D, depth, rule=rule, structure=structure)
                fit_on_lengths(model, lengths, order_recipe(setting, structure), seed)
                predictions = memformer_predictions(model, *prompts, _LENGTHS)
                for name, candidates in iterates.items():
                    place, value = best_match(predictions, candidates, truth)
                    found[name].append((float(iterations.get(name, (1,))[place]), value))
            for name, pairs in found.items():
                key = f"{label}, {(NAMES | _MORE_NAMES)[name]}"
                likeness.setdefault(key, []).append([value for _, value in pairs])
                if name in iterations:
                    matches.setdefault(key, []).append([step for step, _ in pairs])
    what = f"lengths {_LENGTHS[0]} to {_N}, networks trained at all of them, d = {_D}"
    return (
        Panel(
            "similarity",
            f"Similarity of errors to an algorithm's most similar iteration, {what}",
            "layers",
            "cosine of errors",
            tuple(series(label, depths, rows) for label, rows in likeness.items()),
        ),
        Panel(
            "matches",
            f"That iteration, of GD up to {iterations['gradient_descent'][-1]}, CGD 9, Newton 14; {what}",
            "layers",
            "iteration",
            tuple(series(label, depths, rows) for label, rows in matches.items()),
            log_y=True,
            digits=3,
        ),
    )


def _log(value: float) -> float:
    return math.log(max(value, 1e-12)) if value == value else math.nan
