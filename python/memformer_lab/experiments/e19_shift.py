"""Experiment 19: prompts from other distributions than those of training, and training on many covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, excess, gaussian_tasks, half_widths
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, below
from memformer_lab.runs.fitting import Recipe, fit_memformer, memformer
from memformer_lab.solvers.estimates import ErrorSampler, Estimate, estimate
from memformer_lab.solvers.first_order import Draw
from memformer_lab.solvers.judging import Solver, preconditioned_steps, quadratics_of, steps_of
from memformer_lab.solvers.optimum import exact_optimum, sampled_form
from memformer_lab.tasks.covariances import CovarianceTasks, query_shifted
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch

_LAYERS, _D, _N = 4, 5, 20
SPREADS = (1.0, 10.0, 100.0, 1000.0)
SHIFTS = (
    "as in training",
    "queries from N(0, I)",
    "w* ~ N(0, I)",
    "features twice as large",
    "another rotation",
    "a rotation a prompt",
)
_SAME, _QUERY, _TASK, _SCALED, _ROTATED, _MANY = range(len(SHIFTS))
_ONE, _EACH = "LFOM, one covariance", "LFOM, a rotation a prompt"
_ONE_BLOCK, _EACH_BLOCK = "LFOM with Bm free, one covariance", "LFOM with Bm free, a rotation a prompt"
_CGD, _OWN = f"CGD, {_LAYERS} steps", f"CGD with the A of {_ONE}, {_LAYERS} steps"
_PLAIN, _BLOCK = "LFOM", "LFOM with Bm free"
_DOUBLED = math.log(2)
_ROBUST, _BROKEN = "robust to task and query shift", "not to a shift of the covariance"
_USEFUL = "with Bm free and a covariance a prompt better than CGD"


def run(setting: Setting) -> Results:
    """Trains on one covariance and on many, and judges on shifted prompts; then by the spread of the spectra."""
    return Results((*_shifted(setting), *_spread(setting)))


def judge(results: Results) -> Sequence[Check]:
    """Shifts by how much the relative error grows; training on many covariances by its error there."""
    shift, growth = results["shift"], results["growth"]
    one = growth[_ONE]
    checks = [
        below(f"{_ONE}, {SHIFTS[place]}: ln error grows by less than ln 2", one, _DOUBLED, place, part=_ROBUST)
        for place in (_QUERY, _TASK)
    ]
    checks += [
        _above(f"{_ONE}, {SHIFTS[place]}: ln error grows by more than ln 2", one, _DOUBLED, place, _BROKEN)
        for place in (_SCALED, _ROTATED, _MANY)
    ]
    name = f"{_EACH}, {SHIFTS[_ROTATED]}: ln error grows by less than ln 2 from that of its own tasks"
    checks.append(below(name, _less(shift[_EACH], _MANY), _DOUBLED, _ROTATED, essential=False))
    name = f"{_EACH}: it is below LFOM that saw one covariance"
    checks.append(below(name, shift[_EACH], shift[_ONE], _MANY, essential=False))
    checks.append(below(f"{_EACH_BLOCK}: it is below CGD", shift[_EACH_BLOCK], shift[_CGD], _MANY, part=_USEFUL))
    checks.append(below(f"{_EACH}: it is below CGD", shift[_EACH], shift[_CGD], _MANY, essential=False))
    name = f"{_EACH}, {SHIFTS[_SCALED]}: ln error grows by less than ln 2 from that of its own tasks"
    checks.append(below(name, _less(shift[_EACH], _MANY), _DOUBLED, _SCALED, essential=False))
    spread = results["spread"]
    for label in (_PLAIN, _BLOCK):
        name = f"{label}, spectra up to condition {{}}: below CGD"
        checks += all_below(name, spread[label], spread[_CGD], SPREADS, essential=False)
    plain = results["excess"][_PLAIN]
    name = f"{_PLAIN}, spectra up to condition {{:g}}: excess over the optimum"
    return checks + [below(name.format(x), plain, 0.0, x, 0.05, essential=False) for x in SPREADS]


def find(results: Results) -> str:
    """One covariance and many, on the training's own tasks and on another rotation."""
    shift = results["shift"]
    one, each, cgd = (shift[label] for label in (_ONE, _EACH, _CGD))
    return (
        f"LFOM trained on one covariance goes from {one.mean(_SAME):.2f} to {one.mean(_ROTATED):.1f} on another "
        f"rotation of it (CGD {cgd.mean(_ROTATED):.2f}); with a rotation a prompt to {each.mean(_ROTATED):.2f}, "
        f"and to {shift[_EACH_BLOCK].mean(_ROTATED):.2f} with Bm free."
    )


def _above(name: str, curve: Series, limit: float, place: float, part: str) -> Check:
    floor = series(f"{limit:.3g}", curve.x, [limit] * len(curve.x), reference=True)
    return below(name, floor, curve, place, part=part)


def _less(curve: Series, place: float) -> Series:
    """A curve less its values at a place, seed by seed."""
    at = curve.x.index(place)
    return series(curve.label, curve.x, [[value - row[at] for value in row] for row in curve.values])


def _shifted(setting: Setting) -> tuple[Panel, ...]:
    """Relative errors of every model under every shift, with means and medians over prompts."""
    count = setting.pick(tiny=300, quick=10_000, full=400_000)
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    many = CovarianceTasks(_D, _N, tasks.scales)
    kinds = {
        _ONE: (tasks.compressed, "response-only"),
        _EACH: (many.compressed, "response-only"),
        _ONE_BLOCK: (tasks.compressed, "block"),
        _EACH_BLOCK: (many.compressed, "block"),
    }
    models = {
        label: [_trained(seed, structure, draw, _recipe(structure, setting)) for seed in setting.seeds]
        for label, (draw, structure) in kinds.items()
    }
    further = {
        label: [
            _trained(setting.seeds[0], "block", kinds[label][0], one) for one in _recipe("block", setting).further()
        ]
        for label in (_ONE_BLOCK, _EACH_BLOCK)
    }
    identity = torch.eye(_D, dtype=torch.float64, device="cpu")
    sample = setting.pick(tiny=1000, quick=40_000, full=1_000_000)
    optima = (exact_optimum(tasks, _LAYERS), sampled_form(many, identity, _LAYERS, sample, setting.seed).best())
    own = -models[_ONE][0].q.detach()[0, 0]
    solvers = [one.method(torch.float32).solver(layers=False) for one in optima]
    solvers.append(_last(steps_of("conjugate_gradient", _LAYERS)))
    solvers.append(_last(preconditioned_steps("conjugate_gradient", own, _LAYERS)))
    flat = [model for group in (*models.values(), *further.values()) for model in group]
    draws = _draws(tasks, many, setting.seed)
    columns = [estimate(_relative_errors(flat, solvers, draw), count, setting.seed) for draw in draws]
    rows = iter([list(row) for row in zip(*columns, strict=True)])
    grouped = {label: [next(rows) for _ in group] for label, group in models.items()}
    longer = {label: [next(rows) for _ in group] for label, group in further.items()}
    best, (*_, cgd, preconditioned) = [next(rows) for _ in optima], list(rows)
    grouped |= {_CGD: [cgd], _OWN: [preconditioned]}
    places = range(len(SHIFTS))
    curves = {label: _curve(label, places, found) for label, found in grouped.items()}
    # What is best is known, and what is trained to its end can be told, on the training's own tasks alone.
    for label, row, place in zip((_ONE, _EACH), best, (_SAME, _MANY), strict=True):
        curves[label] = replace(curves[label], optimum=_only(row, place))
    for label, place in ((_ONE_BLOCK, _SAME), (_EACH_BLOCK, _MANY)):
        curves[label] = replace(curves[label], longer=tuple(_only(row, place) for row in longer[label]))
    means = list(curves.values())
    medians = [
        series(label, places, [[one.log_median for one in row] for row in found]) for label, found in grouped.items()
    ]
    text = f"d = {_D}, n = {_N}, {_LAYERS} layers or steps, relative to the responses' variance"
    return (
        Panel("shift", f"Prompts of other distributions, {text}", "prompts", "ln mean relative squared error",
              tuple(means), categories=SHIFTS),
        Panel("medians", f"Medians over prompts of other distributions, {text}", "prompts",
              "ln median relative squared error", tuple(medians), categories=SHIFTS),
        Panel("growth", "How much the error has grown since the prompts of training", "prompts",
              "difference of ln mean relative squared error", tuple(_less(one, _SAME) for one in means),
              categories=SHIFTS),
    )  # fmt: skip


def _spread(setting: Setting) -> tuple[Panel, ...]:
    """Training with a rotation and a spectrum a prompt, by the spread of the spectra."""
    count = setting.pick(tiny=300, quick=10_000, full=400_000)
    sample = setting.pick(tiny=1000, quick=40_000, full=1_000_000)
    places = setting.pick(tiny=SPREADS, quick=SPREADS, full=SPREADS)
    identity = torch.eye(_D, dtype=torch.float64, device="cpu")
    found: dict[str, list[list[Estimate]]] = {}
    for spread in places:
        tasks = CovarianceTasks(_D, _N, (1.0,) * _D, spread)
        models, further = [], []
        for structure in ("response-only", "block"):
            recipe = _recipe(structure, setting)
            models += [_trained(seed, structure, tasks.compressed, recipe) for seed in setting.seeds]
            if structure == "block":
                further = [_trained(setting.seeds[0], structure, tasks.compressed, one) for one in recipe.further()]
        best = sampled_form(tasks, identity, _LAYERS, sample, setting.seed).best()
        solvers = [best.method(torch.float32).solver(layers=False), _last(steps_of("conjugate_gradient", _LAYERS))]
        flat = estimate(_relative_errors([*models, *further], solvers, tasks.compressed), count, setting.seed)
        size = len(setting.seeds)
        parts = (flat[:size], flat[size : 2 * size], flat[2 * size : 2 * size + 2], flat[-2:-1], flat[-1:])
        for label, part in zip((_PLAIN, _BLOCK, "further", "optimum", _CGD), parts, strict=True):
            found.setdefault(label, []).append(part)
    rows = {label: [list(row) for row in zip(*columns, strict=True)] for label, columns in found.items()}
    optimum = [one.log_mean for one in rows["optimum"][0]]
    longer = [[one.log_mean for one in row] for row in rows["further"]]
    curves = (
        replace(_curve(_PLAIN, places, rows[_PLAIN]), optimum=tuple(optimum)),
        replace(_curve(_BLOCK, places, rows[_BLOCK]), longer=tuple(map(tuple, longer))),
        series(f"{_BLOCK}, median", places, [[one.log_median for one in row] for row in rows[_BLOCK]]),
        _curve(_CGD, places, rows[_CGD]),
    )
    title = f"Trained with a rotation and a spectrum a prompt, d = {_D}, n = {_N}, {_LAYERS} layers or steps"
    return (
        Panel("spread", title, "largest condition number", "ln mean relative squared error", curves, log_x=True),
        Panel(
            "excess",
            "Excess over the optimum on the same tasks",
            "largest condition number",
            "difference of ln mean squared error",
            (excess(curves[0]),),
            log_x=True,
            digits=3,
        ),
    )


def _curve(label: str, places: Sequence[float], rows: Sequence[Sequence[Estimate]]) -> Series:
    return series(label, places, [[one.log_mean for one in row] for row in rows], sampling=half_widths(rows))


def _only(row: Sequence[Estimate], place: int) -> tuple[float, ...]:
    """Log means at one place, NaN at the others."""
    return tuple(one.log_mean if index == place else math.nan for index, one in enumerate(row))


def _draws(tasks: GaussianTasks, many: CovarianceTasks, seed: int) -> list[Draw]:
    """How prompts are drawn under every shift, in their order."""
    double = replace(tasks, scales=tuple(2 * scale for scale in tasks.scales))
    other = replace(tasks, rotation_seed=seed + 1000)

    def queries(batch: int, generator: Generator) -> TaskBatch:
        return query_shifted(tasks.compressed(batch, generator), torch.eye(_D, dtype=torch.float64, device="cpu"))

    found: list[Draw] = [tasks.compressed, queries, replace(tasks, weights="isotropic").compressed]
    return [*found, double.compressed, other.compressed, many.compressed]


def _relative_errors(models: Sequence[Memformer], solvers: Sequence[Solver], draw: Draw) -> ErrorSampler:
    """Squared errors over the mean square of the targets in the batch: (rows, batch), models first."""

    def sample(batch: int, generator: Generator) -> Tensor:
        tasks = draw(batch, generator)
        variance = tasks.target.square().mean()
        h, b = quadratics_of(tasks.z, tasks.context)
        x = tasks.z[:, tasks.context :, :-1]
        predictions = [model.predict(tasks.z, context=tasks.context) for model in models]
        predictions += [(x @ solver(h, b)[0].unsqueeze(-1)).squeeze(-1) for solver in solvers]
        return torch.stack([(one - tasks.target).square().mean(-1) / variance for one in predictions])

    return sample


def _recipe(structure: str, setting: Setting) -> Recipe:
    steps = setting.pick(tiny=2, quick=400, full=6000)
    batch = setting.pick(tiny=8, quick=128, full=256)
    return Recipe(steps, batch) if structure == "response-only" else Recipe(steps, batch, 0.03, 0.1, warmup=steps // 20)


def _trained(seed: int, structure: str, draw: Draw, recipe: Recipe) -> Memformer:
    model = memformer(seed, _D, _LAYERS, rule="lfom", structure=structure)
    fit_memformer(model, draw, recipe, seed)
    return model


def _last(solver: Solver) -> Solver:
    return lambda h, b: solver(h, b)[-1:]


EXPERIMENT = Experiment(
    number=19,
    name="shift",
    title="Prompts of other distributions",
    claim="A linear transformer trained on one covariance is robust to shifts of the task and of the query, but not of "
    "the features' covariance; trained with a covariance of its own in every prompt and Bm free it is better than CGD "
    "there.",
    source="Zhang, Frei & Bartlett, arXiv 2306.09927, for one layer, which random covariances do not help; the last "
    "half is ours, for four layers",
    protocol="Trained on the non-isotropic tasks of one rotation, or with a Haar rotation of that spectrum in every "
    "prompt, then judged on: the same prompts; the same with queries from N(0, I); w* ~ N(0, I) in place of N(0, "
    "Sigma^-1); features twice as large; another rotation; a rotation a prompt. Errors are relative to the variance "
    "of the responses there. Then trained with spectra log-uniform up to a condition number. Query shift is exact, "
    "without sampling of queries. A network that was trained on all rotations has the same error on any one by "
    "symmetry, which decides nothing. Optima have A a multiple of Sigma^-1, in closed form, or of I where every "
    "prompt has its covariance, best by symmetry among known ones. CGD knows no distribution; the A of the first "
    "seed's network preconditions it in the last row.",
    asks="mixtures of covariances in training at larger d, and shifts of the noise",
    minutes=6,
    run=run,
    judge=judge,
    find=find,
)
