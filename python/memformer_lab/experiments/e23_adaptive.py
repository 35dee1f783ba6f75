"""Experiment 23: do Memformers implement conjugate gradients? Coefficients of the task, and fixed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from memformer_lab.experiments.common import (
    CGD,
    DEPTHS,
    ISOTROPIC,
    NONISOTROPIC,
    gaussian_tasks,
    half_widths,
    relative_difference,
    worst,
)
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_least, at_most, close
from memformer_lab.solvers.adaptive import adaptive_predict, adaptive_solver
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import quadratics_of, solver_errors, steps_of
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _QUERIES = 5, 20, 4
_STEPS = tuple(range(1, _D + 1))
_FOLLOWS, _FIXED = "with coefficients that follow the task", "with fixed coefficients"
_CGD, _BEST = "CGD", "best fixed coefficients, A = Sigma^-1"
_SUMS = "CGD of a sum of responses less the sum of its answers: least relative difference"
_PLAIN, _WHITE = "coefficients of the task, A = I", "coefficients of the task, A = Sigma^-1"


def run(setting: Setting) -> Results:
    """The construction on tokens, the nearest fixed coefficients, and the errors of both on the same fresh tasks."""
    batch = setting.pick(tiny=20, quick=500, full=5000)
    count = setting.pick(tiny=500, quick=100_000, full=1_000_000)
    kinds = (ISOTROPIC, NONISOTROPIC)
    tasks = {kind: replace(gaussian_tasks(kind, setting.seed), dtype=torch.float64) for kind in kinds}
    differences = {kind: [_differences(tasks[kind], batch, seed) for seed in setting.seeds] for kind in kinds}
    panels = [
        Panel(
            name,
            title,
            "layers and steps",
            "relative difference",
            tuple(series(f"{kind} tasks", _STEPS, [row[place] for row in rows]) for kind, rows in differences.items()),
            log_y=True,
        )
        for place, (name, title) in enumerate(
            {
                "construction": "Predictions of the Memformer with coefficients of the task: difference from CGD",
                "fixed": "The nearest fixed coefficients of any first-order method with A = I: difference from CGD",
            }.items()
        )
    ]
    for kind in kinds:
        white = torch.linalg.inv(tasks[kind].covariance)
        width = len(DEPTHS)
        solvers = {
            _CGD: steps_of("conjugate_gradient", width),
            _PLAIN: adaptive_solver(torch.eye(_D, dtype=white.dtype, device=white.device), width),
            _WHITE: adaptive_solver(white, width),
        }
        found = estimate(solver_errors(tasks[kind], list(solvers.values())), count, setting.seed)
        curves = []
        for index, label in enumerate(solvers):
            rows = found[index * width : (index + 1) * width]
            curves.append(series(label, DEPTHS, [one.log_mean for one in rows], sampling=half_widths([rows])))
        curves.append(series(_BEST, DEPTHS, [exact_optimum(tasks[kind], depth).log_error for depth in DEPTHS]))
        curves.append(series(f"{_CGD}, reference", DEPTHS, CGD[kind], reference=True))
        title = f"Errors on {kind} tasks, d = {_D}, n = {_N}; fixed coefficients at their exact optimum"
        panels.append(Panel(kind, title, "depth", "ln mean squared error", tuple(curves), digits=3))
    numbers = {_SUMS: min(_apart_from_linear(tasks[kind], batch, setting.seed) for kind in kinds)}
    return Results(tuple(panels), numbers)


def judge(results: Results) -> Sequence[Check]:
    """Both are held to 1e-10: with coefficients of the task, and with the best that are fixed."""
    checks = []
    for name, part in (("construction", _FOLLOWS), ("fixed", _FIXED)):
        for curve in results[name].series:
            largest = worst(value for x in curve.x for value in curve.column(x))
            checks.append(at_most(f"{curve.label}: the worst difference from CGD", largest, 1e-10, part=part))
    checks.append(at_least(f"no fixed coefficients, {_SUMS}", results.numbers[_SUMS], 0.001, essential=False))
    for kind in (ISOTROPIC, NONISOTROPIC):
        panel = results[kind]
        for depth in DEPTHS:
            name = f"{kind}, depth {depth}: the errors are those of CGD"
            pair = (panel[_PLAIN].mean(depth), panel[_CGD].mean(depth))
            checks.append(close(name, *pair, 1e-6, essential=False))
    checks += all_below(
        f"{NONISOTROPIC}: with A = Sigma^-1 coefficients of the task are below the best fixed ones at depth {{}}",
        results[NONISOTROPIC][_WHITE],
        results[NONISOTROPIC][_BEST],
        DEPTHS,
        essential=False,
    )
    return checks


def find(results: Results) -> str:
    """How near each comes to CGD, and the errors at the last depth."""
    far, near = (
        [curve.mean(x) for curve in results[name].series for x in curve.x] for name in ("fixed", "construction")
    )
    panel, last = results[NONISOTROPIC], DEPTHS[-1]
    return (
        f"Coefficients of the task give CGD to {max(near):.0e}; the nearest fixed ones differ from it by "
        f"{100 * min(far):.0f}% to {100 * max(far):.0f}%. At depth {last} on non-isotropic tasks CGD has "
        f"{panel[_CGD].mean(last):.2f}, the best fixed coefficients {panel[_BEST].mean(last):.2f}, and coefficients of "
        f"the task with the same preconditioner {panel[_WHITE].mean(last):.2f}"
    )


def _differences(tasks: GaussianTasks, batch: int, seed: int) -> tuple[list[float], list[float]]:
    """By steps: the construction's relative difference from CGD's predictions, and that of the nearest fixed method.

    With A = I every method with fixed coefficients predicts x^T p(H) b, p a polynomial of one degree less than it has
    layers, so the nearest to CGD is a linear least-squares problem in p.
    """
    z = tasks.tokens(batch, generator_for("evaluation", seed), queries=_QUERIES).z
    h, b = quadratics_of(z, _N)
    queries = z[:, _N:, :-1]
    expected = (queries @ conjugate_gradient(h, b, _D).unsqueeze(-1)).squeeze(-1)
    q = -torch.eye(_D, dtype=z.dtype, device=z.device).expand(_D, 1, -1, -1)
    found = adaptive_predict(z, q, context=_N).found
    powers, power = [], b
    for _ in _STEPS:
        powers.append((queries @ power.unsqueeze(-1)).flatten())
        power = (h @ power.unsqueeze(-1)).squeeze(-1)
    near, far = [], []
    for step in _STEPS:
        wanted = expected[step - 1]
        near.append(relative_difference(found[step - 1], wanted))
        basis = torch.stack(powers[:step], dim=1)
        solution = torch.linalg.lstsq(basis, wanted.flatten().unsqueeze(-1), driver="gelsd").solution
        far.append(relative_difference((basis @ solution).view_as(wanted), wanted))
    return near, far


def _apart_from_linear(tasks: GaussianTasks, batch: int, seed: int) -> float:
    """How far CGD's weights for b + c are from the sum of those for b and for c, the least of steps 1 to d - 1."""
    drawn = tasks.quadratics(batch, generator_for("evaluation", seed, 1))
    other = (drawn.h @ drawn.weights.roll(1, 0).unsqueeze(-1)).squeeze(-1)
    one, two, both = (conjugate_gradient(drawn.h, b, _D - 1) for b in (drawn.b, other, drawn.b + other))
    return min(relative_difference(one[step] + two[step], both[step]) for step in range(_D - 1))


EXPERIMENT = Experiment(
    number=23,
    name="adaptive",
    title="Coefficients of the task",
    claim="A memory-augmented Transformer can implement conjugate gradient descent in its forward pass.",
    source="Dutta & Sra, arXiv 2410.07263, proposition 1",
    protocol=f"Decided by construction, d = {_D}, n = {_N}, float64. The layers of the cgd rule run on tokens with "
    "A = I, beta by Fletcher and Reeves and gamma by exact line search, as in the publication's statement of CGD, for "
    "each task by itself; both are ratios of means over the examples of products of response slots. They are "
    "computed from the network's tokens, by code outside its layers. Its predictions "
    f"are compared with those of CGD after 1 to {_D} layers. With coefficients that are the same for all tasks, as "
    "trained Memformers have them, every method with A = I predicts x^T p(H) b with a polynomial p of one degree less "
    "than its layers: the nearest to CGD is fitted by least squares to the very tasks that it is compared on. Both are "
    "held to 1e-10, so each part of the claim holds or falls. Other preconditioners and features that move do not "
    "help: a network of response-only or block structure with fixed coefficients is linear in the responses, and CGD "
    "is not before its last step, which is measured. Errors are shown with fixed coefficients at their exact optimum "
    "for A = Sigma^-1, which learned preconditioners come to, and for coefficients of the task with it too.",
    asks="what training finds where the coefficients follow the task and the preconditioner is free",
    minutes=1,
    run=run,
    judge=judge,
    find=find,
)
