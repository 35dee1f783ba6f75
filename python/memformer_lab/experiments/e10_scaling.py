"""Experiment 10: more features and longer contexts, at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import excess, half_widths, judged, network, solver_of
from memformer_lab.profiling.rates import best_milliseconds
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most, below
from memformer_lab.runs.fitting import Recipe, fit_memformer
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.first_order import Draw
from memformer_lab.solvers.judging import solver_errors, steps_of
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.krylov import KrylovTasks
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 4
_RATIO = 4
_SCALAR, _FREE, _PLAIN = "LFOM, A_l multiples of I", "LFOM, A_l free", "no memory, A_l free"
_MODELS: dict[str, dict[str, Any]] = {
    _SCALAR: {"rule": "lfom", "preconditioner": "scalar"},
    _FREE: {"rule": "lfom"},
    _PLAIN: {"rule": "linear"},
}
_EXACT = "optimum of LFOM in expectation, closed form"
_SLACK = 0.05
_KNOWN = 20
"""Examples of the publication: longer contexts are long."""

_WIDE, _LONG = "many features", "long contexts"
_FROM_GRAM, _GRAM = "LFOM from H and b", "Gram matrix of the tokens"


def run(setting: Setting) -> Results:
    """Trains at each d (with n = 4 d) and at each n (with d = 5); measures error, time and bytes a task."""
    sizes = setting.pick(tiny=(5, 16), quick=(5, 64, 256), full=(5, 16, 64, 256, 1024))
    free = setting.pick(tiny=(5,), quick=(5,), full=(5, 16, 64))
    lengths = setting.pick(tiny=(5, 10), quick=(5, 100, 10_000), full=(5, 10, 20, 100, 1000, 10_000, 100_000))
    features = _panel(
        "features",
        f"Error relative to the response's variance, n = {_RATIO} d, {_LAYERS} layers or steps, fresh tasks",
        "d",
        setting,
        {d: (d, _RATIO * d) for d in sizes},
        {_SCALAR: sizes, _FREE: free},
    )
    context = _panel(
        "context",
        f"Error by context length relative to the response's variance, d = 5, {_LAYERS} layers or steps, fresh tasks",
        "n",
        setting,
        {n: (5, n) for n in lengths},
        {_FREE: lengths, _PLAIN: lengths},
    )
    panels = []
    for panel, labels in ((features, (_SCALAR, _FREE)), (context, (_FREE, _PLAIN))):
        panels += [panel, _excess(panel, labels)]
    return Results((*panels, _times(sizes[:4], setting), _costs(lengths, setting), _bytes(sizes)))


def judge(results: Results) -> Sequence[Check]:
    """Trained models against their optimum and against CGD, by d and by n; and the time by n."""
    features, context, cost = results["features"], results["context"], results["cost"]
    wide, long = features[_SCALAR], context[_FREE]
    excess_wide, excess_long = results["features, excess"], results["context, excess"]
    name = "d = {}: LFOM's excess over the optimum"
    checks = [below(name.format(f"{d:g}"), excess_wide[_SCALAR], 0.0, d, _SLACK, part=_WIDE) for d in wide.x]
    largest = [d for d in wide.x if d >= 256] or wide.x[-1:]
    checks += all_below("d = {}: LFOM is below CGD", wide, features["CGD"], largest, part=_WIDE)
    for label, part in ((_PLAIN, _LONG), (_FREE, f"{_LONG}, with memory")):
        curve, left = context[label], excess_long[label]
        name = f"n = {{:g}}, {label}: excess over the optimum"
        checks += [below(name.format(n), left, 0.0, n, _SLACK, essential=n > _KNOWN, part=part) for n in left.x]
        rows = [[after - before for before, after in pairwise(row)] for row in curve.values]
        fall = series("change from the length before", curve.x[1:], rows)
        name = f"n = {{:g}}, {label}: change of ln error from the length before"
        checks += [below(name.format(n), fall, 0.0, n, essential=n > _KNOWN, part=part) for n in fall.x]
    times = cost[_FROM_GRAM]
    shortest, longest = times.x[0], times.x[-1]
    name = f"{_FROM_GRAM}: microseconds a task at n = {longest:g}, at most 1.5 times those at n = {shortest:g}"
    checks.append(at_most(name, times.mean(longest), 1.5 * times.mean(shortest), essential=False))
    small = [d for d in wide.x if d < 256]
    checks += all_below("d = {}: LFOM is below CGD", wide, features["CGD"], small, essential=False)
    checks += all_below("n = {}: LFOM is below CGD", long, context["CGD"], long.x, essential=False)
    free, name = excess_wide[_FREE], "d = {}: excess over the optimum of free A_l"
    checks += [below(name.format(f"{d:g}"), free, 0.0, d, _SLACK, essential=False) for d in free.x]
    return checks


def find(results: Results) -> str:
    """Where a fixed method passes CGD, and how far long contexts take it."""
    features, context = results["features"], results["context"]
    wide, cgd = features[_SCALAR], features["CGD"]
    ahead = [d for d in wide.x if all(wide.mean(x) < cgd.mean(x) for x in wide.x if x >= d)]
    passed = (
        f"from d = {ahead[0]:g} ({wide.mean(ahead[0]):.2f} against {cgd.mean(ahead[0]):.2f})" if ahead else "at no d"
    )
    n, times = context[_PLAIN].x[-1], results["cost"][_FROM_GRAM]
    grams = results["cost"][_GRAM]
    gram = grams.mean(grams.x[-1]) / grams.mean(grams.x[0])
    plain, lfom, best, rival = (context[label].mean(n) for label in (_PLAIN, _FREE, _EXACT, "CGD"))
    return (
        f"A fixed LFOM is below CGD {passed}; at d = 5 and n = {n:g} networks without memory reach {plain:.1f} of an "
        f"optimum of {best:.1f}, LFOM {lfom:.1f}, CGD {rival:.1f}; from H and b a task at n = {times.x[-1]:g} takes "
        f"{times.mean(times.x[-1]) / times.mean(times.x[0]):.2f} times as long as at n = {times.x[0]:g}, after "
        f"{gram:.0f} times as long for its Gram matrix."
    )


def _panel(
    name: str,
    title: str,
    x_label: str,
    setting: Setting,
    places: dict[int, tuple[int, int]],
    models: dict[str, Sequence[int]],
) -> Panel:
    """Errors in float64 at places of (d, n): of models, each at its own places, of CGD, and the optimum in expectation.

    What has A_l multiples of I, and CGD, run in the Krylov space.
    """
    count = setting.pick(tiny=200, quick=10_000, full=400_000)
    optima = {x: exact_optimum(GaussianTasks.isotropic(*sizes), _LAYERS) for x, sizes in places.items()}
    curves = []
    for label, kept in models.items():
        columns, best = [], []
        for x in kept:
            d, n = places[x]
            small, whole = KrylovTasks(d, n, _LAYERS), GaussianTasks.isotropic(d, n, dtype=torch.float64)
            tasks = small if label == _SCALAR else whole
            axes = len(tasks.factor)
            method = replace(optima[x], preconditioner=torch.eye(axes, dtype=torch.float64, device="cpu")).method()
            draw = _in_units_of(optima[x].error, tasks.compressed)
            trained = [_trained(seed, label, axes, n, draw, setting) for seed in setting.seeds]
            solvers = [*map(solver_of, trained), method.solver(layers=False)]
            judged_on = max(50, count * 25 // axes**2)
            *column, optimum = estimate(solver_errors(tasks, solvers), judged_on, setting.seed)
            columns.append([_relative(one, d) for one in column])
            best.append(_relative(optimum, d))
        curves.append(judged(label, kept, list(zip(*columns, strict=True)), best))
    cgd = [_relative(_cgd(KrylovTasks(d, n, _LAYERS), count, setting.seed), d) for d, n in places.values()]
    curves.append(series("CGD", list(places), [one.log_mean for one in cgd], sampling=half_widths([cgd])))
    exact = [optimum.log_error - math.log(places[x][0]) for x, optimum in optima.items()]
    curves.append(series(_EXACT, list(places), exact, reference=True))
    return Panel(name, title, x_label, "ln relative squared error", tuple(curves), log_x=True)


def _excess(panel: Panel, labels: Sequence[str]) -> Panel:
    return Panel(
        f"{panel.name}, excess",
        "Excess over the optimum on the same tasks",
        panel.x_label,
        "difference of ln squared error",
        tuple(excess(panel[label]) for label in labels),
        log_x=True,
        digits=3,
    )


def _cgd(tasks: KrylovTasks, count: int, seed: int) -> Estimate:
    return estimate(solver_errors(tasks, [steps_of("conjugate_gradient", _LAYERS)]), count, seed)[-1]


def _trained(seed: int, label: str, axes: int, n: int, draw: Draw, setting: Setting) -> Memformer:
    """A model in float64, whose loss is in units of the optimum's.

    Adam's divisor is absolute, and its second moments remember the gradients of the start for thousands of steps.
    Neither matters where every gradient is clipped to the same norm.
    """
    model = network(seed, axes, _LAYERS, dtype=torch.float64, **_MODELS[label])
    # The longer the context, the smaller the optimum, and the longer the way there.
    steps = setting.pick(tiny=2, quick=400, full=3000) * (4 if n > 4000 else 1)
    batch = max(16, min(setting.pick(tiny=8, quick=64, full=256), 65_536 // axes**2))
    fit_memformer(model, draw, Recipe(steps if axes < 64 else steps // 2, batch, 0.1 / max(1.0, axes / 5)), seed)
    return model


def _in_units_of(error: float, draw: Draw) -> Draw:
    """Tasks whose loss is divided by `error`."""

    def scaled(batch: int, generator: Generator) -> TaskBatch:
        tasks = draw(batch, generator)
        return replace(tasks, query_scale=tasks.query_scale / error)

    return scaled


def _relative(one: Estimate, d: int) -> Estimate:
    """An estimate relative to the response's variance d."""
    shift = math.log(d)
    return Estimate(one.tasks, one.log_mean - shift, one.low - shift, one.high - shift, one.log_median - shift)


def _method(d: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Any LFOM of d features: its time does not depend on its parameters."""
    model = network(0, d, _LAYERS, rule="lfom")
    return solver_of(model)


def _times(sizes: Sequence[int], setting: Setting) -> Panel:
    """Microseconds a task of the learned method, of CGD with as many steps, and of forming the Gram matrix."""
    rows = [_times_at(d, setting) for d in sizes]
    labels = ("LFOM", f"CGD, {_LAYERS} steps", _GRAM)
    curves = tuple(series(label, sizes, list(row)) for label, row in zip(labels, zip(*rows, strict=True), strict=True))
    title = "Microseconds a task on this machine, from H and b, one thread"
    return Panel("time", title, "d", "microseconds", curves, log_x=True, log_y=True, digits=3)


def _times_at(d: int, setting: Setting) -> tuple[float, float, float]:
    tasks = GaussianTasks.isotropic(d, _RATIO * d)
    h, b, count = _statistics(tasks, setting)
    learned = _method(d)
    return (
        _quickest(lambda: learned(h, b), count),
        _quickest(lambda: conjugate_gradient(h, b, _LAYERS), count),
        _gram_time(tasks, setting, max(1, count // 8)),
    )


def _costs(lengths: Sequence[int], setting: Setting) -> Panel:
    """Microseconds a task by context length, d = 5, each the quickest of many calls in turn with the other lengths."""
    kept = [n for n in lengths if n <= 10_000]
    learned = _method(5)
    statistics = {n: _statistics(GaussianTasks.isotropic(5, n), setting) for n in kept}
    clocks = dict.fromkeys(kept, math.inf)
    for _ in range(setting.pick(tiny=2, quick=10, full=30)):
        for n, (h, b, count) in statistics.items():
            clocks[n] = min(clocks[n], _quickest(partial(learned, h, b), count))
    grams = [_gram_time(GaussianTasks.isotropic(5, n), setting, max(1, 20_000 // n)) for n in kept]
    curves = (series(_FROM_GRAM, kept, list(clocks.values())), series(_GRAM, kept, grams))
    title = "Microseconds a task on this machine by context length, d = 5, one thread"
    return Panel("cost", title, "n", "microseconds", curves, log_x=True, log_y=True, digits=3)


def _statistics(tasks: GaussianTasks, setting: Setting) -> tuple[Tensor, Tensor, int]:
    count = max(8, 50_000 // tasks.d**2)
    drawn = tasks.quadratics(count, generator_for("evaluation", setting.seed, 1))
    return drawn.h.contiguous(), drawn.b.contiguous(), count


def _gram_time(tasks: GaussianTasks, setting: Setting, count: int) -> float:
    z = tasks.tokens(count, generator_for("evaluation", setting.seed, 2)).z
    return _quickest(lambda: context_gram(z, tasks.n), count)


def _quickest(action: Callable[[], object], count: int) -> float:
    """Microseconds a task of the best of three calls on `count` tasks."""
    with torch.no_grad():
        return best_milliseconds(action, torch.device("cpu")) / count * 1e3


def _bytes(sizes: Sequence[int]) -> Panel:
    state = [4.0 * (d * d + 2 * d) for d in sizes]
    tokens = [4.0 * (_RATIO * d + 1) * (d + 1) for d in sizes]
    quadratic = [4.0 * (_RATIO * d + 1) ** 2 for d in sizes]
    return Panel(
        "memory",
        "Bytes a task needs, float32, computed from shapes",
        "d",
        "bytes",
        (
            series("H, b and w", sizes, state),
            series("tokens", sizes, tokens),
            series("n-by-n attention matrix of the literal form", sizes, quadratic),
        ),
        log_x=True,
        log_y=True,
        digits=3,
    )


EXPERIMENT = Experiment(
    number=10,
    name="scaling",
    title="Scaling in features and in context length",
    claim="Learned first-order methods carry over to many features and long contexts, at a cost a task that does not "
    "grow with the context once its Gram matrix is known.",
    source="extends Dutta & Sra, arXiv 2410.07263, which stays at d = 5, n = 20",
    protocol="Isotropic tasks; one LFOM model for each size, trained and judged in float64 with the loss in units of "
    "the optimum's. n = 4 d for the features, d = 5 for the contexts, drawn as statistics, which is exact for any n. "
    "Memory cannot lower the optimum here, so for the contexts models without are beside those with. Where A_l are "
    "multiples of I, tasks are drawn in the 5 dimensions of their Krylov space, which is exact for LFOM and CGD at "
    "any d; free A_l train on all features, up to d = 64. CGD has each task's own coefficients. That a task costs the "
    "same at any context once H and b are known holds by the shapes: it is measured as the ratio of times at n = "
    "10,000 and at the shortest context, and decides nothing.",
    asks="non-isotropic features at large d, where free A_l must be learned from few tasks",
    minutes=7,
    run=run,
    judge=judge,
    find=find,
)
