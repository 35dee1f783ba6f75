"""Experiment 8: what memory adds, by rule, by registers kept, by granularity and by start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks, network
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, below
from memformer_lab.runs.fitting import Recipe, fit_on_tasks
from memformer_lab.runs.variants import Variant
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.first_order import draws_statistics
from memformer_lab.solvers.judging import distributions, memformer_estimates, network_errors, solver_errors
from memformer_lab.solvers.optimum import Optimum, exact_optimum, sampled_form
from memformer_lab.solvers.spectral import best_network, sampled_spectrum
from memformer_lab.tasks.gaussian import GaussianTasks

_LAYERS = 4
NONE, SCALES, HEADS, LFOM = "none", "none, free scales", "none, 2 heads", "lfom"
_RULES: dict[str, dict[str, Any]] = {
    NONE: {"rule": "linear"},
    SCALES: {"rule": "lfom", "registers": 1},
    HEADS: {"rule": "linear", "heads": 2},
    "cgd": {"rule": "cgd"},
    "recursive (per feature)": {"rule": "recursive", "granularity": "feature"},
    LFOM: {"rule": "lfom"},
    "shared": {"rule": "lfom_shared"},
    "residual": {"rule": "lfom_residual"},
}
# With a scalar A the residual rule is lfom.
_SCALAR_RULES = tuple(name for name in _RULES if name != "residual")
_SHARED = "shared"
BEST_NONE, BEST_LFOM = "none, best coefficients", "lfom, best coefficients"
_BLOCK_RULES = (*_RULES, BEST_NONE, BEST_LFOM)
_GRANULARITIES = ("scalar", "feature", "token", "full")
_REGISTERS = (1, 2, 3, 4)
_STARTS = ("gradient descent", "zeros", "all registers equal")
_FREE, _SCALAR, _MOVING = "A free and Bm = 0", "A scalar and Bm = 0", "A and Bm free"
_GAIN = "what memory takes off ln of the optimum"
_RESOLUTION = 0.02

Builder = Callable[[int], Variant]


def run(setting: Setting) -> Results:
    """Trains every variant with the same recipe, response-only; the rules with scalar A and with Bm free as well."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    scored = setting.pick(tiny=300, quick=20_000, full=400_000)
    recipe = Recipe(setting.pick(tiny=3, quick=600, full=6000), batch=setting.pick(tiny=8, quick=128, full=512))
    # A coefficient for every token is beyond the native trainer.
    brief = Recipe(setting.pick(tiny=3, quick=60, full=800), batch=setting.pick(tiny=8, quick=64, full=128))
    exact = exact_optimum(tasks, _LAYERS)
    form = sampled_form(
        tasks,
        torch.eye(5, dtype=torch.float64, device="cpu"),
        _LAYERS,
        setting.pick(tiny=200, quick=20_000, full=200_000),
        0,
    )
    most, descent = form.best(), form.best_descent()

    def compare(name: str, title: str, places: dict[str, tuple[Builder, Optimum | None]], recipe: Recipe) -> Panel:
        builds = [build for build, _ in places.values()]
        rows = [
            _scores([_fitted(build, tasks, recipe, seed) for build in builds], tasks, scored, setting.seed)
            for seed in setting.seeds
        ]
        open_ended = [index for index, (_, best) in enumerate(places.values()) if best is None]
        longer = []
        for further in recipe.further() if open_ended else ():
            models = [_fitted(builds[index], tasks, further, setting.seeds[0]) for index in open_ended]
            found = dict(zip(open_ended, _scores(models, tasks, scored, setting.seed), strict=True))
            longer.append([found.get(index, math.nan) for index in range(len(builds))])
        known = [best for _, best in places.values() if best]
        limits = iter(_limits(known, tasks, scored, setting.seed))
        optimum = [next(limits) if best else math.nan for _, best in places.values()]
        curve = series("LFOM", range(len(places)), rows, optimum=optimum, longer=longer)
        return _panel(name, title, tuple(places), curve)

    def variant(**arguments: Any) -> Builder:
        return lambda seed: network(seed, tasks.d, _LAYERS, **arguments)

    panels = (
        compare(
            "free",
            f"Rules of memory, {_FREE}",
            {name: (variant(**one), None if name == _SHARED else exact) for name, one in _RULES.items()},
            recipe,
        ),
        compare(
            "scalar",
            f"Rules of memory, {_SCALAR}",
            {
                name: (
                    variant(**_RULES[name], preconditioner="scalar"),
                    None if name == _SHARED else descent if name in (NONE, SCALES, HEADS) else most,
                )
                for name in _SCALAR_RULES
            },
            recipe,
        ),
        *_moving(setting, tasks),
        compare(
            "registers",
            "Newest registers that have a weight in a layer (lfom, A scalar, Bm = 0)",
            {
                str(kept): (
                    variant(rule="lfom", registers=kept, preconditioner="scalar"),
                    {1: descent, _LAYERS: most}.get(kept),
                )
                for kept in _REGISTERS
            },
            recipe,
        ),
        compare(
            "granularity",
            "Granularity of Gamma (lfom, A free, Bm = 0)",
            {
                name: (
                    variant(rule="lfom", granularity=name, tokens=tasks.n + 1),
                    exact if name in ("scalar", "feature") else None,
                )
                for name in _GRANULARITIES
            },
            brief,
        ),
        compare(
            "start",
            "Start of Gamma (lfom, A free, Bm = 0)",
            {start: (_starting(tasks.d, start), exact) for start in _STARTS},
            recipe,
        ),
    )
    gains = {
        f"{_GAIN}, {shown}": _at(panel, NONE).optimum[0] - _at(panel, LFOM).optimum[0]
        for panel, shown in zip(panels[:2], (_FREE, _SCALAR), strict=True)
    }
    return Results(panels, gains)


def _moving(setting: Setting, tasks: GaussianTasks) -> list[Panel]:
    """The rules with Bm free: median, trimmed mean and tail index. No optimum is known; see experiment 3."""
    steps, batch = setting.pick(tiny=3, quick=600, full=16_000), setting.pick(tiny=8, quick=128, full=512)
    recipe = Recipe(steps, batch, 0.03, 0.01, warmup=setting.pick(tiny=1, quick=20, full=200))
    count, sample = setting.pick(tiny=200, quick=10_000, full=200_000), setting.pick(tiny=50, quick=500, full=5000)

    def build(name: str) -> Builder:
        return lambda seed: network(seed, tasks.d, _LAYERS, structure="block", **_RULES[name])

    rows, further = [], []
    plain = lfom = None
    for seed in setting.seeds:
        spectrum = sampled_spectrum(tasks.d, tasks.n, sample, seed)
        plain = best_network(spectrum, _LAYERS, memory=False, starts=[plain] if plain else [], random=0)
        lfom = best_network(spectrum, _LAYERS, memory=True, starts=[lfom or plain])
        models: list[Memformer] = [_fitted(build(name), tasks, recipe, seed) for name in _RULES]
        models += [one.network(tasks) for one in (plain, lfom)]
        rows.append(distributions(network_errors(models, tasks.compressed), count, setting.seed))
    for one in recipe.further():
        longer_trained = [_fitted(build(name), tasks, one, setting.seeds[0]) for name in _RULES]
        further.append(distributions(network_errors(longer_trained, tasks.compressed), count, setting.seed))
    panels = []
    for key, field, shown in (
        ("block", "log_median", "ln median squared error"),
        ("block-trimmed", "log_trimmed", "ln mean squared error without the largest 0.1%"),
        ("block-tail", "tail_index", "tail index of the squared error"),
    ):
        values = [[getattr(one, field) for one in row] for row in rows]
        best = dict(zip((BEST_NONE, BEST_LFOM), values[0][-2:], strict=True))
        longer = [[getattr(one, field) for one in row] + [math.nan] * len(best) for row in further]
        longer.append([best.get(_REACHES.get(name, ""), math.nan) for name in _BLOCK_RULES])
        curve = series("LFOM", range(len(_BLOCK_RULES)), values, longer=longer if key != "block-tail" else [])
        panels.append(_panel(key, f"Rules of memory, {_MOVING}", _BLOCK_RULES, curve, shown))
    return panels


# What best coefficients a rule can take on where Bm is free: with residual, A and Bm take on the weights that are 1.
_REACHES = dict.fromkeys((NONE, SCALES, HEADS, "cgd", "recursive (per feature)"), BEST_NONE) | dict.fromkeys(
    (LFOM, "residual"), BEST_LFOM
)


def judge(results: Results) -> Sequence[Check]:
    """By training where A is free, by optima where it is scalar, by best coefficients where features move."""
    checks = []
    # With A free both optima are one polynomial, so that networks as trained decide.
    text, panel = f"lfom is below no memory by {_RESOLUTION}, {_FREE}", results["free"]
    checks.append(below(text, _at(panel, LFOM), _at(panel, NONE), 0, -_RESOLUTION, part=f"with {_FREE}"))
    name = f"{_GAIN}, {_SCALAR}"
    checks.append(at_least(name, results.numbers[name], _RESOLUTION, part=f"with {_SCALAR}"))
    for key, shown in (("block", "median"), ("block-trimmed", "trimmed mean")):
        best = [_at(results[key], rule) for rule in (BEST_LFOM, BEST_NONE)]
        text = f"lfom's best coefficients are below those without memory by {_RESOLUTION}, {_MOVING} ({shown})"
        checks.append(below(text, best[0], best[1], 0, -_RESOLUTION, part=f"with {_MOVING}"))
    # What the parameters allow is not yet learnt.
    for key, shown in (("scalar", _SCALAR), ("block", _MOVING)):
        text = f"lfom as trained is below '{SCALES}' by {_RESOLUTION}, {shown}"
        lfom, scales = (_at(results[key], rule) for rule in (LFOM, SCALES))
        checks.append(below(text, lfom, scales, 0, -_RESOLUTION, part=f"with {shown}"))
    for name, shown in (("free", _FREE), ("scalar", _SCALAR), ("block", _MOVING)):
        for control in (NONE, SCALES, HEADS):
            text = f"lfom as trained is below '{control}', {shown}"
            panel = results[name]
            checks.append(below(text, _at(panel, LFOM), _at(panel, control), 0, essential=False))
    return checks


def find(results: Results) -> str:
    """What memory adds in the three cases."""
    fixed = [results.numbers[f"{_GAIN}, {shown}"] for shown in (_FREE, _SCALAR)]
    panel = results["block"]
    moving = _at(panel, BEST_NONE).mean(0) - _at(panel, BEST_LFOM).mean(0)
    trained = _at(panel, SCALES).mean(0) - _at(panel, LFOM).mean(0)
    return (
        f"Memory changes ln of the optimum by {_change(fixed[0])} with A free, by {_change(fixed[1])} with A scalar; "
        f"with Bm free, ln of the median by {_change(moving)} at best coefficients, by {_change(trained)} as trained, "
        "against free scales."
    )


def _change(gain: float) -> str:
    """What a gain changes, with its sign; no sign before a zero."""
    return f"{round(-gain, 3) + 0.0:.3g}"


def _at(panel: Panel, category: str) -> Series:
    """One place of a panel's only curve, as a curve with the place 0."""
    curve = panel.series[0]
    place = panel.categories.index(category)
    return series(
        category,
        (0,),
        [[row[place]] for row in curve.values],
        optimum=[curve.optimum[place]] if curve.optimum else (),
        longer=[[row[place]] for row in curve.longer],
    )


def _fitted(build: Builder, tasks: GaussianTasks, recipe: Recipe, seed: int) -> Variant:
    model = build(seed)
    fit_on_tasks(model, tasks, recipe, seed)
    return model


def _starting(d: int, start: str) -> Builder:
    def build(seed: int) -> Variant:
        model = network(seed, d, _LAYERS, rule="lfom")
        assert model.gamma is not None
        if start != _STARTS[0]:
            with torch.no_grad():
                model.gamma.fill_(0.0 if start == "zeros" else 1 / _LAYERS)
        return model

    return build


def _scores(models: Sequence[Variant], tasks: GaussianTasks, count: int, seed: int) -> list[float]:
    """Log means, on tokens where a model's coefficients differ from token to token, on statistics for the others."""
    found: dict[int, float] = {}
    for statistics in (True, False):
        group = [model for model in models if draws_statistics(model, tasks) is statistics]
        estimates = memformer_estimates(group, tasks, count, seed) if group else []
        found |= {id(model): one[0].log_mean for model, one in zip(group, estimates, strict=True)}
    return [found[id(model)] for model in models]


def _limits(optima: Sequence[Optimum], tasks: GaussianTasks, count: int, seed: int) -> list[float]:
    """Log means of optimal methods on the same tasks."""
    solvers = [one.method(torch.float32).solver(layers=False) for one in optima]
    return [one.log_mean for one in estimate(solver_errors(tasks, solvers), count, seed)]


def _panel(
    name: str, title: str, categories: tuple[str, ...], curve: Series, y_label: str = "ln mean squared error"
) -> Panel:
    return Panel(
        name, f"{title}, {_LAYERS} layers, fresh tasks", "variant", y_label, (curve,), categories=categories, digits=3
    )


EXPERIMENT = Experiment(
    number=8,
    name="memory",
    title="What memory adds",
    claim="Memory registers let a Transformer learn better first-order methods.",
    source="Dutta & Sra, arXiv 2410.07263, secs. 3-4",
    protocol="Non-isotropic tasks, 4 layers, the same recipe for all variants of a panel; rows are called LFOM, "
    "places say which rule. Two controls have parameters and no memory: a weight for each layer and feature on the "
    "new register alone (free scales), and a second head. They are the functions of 'none' in another "
    "parametrisation: free scales fold into A and Bm in all three cases, a second head into A where Bm = 0. Where Bm "
    "= 0 the optima are known (closed form with A free, else the least error over separate tasks; of gradient steps "
    "where there is no memory): with A free they are the same with memory and without. Where Bm is free, best "
    "coefficients are found as in experiment 3. Granularities are trained briefly, since coefficients by token are "
    "beyond the native trainer; so are their longer trainings.",
    asks="memory where the number of parameters, not of layers, is held the same",
    minutes=10,
    run=run,
    judge=judge,
    find=find,
)
