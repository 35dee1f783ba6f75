"""Experiment 28: which polynomial of A H a trained response-only network applies along the eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_least, below
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import Solver, preconditioned_steps, solver_errors
from memformer_lab.solvers.optimum import Optimum, exact_optimum
from memformer_lab.solvers.residual import PolynomialMethod, Recurrence, chebyshev_polynomial, whitened_likeness
from memformer_lab.spectrum import Explanation, explain
from memformer_lab.spectrum.explanation import CHEBYSHEV, DESCENT, HEAVY_BALL
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_OURS, _ONE = "LFOM", "LFOM, one polynomial and one A for all layers"
_BEST = "best polynomial, closed form"
_INTERVAL, _TUNED = "Chebyshev on the interval of the spectrum", "Chebyshev, best constants"
_BALL, _DESCENT = "heavy ball, best constants", "gradient descent, best step"
_CGD = "CGD with the network's A, a polynomial a task"
_RIVALS = {_TUNED: CHEBYSHEV, _BALL: HEAVY_BALL, _DESCENT: DESCENT}
_ERRORS = (_OURS, _ONE, _BEST, _INTERVAL, *_RIVALS, _CGD)
_EXCESS, _SHARING = "LFOM less the best polynomial", "one A for all layers less each its own"
_INSIDE = "zeros that are real and within the spectrum"
_LAYERS_APART, _SIGMA_APART = "the layer least like A", "A and the inverse covariance"
_MOMENTUM, _MISFIT = "least momentum of a layer", "largest share of a move that is no such step"
_PARTS = (
    "the best polynomial of its degree",
    "zeros within the spectrum",
    "better than Chebyshev's on its interval and than gradient descent",
    "one preconditioner, the inverse covariance",
    "steps with positive momentum",
)
_MARGIN, _AHEAD, _APART, _LEFT = 0.05, 0.05, 0.05, 0.1
_REAL = 1e-3
"""Imaginary parts up to this share of the interval are rounding."""
_GRID = np.linspace(0.0, 3.0, 13)
_TAIL = 0.01
"""Share of the eigenvalues on either side of what counts as the interval of the spectrum."""


@dataclass(frozen=True)
class _Found:
    """One network explained, with what goes beyond `Explanation`.

    Attributes:
        explained: its explanation.
        low: the least eigenvalue of A H over tasks.
        high: the largest.
        interval: Chebyshev's iteration on the interval of the spectrum.
        best: the best polynomial for A = Sigma^-1.
        apart: 1 less the cosine between A and Sigma^-1, where features are whitened.
    """

    explained: Explanation
    low: float
    high: float
    interval: PolynomialMethod
    best: Optimum
    apart: float

    def solvers(self) -> list[Solver]:
        """Of the labels of `_ERRORS`, in their order."""
        one, a = self.explained, self.explained.preconditioner
        polynomials = (self.interval, *(one.rivals[name] for name in _RIVALS.values()))
        methods = (one.method, one.learned.method(a), self.best.method(), *(each.method(a) for each in polynomials))
        steps = preconditioned_steps("conjugate_gradient", a, one.learned.layers)
        return [*(method.solver(layers=False) for method in methods), lambda h, b: steps(h, b)[-1:]]

    def inside(self) -> float:
        """The share of as many zeros as layers that are real and within the spectrum."""
        zeros = self.zeros()
        real = np.abs(zeros.imag) <= _REAL * self.high
        return (
            float((real & (zeros.real >= self.low) & (zeros.real <= self.high)).sum()) / self.explained.learned.layers
        )

    def zeros(self) -> np.ndarray:
        """Zeros of the polynomial of the network."""
        return self.explained.learned.zeros(self.explained.top)


def run(setting: Setting) -> Results:
    """Trains a network of each depth, explains it, and judges it and its rivals on the same fresh tasks."""
    depths = setting.pick(tiny=(1, 2), quick=(1, 2, 3, 4), full=(1, 2, 3, 4, 6))
    steps, batch = setting.pick(tiny=3, quick=800, full=20_000), setting.pick(tiny=8, quick=256, full=1024)
    looked_at = setting.pick(tiny=100, quick=2_000, full=20_000)
    judged = setting.pick(tiny=300, quick=20_000, full=200_000)
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    exact = replace(tasks, dtype=torch.float64)
    found: list[list[_Found]] = []
    errors: dict[str, list[list[float]]] = {label: [] for label in _ERRORS}
    for seed in setting.seeds:
        row = []
        for depth in depths:
            model = memformer(seed, tasks.d, depth, rule="lfom")
            fit_on_tasks(model, tasks, Recipe(steps, batch, 0.2 / depth, None), seed)
            row.append(_found(explain(model, tasks, count=looked_at, seed=seed), exact, depth, looked_at, seed))
        found.append(row)
        solvers = [solver for one in row for solver in one.solvers()]
        means = [one.log_mean for one in estimate(solver_errors(exact, solvers), judged, seed)]
        for place, label in enumerate(_ERRORS):
            errors[label].append(means[place :: len(_ERRORS)])
    return Results(_panels(depths, found, errors))


def _found(explained: Explanation, tasks: GaussianTasks, depth: int, count: int, seed: int) -> _Found:
    a = explained.preconditioner
    root = torch.linalg.cholesky(a)
    h = tasks.quadratics(count, generator_for("training", seed, 5)).h.contiguous()
    values = torch.linalg.eigvalsh(root.T @ h @ root).flatten().numpy()
    interval = chebyshev_polynomial(depth, *(float(np.quantile(values, share)) for share in (_TAIL, 1 - _TAIL)))
    apart = 1 - whitened_likeness(a, tasks.factor)
    return _Found(explained, float(values.min()), float(values.max()), interval, exact_optimum(tasks, depth), apart)


def _panels(
    depths: Sequence[int], found: Sequence[Sequence[_Found]], errors: dict[str, list[list[float]]]
) -> tuple[Panel, ...]:
    def curve(label: str, value: Callable[[_Found], float], x: Sequence[int] = depths) -> Series:
        return series(label, x, [[value(one) for one in row[-len(x) :]] for row in found])

    def less(label: str, one: str, other: str) -> Series:
        rows = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(errors[one], errors[other], strict=True)]
        return series(label, depths, rows)

    optimum = [float(np.mean(column)) for column in zip(*errors[_BEST], strict=True)]
    trained = (_OURS, _ONE)
    curves = [series(label, depths, errors[label], optimum=optimum if label in trained else ()) for label in _ERRORS]
    later = [depth for depth in depths if depth > 1]
    nodes = [exact.best.nodes for exact in found[0]]
    last, shown = depths[-1], min(range(len(depths)), key=lambda place: abs(depths[place] - 4))
    title = "LFOM with Bm = 0 on non-isotropic tasks, d = 5, n = 20, fresh tasks"
    return (
        Panel("errors", title, "layers", "ln mean squared error", tuple(curves), digits=3),
        Panel(
            "excess",
            "Differences on the same tasks",
            "layers",
            "difference of ln mean squared error",
            (less(_EXCESS, _OURS, _BEST), less(_SHARING, _ONE, _OURS)),
            digits=4,
        ),
        Panel(
            "zeros",
            "Where the network's polynomial has its zeros",
            "layers",
            "eigenvalue of A H, whose mean is 1",
            (
                curve("smallest zero", lambda one: _end(one.zeros(), np.min)),
                curve("largest zero", lambda one: _end(one.zeros(), np.max)),
                series("smallest zero, closed form", depths, [float(one.min()) for one in nodes], reference=True),
                series("largest zero, closed form", depths, [float(one.max()) for one in nodes], reference=True),
                curve("least eigenvalue", lambda one: one.low),
                curve("largest eigenvalue", lambda one: one.high),
            ),
        ),
        Panel("inside", "Share of the zeros", "layers", "share", (curve(_INSIDE, _Found.inside),)),
        Panel(
            "unlike",
            f"Preconditioners: 1 less the cosine between two, up to {last} layers",
            "layers",
            "1 - cosine",
            (
                curve(_LAYERS_APART, lambda one: 1 - float(one.explained.likeness.min())),
                curve(_SIGMA_APART, lambda one: one.apart),
            ),
            digits=4,
        ),
        Panel(
            "momentum",
            "The nearest step with momentum, w + step A g + momentum (w - w before), to each layer after the first",
            "layers",
            "momentum, and share",
            (
                curve(_MOMENTUM, lambda one: float(_recurrence(one).momenta[1:].min()), later),
                curve(_MISFIT, lambda one: float(_recurrence(one).misfits.max()), later),
            ),
            digits=3,
        ),
        Panel(
            "polynomial",
            f"What {depths[shown]} layers leave of w* along each eigenvalue",
            "eigenvalue of A H, whose mean is 1",
            "residual polynomial q",
            (
                series("LFOM", _GRID.tolist(), [_left(row[shown].explained.learned) for row in found]),
                series(_BEST, _GRID.tolist(), _product(nodes[shown].numpy()), reference=True),
                series(_INTERVAL, _GRID.tolist(), [_left(row[shown].interval) for row in found]),
                series(_DESCENT, _GRID.tolist(), [_left(row[shown].explained.rivals[DESCENT]) for row in found]),
            ),
            digits=3,
        ),
    )


def _recurrence(one: _Found) -> Recurrence:
    return one.explained.learned.recurrence(one.explained.top)


def _end(zeros: np.ndarray, which: Callable[[np.ndarray], float]) -> float:
    """The smallest or the largest real part; NaN where there is no zero."""
    return float(which(zeros.real)) if len(zeros) else math.nan


def _left(method: PolynomialMethod) -> list[float]:
    values: list[float] = method.residuals(_GRID)[-1].tolist()
    return values


def _product(zeros: np.ndarray) -> list[float]:
    """Without noise the best polynomial is the product of 1 - x / z over its zeros z."""
    values: list[float] = (1 - _GRID[:, None] / zeros).prod(1).tolist()
    return values


def judge(results: Results) -> Sequence[Check]:
    """By depth: the excess; all zeros; two rivals; what one A costs and how far it is from Sigma^-1; momenta."""
    errors, inside, momentum = (results[name] for name in ("errors", "inside", "momentum"))
    depths, later = errors[_OURS].x, momentum[_MOMENTUM].x
    best, zeros, ahead, shared, positive = _PARTS
    checks = []
    for depth in depths:
        checks.append(below(f"{_EXCESS}, {depth:g} layers", results["excess"][_EXCESS], _MARGIN, depth, part=best))
        least = min(inside[_INSIDE].column(depth), key=lambda share: (not math.isnan(share), share))
        checks.append(at_least(f"{depth:g} layers: least share of {_INSIDE}", least, 1.0, part=zeros))
    for rival in (_INTERVAL, _DESCENT):
        text = f"LFOM is below {rival} by {_AHEAD}, {{}} layers"
        checks += all_below(text, errors[_OURS], errors[rival], later, -_AHEAD, part=ahead)
    for depth in depths:
        checks.append(below(f"{_SHARING}, {depth:g} layers", results["excess"][_SHARING], _MARGIN, depth, part=shared))
        for name in (_LAYERS_APART, _SIGMA_APART):
            text = f"1 less the cosine, {name}, {depth:g} layers"
            checks.append(below(text, results["unlike"][name], _APART, depth, part=shared))
    for depth in later:
        text = f"less the {_MOMENTUM}, {depth:g} layers"
        checks.append(below(text, _negative(momentum[_MOMENTUM]), 0.0, depth, part=positive))
        checks.append(below(f"{_MISFIT}, {depth:g} layers", momentum[_MISFIT], _LEFT, depth, part=positive))
    text = f"LFOM is below {_TUNED} by {_AHEAD}, {{}} layers"
    checks += all_below(text, errors[_OURS], errors[_TUNED], later, -_AHEAD, essential=False)
    text = f"LFOM is below {_CGD}, {{}} layers"
    return [*checks, *all_below(text, errors[_OURS], errors[_CGD], depths, essential=False)]


def _negative(curve: Series) -> Series:
    return series(curve.label, curve.x, [[-value for value in row] for row in curve.values])


def find(results: Results) -> str:
    """The last depth: the errors, the ends of the zeros, how alike preconditioners are, momentum."""
    errors, zeros, unlike, momentum = (results[name] for name in ("errors", "zeros", "unlike", "momentum"))
    last = errors.places[-1]
    ours, best, interval, tuned, descent = (
        errors[name].mean(last) for name in (_OURS, _BEST, _INTERVAL, _TUNED, _DESCENT)
    )
    ends = [zeros[name].mean(last) for name in ("smallest zero", "largest zero")]
    known = [zeros[f"{name}, closed form"].mean(last) for name in ("smallest zero", "largest zero")]
    return (
        f"{last:g} layers reach {ours:.2f}, the best polynomial {best:.2f}, Chebyshev's on the interval {interval:.2f} "
        f"and at its best constants {tuned:.2f}, gradient descent {descent:.2f}; zeros from {ends[0]:.2f} to "
        f"{ends[1]:.2f}, in closed form from {known[0]:.2f} to {known[1]:.2f}; 1 less the cosine between A and the "
        f"layer least like it {unlike[_LAYERS_APART].mean(last):.2g}, and the inverse covariance "
        f"{unlike[_SIGMA_APART].mean(last):.2g}; the least momentum of a layer is "
        f"{momentum[_MOMENTUM].mean(last):.2f}, and {momentum[_MISFIT].mean(last):.0%} of a move is no such step"
    )


EXPERIMENT = Experiment(
    number=28,
    name="spectrum",
    title="The polynomial that a network applies",
    claim="A trained response-only LFOM network of L layers applies the best polynomial of degree L for the spectra of "
    "its tasks: its zeros lie within the spectrum, it is better than Chebyshev's on the interval of the spectrum and "
    "than gradient descent, its layers share one preconditioner, the inverse of the covariance, and they are steps "
    "with positive momentum.",
    source="ours, from Ahn et al., arXiv 2306.00297 (critical points are preconditioned gradient descent), and Dutta & "
    "Sra, arXiv 2410.07263 (memory runs first-order methods)",
    protocol="The publications show that layers can be such steps, and that some critical points are; what training "
    "finds is asked here, and the wording is ours. A is the one matrix that the layers come nearest to, with the "
    "eigenvalues of A H at mean 1; the polynomial is that of the network with multiples of A in its layers, whose "
    "error on the same tasks is shown. The best polynomial has closed form for A the inverse covariance. Rivals run "
    "with the network's A: Chebyshev's polynomial on the interval that leaves 1% of the eigenvalues on either side, "
    "and gradient descent with the step that is best on other tasks; the rules on what is better begin at two layers, "
    "since all are one step at one. Chebyshev's at its best two constants, which know the tasks too, decides nothing: "
    "of degree 2 it is any polynomial with two real zeros. Each seed is judged on its own fresh tasks. Within the "
    "spectrum: between the least and the largest eigenvalue of 20,000 tasks. Momentum is that of the three-term "
    "recurrence nearest to each layer's move, which must leave at most a tenth of its norm; a network may reach the "
    "same polynomial by other moves.",
    asks="other spectra and sizes, noise, networks with Bm free, and which of the ways to the same polynomial training "
    "prefers from other starts",
    minutes=5,
    run=run,
    judge=judge,
    find=find,
)
