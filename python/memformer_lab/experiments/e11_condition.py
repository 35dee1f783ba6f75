"""Experiment 11: condition numbers from 1 to 1000."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import half_widths, judged, solver_of
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, below
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.judging import Solver, preconditioned_steps, solver_errors, steps_of
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

CONDITIONS = (1.0, 10.0, 100.0, 1000.0)
_LAYERS = 4
_INFORMED = f"LFOM, {_LAYERS} layers, starts at the inverse mean H"
_PLAIN = f"LFOM, {_LAYERS} layers, starts at -I/2"
OWN = "CGD with the network's preconditioner"
_LIMIT = "a growth of 1"
_SLACK = 0.05
_ESTIMATION_TASKS = 1000
_CLASSICAL = {
    "gradient descent": "gradient_descent",
    "CGD": "conjugate_gradient",
    "iterative Newton": "iterative_newton",
}


def conditioned_tasks(condition: float, d: int = 5, n: int = 20, rotation_seed: int | None = None) -> GaussianTasks:
    """Tasks whose covariance has eigenvalues spaced evenly in the logarithm from 1 down to 1 / condition."""
    scales = tuple(condition ** (-0.5 * index / (d - 1)) for index in range(d))
    return GaussianTasks(d, n, scales, rotation_seed, "inverse")


def run(setting: Setting) -> Results:
    """Trains one model a condition number, start and seed; classical methods have each task's optimal parameters."""
    count = setting.pick(tiny=300, quick=20_000, full=500_000)
    recipe = Recipe(setting.pick(tiny=3, quick=800, full=20_000), batch=setting.pick(tiny=8, quick=128, full=256))
    starts, size = (_PLAIN, _INFORMED), len(setting.seeds)
    found: dict[str, list[list[Estimate]]] = {}
    for condition in CONDITIONS:
        # Unrotated, since a rotation changes no method but Adam, which would need far more steps.
        tasks = conditioned_tasks(condition)
        models = [_trained(seed, tasks, recipe, start) for start in starts for seed in setting.seeds]
        optimum = exact_optimum(tasks, _LAYERS).method(torch.float32)
        own = -models[-1].q.detach()[0, 0]
        solvers = [*map(solver_of, models), optimum.solver(layers=False)]
        solvers += [_last(steps_of(name, _LAYERS)) for name in _CLASSICAL.values()]
        solvers.append(_last(preconditioned_steps("conjugate_gradient", own, _LAYERS)))
        estimates = estimate(solver_errors(tasks, solvers), count, setting.seed)
        parts = [estimates[:size], estimates[size : 2 * size], *([one] for one in estimates[2 * size :])]
        for label, part in zip((*starts, "optimum", *_CLASSICAL, OWN), parts, strict=True):
            found.setdefault(label, []).append(part)
    by_seed = {label: [list(row) for row in zip(*columns, strict=True)] for label, columns in found.items()}
    best = by_seed["optimum"][0]
    curves = [judged(start, CONDITIONS, by_seed[start], best) for start in starts]
    for label in (*_CLASSICAL, OWN):
        (row,) = by_seed[label]
        values = [one.log_mean for one in row]
        curves.append(series(f"{label}, {_LAYERS} steps", CONDITIONS, values, sampling=half_widths([row])))
    grown = []
    for one in curves:
        rows = [[value - row[0] for value in row] for row in one.values]
        best_grown = [value - one.optimum[0] for value in one.optimum]
        # Seeds of a network see the same whitened tasks at all conditions: tasks add nothing to their difference.
        sampling = () if one.optimum else one.sampling
        grown.append(series(one.label, CONDITIONS, rows, sampling=sampling, optimum=best_grown))
    grown.append(series(_LIMIT, CONDITIONS, [1.0] * len(CONDITIONS), reference=True))
    title = f"Condition number of the covariance, d = 5, n = 20, {_LAYERS} layers or steps, fresh tasks"
    panels = (
        Panel("condition", title, "condition number", "ln mean squared error", tuple(curves), log_x=True, digits=3),
        Panel(
            "growth",
            "How much the error has grown since condition 1",
            "condition number",
            "difference of ln mean squared error",
            tuple(grown),
            log_x=True,
            digits=3,
        ),
    )
    return Results(panels, {"ln of the response's variance": math.log(5)})


def judge(results: Results) -> Sequence[Check]:
    """The trained preconditioner takes up the covariance; that methods without one degrade is known beforehand."""
    panel, growth = results["condition"], results["growth"]
    worse = CONDITIONS[1:]
    name = "LFOM's error at condition {} is that at condition 1, from a start that knows nothing of the covariance"
    checks = [
        below(name.format(f"{x:g}"), growth[_PLAIN], 0.0, x, _SLACK, part="LFOM's error does not grow") for x in worse
    ]
    for label in ("gradient descent", "CGD"):
        name = f"{label} has lost more than 1 at condition {{}}"
        curve = growth[f"{label}, {_LAYERS} steps"]
        checks += all_below(name, growth[_LIMIT], curve, worse, essential=False)
    name = "the informed start: LFOM's error at condition {:g} is that at condition 1"
    checks += [below(name.format(x), growth[_INFORMED], 0.0, x, _SLACK, essential=False) for x in worse]
    name = "LFOM is below CGD at condition {}"
    cgd = panel[f"CGD, {_LAYERS} steps"]
    checks += all_below(name, panel[_PLAIN], cgd, worse[1:], part="it is below CGD from condition 100")
    checks += all_below(name, panel[_PLAIN], cgd, worse[:1], essential=False)
    name = "LFOM is below CGD with the network's preconditioner at condition {}"
    return checks + all_below(name, panel[_PLAIN], panel[f"{OWN}, {_LAYERS} steps"], worse, essential=False)


def find(results: Results) -> str:
    """Growth from condition 1 to 1000, and CGD with the network's preconditioner."""
    growth, panel, last = results["growth"], results["condition"], CONDITIONS[-1]
    grown = round(growth[_PLAIN].mean(last), 2) + 0.0  # no minus before a zero
    cgd, own = (f"{label}, {_LAYERS} steps" for label in ("CGD", OWN))
    return (
        f"From condition 1 to {last:g} LFOM's ln error, from the plain start, grows by {grown:.2f} and CGD's by "
        f"{growth[cgd].mean(last):.2f}; at {last:g} they reach {panel[_PLAIN].mean(last):.2f} and "
        f"{panel[cgd].mean(last):.2f}, and CGD with the preconditioner of a network from the informed start "
        f"{panel[own].mean(last):.2f}."
    )


def _trained(seed: int, tasks: GaussianTasks, recipe: Recipe, start: str) -> Memformer:
    model = memformer(seed, tasks.d, _LAYERS, rule="lfom")
    if start == _INFORMED:
        _precondition(model, tasks, seed)
    fit_on_tasks(model, tasks, recipe, seed)
    return model


def _last(solver: Solver) -> Solver:
    return lambda h, b: solver(h, b)[-1:]


def _precondition(model: Memformer, tasks: GaussianTasks, seed: int) -> None:
    """Start every A_l at -1/2 times the inverse of the mean H of some training tasks."""
    h = tasks.quadratics(_ESTIMATION_TASKS, generator_for("training", seed, 1)).h
    with torch.no_grad():
        model.q.copy_(-0.5 * torch.linalg.inv(h.double().mean(0)))


EXPERIMENT = Experiment(
    number=11,
    name="condition",
    title="Condition number 1 to 1000",
    claim="A Memformer trained on one covariance learns to precondition for it: its error does not grow with the "
    "condition number, where GD and CGD degrade.",
    source="follows from Ahn et al., arXiv 2306.00297; compared in Fu et al., arXiv 2310.17086",
    protocol="x ~ N(0, Sigma), w* ~ N(0, Sigma^-1), eigenvalues of Sigma from 1 to 1/kappa. One LFOM model a condition "
    "number, which has therefore seen the covariance in training, as classical methods have not. It starts at the "
    "inverse of the mean H of 1000 training tasks, or plainly at -I/2, from where Adam needs very many steps to "
    "entries of the order of kappa. The network whose first A preconditions CGD is the last seed's from the informed "
    "start. GD and Newton's iteration use the extreme eigenvalues of each task. Sigma is "
    "diagonal: a rotation changes no method but Adam, which then needs more steps. That GD and CGD degrade is known "
    "beforehand and decides nothing.",
    asks="spectra with a few large eigenvalues in place of evenly spaced ones, and estimated preconditioners for CGD",
    minutes=1,
    run=run,
    judge=judge,
    find=find,
)
