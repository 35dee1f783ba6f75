"""Experiment 10: more features and longer contexts, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.profiling.rates import best_milliseconds
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.judging import memformer_estimates, solver_errors, steps_of
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 4
_RATIO = 4
_LIMIT = 12


def run(setting: Setting) -> Results:
    """Trains at each d (with n = 4 d) and at each n (with d = 5); measures error, time and bytes a task."""
    sizes = setting.pick(tiny=(3, 5), quick=(5, 16, 32), full=(5, 16, 64, 256))
    lengths = setting.pick(tiny=(5, 10), quick=(5, 20, 100, 10_000), full=(5, 10, 20, 100, 1000, 10_000, 100_000))
    steps = setting.pick(tiny=2, quick=240, full=1500)
    wide, wide_cgd, need, timing = [], [], [], []
    for seed in setting.seeds:
        row, clocks = [], []
        for d in sizes:
            tasks = GaussianTasks.isotropic(d, _RATIO * d)
            model = _trained(seed, tasks, steps)
            count = setting.pick(tiny=50, quick=max(200, 20_000 // d), full=max(400, 200_000 // d))
            row.append(memformer_estimates([model], tasks, count, setting.seed)[0][0].log_mean - math.log(d))
            clocks.append(_microseconds(model, tasks, setting))
        wide.append(row)
        timing.append([clock[0] for clock in clocks])
        if seed == setting.seeds[0]:
            cgd_times = [clock[1] for clock in clocks]
            gram_times = [clock[2] for clock in clocks]
            for d, reached in zip(sizes, row, strict=True):
                tasks = GaussianTasks.isotropic(d, _RATIO * d)
                sampler = solver_errors(tasks, [steps_of("conjugate_gradient", _LIMIT)])
                count = setting.pick(tiny=50, quick=max(200, 20_000 // d), full=max(400, 200_000 // d))
                found = [one.log_mean - math.log(d) for one in estimate(sampler, count, setting.seed)]
                wide_cgd.append(found[_LAYERS - 1])
                need.append(float(next((k for k, value in enumerate(found, 1) if value <= reached), _LIMIT)))
    long_rows, long_cgd = [], []
    count = setting.pick(tiny=200, quick=20_000, full=200_000)
    for seed in setting.seeds:
        row = []
        for n in lengths:
            tasks = GaussianTasks.isotropic(5, n)
            model = _trained(seed, tasks, steps)
            row.append(memformer_estimates([model], tasks, count, setting.seed)[0][0].log_mean)
        long_rows.append(row)
    for n in lengths:
        sampler = solver_errors(GaussianTasks.isotropic(5, n), [steps_of("conjugate_gradient", _LAYERS)])
        long_cgd.append(estimate(sampler, count, setting.seed)[-1].log_mean)
    state = [4.0 * (d * d + 2 * d) for d in sizes]
    tokens = [4.0 * (_RATIO * d + 1) * (d + 1) for d in sizes]
    quadratic = [4.0 * (_RATIO * d + 1) ** 2 for d in sizes]
    panels = (
        Panel(
            "features",
            f"Error relative to the response's variance, n = {_RATIO} d, {_LAYERS} layers or steps, fresh tasks",
            "d",
            "ln relative squared error",
            (series("LFOM", sizes, wide), series("CGD", sizes, wide_cgd)),
            log_x=True,
        ),
        Panel(
            "context",
            f"Error by context length, d = 5, {_LAYERS} layers or steps, fresh tasks",
            "n",
            "ln mean squared error",
            (series("LFOM", lengths, long_rows), series("CGD", lengths, long_cgd)),
            log_x=True,
        ),
        Panel(
            "time",
            "Microseconds a task on this machine, from H and b, one thread",
            "d",
            "microseconds",
            (
                series("LFOM", sizes, timing),
                series(f"CGD, {_LAYERS} steps", sizes, cgd_times),
                series("Gram matrix of the tokens", sizes, gram_times),
            ),
            log_x=True,
            log_y=True,
            digits=3,
        ),
        Panel(
            "equal",
            "Steps of CGD to the error of the LFOM model (at most 12 tried)",
            "d",
            "steps",
            (series("CGD", sizes, need),),
            log_x=True,
        ),
        Panel(
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
        ),
    )
    return Results(panels)


def judge(results: Results) -> Sequence[Check]:
    """Errors fall with n; one model form serves every d; timings are shown and not judged."""
    context, features = results["context"]["LFOM"], results["features"]["LFOM"]
    checks = [
        at_most(
            f"error at n = {longer:g} is below that at n = {shorter:g}", context.mean(longer), context.mean(shorter)
        )
        for shorter, longer in zip(context.x[:-1], context.x[1:], strict=True)
    ]
    checks += [
        at_most(f"d = {d:g}: error is below a tenth of the response's variance", features.mean(d), math.log(0.1))
        for d in features.x
    ]
    cgd = results["context"]["CGD"]
    shortest, longest = context.x[0], context.x[-1]
    return checks + all_below("LFOM is below CGD at n = {}", context, cgd, (shortest, longest), essential=False)


def find(results: Results) -> str:
    """Errors by d and by n, and the cost a task."""
    features, context, time = results["features"], results["context"], results["time"]
    sizes, lengths = (", ".join(f"{x:g}" for x in panel["LFOM"].x) for panel in (features, context))
    clocks = ", ".join(f"{time['LFOM'].mean(x):.3g}" for x in time["LFOM"].x)
    return (
        f"d = {sizes}: LFOM {features['LFOM'].shown()}, CGD {features['CGD'].shown()}, {clocks} microseconds a task; "
        f"n = {lengths}: LFOM {context['LFOM'].shown()}, CGD {context['CGD'].shown()}"
    )


def _trained(seed: int, tasks: GaussianTasks, steps: int) -> Memformer:
    model = memformer(seed, tasks.d, _LAYERS, rule="lfom")
    batch = max(16, min(256, 16_384 // tasks.d**2))
    rate = 0.1 / max(1.0, tasks.d / 5)
    # Large d are beyond the native trainer, at milliseconds a step.
    fit_on_tasks(model, tasks, Recipe(steps if tasks.d <= 16 else max(2, steps // 8), batch, rate), seed)
    return model


def _microseconds(model: Memformer, tasks: GaussianTasks, setting: Setting) -> tuple[float, float, float]:
    """Of the learned method, of CGD with as many steps, and of forming the Gram matrix, a task; best of three."""
    count = max(8, 200_000 // tasks.d**2 // 4)
    quadratics = tasks.quadratics(count, generator_for("evaluation", setting.seed, 1))
    h, b = quadratics.h.contiguous(), quadratics.b.contiguous()
    method = first_order_method(model)
    assert method is not None
    learned = method.solver(layers=False)
    few = max(1, count // 8)
    z = tasks.tokens(few, generator_for("evaluation", setting.seed, 2)).z
    with torch.no_grad():
        return (
            best_milliseconds(lambda: learned(h, b), h.device) / count * 1e3,
            best_milliseconds(lambda: conjugate_gradient(h, b, _LAYERS), h.device) / count * 1e3,
            best_milliseconds(lambda: context_gram(z, tasks.n), h.device) / few * 1e3,
        )


EXPERIMENT = Experiment(
    number=10,
    name="scaling",
    title="Scaling in features and in context length",
    claim="Learned first-order methods carry over to many features and long contexts, at a cost a task that does not "
    "grow with the context once its Gram matrix is known.",
    source="extends Dutta & Sra, arXiv 2410.07263, which stays at d = 5, n = 20",
    protocol="Isotropic tasks; one LFOM model for each size. n = 4 d for the features, d = 5 for the contexts. "
    "Contexts are drawn as statistics, which is exact for any n. Times depend on the machine and on what else it "
    "does, so they are shown and never judged; bytes are computed from shapes. --full reaches d = 256 and n = 100,000.",
    run=run,
    judge=judge,
    find=find,
)
