"""Experiment 8: what memory adds, by rule, by registers kept, by granularity and by start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks, network
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check
from memformer_lab.runs.fitting import Recipe, fit_on_tasks
from memformer_lab.runs.variants import Variant
from memformer_lab.solvers.first_order import draws_statistics
from memformer_lab.solvers.judging import distributions, memformer_estimates, network_errors
from memformer_lab.tasks.gaussian import GaussianTasks

_LAYERS = 4
_RULES: dict[str, dict[str, Any]] = {
    "none": {"rule": "linear"},
    "none, wide: one weight a layer and feature": {"rule": "lfom", "registers": 1},
    "none, wide: 2 heads": {"rule": "linear", "heads": 2},
    "cgd": {"rule": "cgd"},
    "recursive (per feature)": {"rule": "recursive", "granularity": "feature"},
    "lfom": {"rule": "lfom"},
    "shared": {"rule": "lfom_shared"},
    "residual": {"rule": "lfom_residual"},
}
_CONTROLS = ("none, wide: one weight a layer and feature", "none, wide: 2 heads")
_GRANULARITIES = ("scalar", "feature", "token", "full")
_REGISTERS = (1, 2, 3, 4)
_CASES = {"free": "A free and Bm = 0", "scalar": "A scalar and Bm = 0", "block": "A and Bm free"}
_STARTS = ("gradient descent", "zeros", "all registers equal")


def run(setting: Setting) -> Results:
    """Trains every variant with the same recipe, response-only; the rules with scalar A and with Bm free as well."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    scored = setting.pick(tiny=300, quick=20_000, full=200_000)
    recipe = Recipe(setting.pick(tiny=3, quick=600, full=3000), batch=setting.pick(tiny=8, quick=128, full=512))
    # A coefficient for every token is beyond the native trainer.
    brief = Recipe(setting.pick(tiny=3, quick=60, full=800), batch=setting.pick(tiny=8, quick=128, full=128))
    moving = Recipe(
        setting.pick(tiny=3, quick=600, full=5000),
        setting.pick(tiny=8, quick=128, full=256),
        0.06,
        0.01,
        warmup=setting.pick(tiny=1, quick=20, full=200),
    )

    def train(builds: Sequence[Callable[[int], Variant]], recipe: Recipe) -> list[list[Variant]]:
        trained = [[build(seed) for build in builds] for seed in setting.seeds]
        for seed, models in zip(setting.seeds, trained, strict=True):
            for model in models:
                fit_on_tasks(model, tasks, recipe, seed)
        return trained

    def compare(builds: Sequence[Callable[[int], Variant]], recipe: Recipe) -> list[list[float]]:
        return [_scores(models, tasks, scored, setting.seed) for models in train(builds, recipe)]

    rules = [_builder(tasks.d, **arguments) for arguments in _RULES.values()]
    # With a scalar A the residual rule is lfom.
    few = tuple(name for name in _RULES if name != "residual")
    scalar = [_builder(tasks.d, **{**_RULES[name], "preconditioner": "scalar"}) for name in few]
    block = [_builder(tasks.d, **{**arguments, "structure": "block"}) for arguments in _RULES.values()]
    moved = setting.pick(tiny=200, quick=10_000, full=200_000)
    spread = [
        distributions(network_errors(models, tasks.compressed), moved, setting.seed) for models in train(block, moving)
    ]
    names = tuple(_RULES)
    panels = (
        _panel(
            "free", "Rules of memory, A free, Bm = 0", names, series("LFOM", range(len(names)), compare(rules, recipe))
        ),
        _panel(
            "scalar",
            "Rules of memory, A a multiple of the identity, Bm = 0",
            few,
            series("LFOM", range(len(few)), compare(scalar, recipe)),
        ),
        _panel(
            "block",
            "Rules of memory, A and Bm free, median",
            names,
            series("LFOM", range(len(names)), [[one.log_median for one in row] for row in spread]),
            "ln median squared error",
        ),
        _panel(
            "block-mean",
            "Rules of memory, A and Bm free, mean",
            names,
            series("LFOM", range(len(names)), [[one.log_mean for one in row] for row in spread]),
        ),
        _panel(
            "registers",
            "Newest registers that have a weight in a layer (lfom, A scalar, Bm = 0)",
            tuple(map(str, _REGISTERS)),
            series(
                "LFOM",
                range(len(_REGISTERS)),
                compare(
                    [_builder(tasks.d, rule="lfom", registers=kept, preconditioner="scalar") for kept in _REGISTERS],
                    recipe,
                ),
            ),
        ),
        _panel(
            "granularity",
            "Granularity of Gamma (lfom, A free, Bm = 0)",
            _GRANULARITIES,
            series(
                "LFOM",
                range(len(_GRANULARITIES)),
                compare(
                    [_builder(tasks.d, rule="lfom", granularity=name, tokens=tasks.n + 1) for name in _GRANULARITIES],
                    brief,
                ),
            ),
        ),
        _panel(
            "start",
            "Start of Gamma (lfom, A free, Bm = 0)",
            _STARTS,
            series("LFOM", range(len(_STARTS)), compare([_starting(tasks.d, start) for start in _STARTS], recipe)),
        ),
    )
    results = Results(panels)
    return Results(panels, _gains(results))


def judge(results: Results) -> Sequence[Check]:
    """Memory must help beyond the seeds' spread where features move; the other cases and the controls qualify that."""
    checks = []
    for name, shown in _CASES.items():
        gain, spread = _gain(results, name, "none")
        text = f"lfom gains over no memory, {shown}: {gain:.3f} > {spread:.3f}, two standard errors"
        checks.append(Check(text, gain > spread, essential=name == "block"))
        for control in _CONTROLS:
            gain, spread = _gain(results, name, control)
            text = f"lfom gains over '{control}', {shown}: {gain:.3f} > {spread:.3f}, two standard errors"
            checks.append(Check(text, gain > spread, essential=False))
    return checks


def find(results: Results) -> str:
    """What lfom gains over no memory, and over the parameters of memory without it."""
    parts = []
    for name, shown in _CASES.items():
        gain, spread = _gain(results, name, "none")
        rest, rest_spread = _gain(results, name, _CONTROLS[0])
        rest = round(rest, 2)
        verb = "gains" if gain > spread else "loses" if gain < -spread else "changes nothing beyond the spread:"
        parts.append(
            f"with {shown} memory {verb} {gain:.2f} ± {spread:.2f} over the linear transformer and {rest + 0.0:.2f} ± "
            f"{rest_spread:.2f} over as many layers with a weight for each feature and no memory"
        )
    return (
        f"In natural logarithms of the squared error (mean; median where Bm is free) at {_LAYERS} layers, ± two "
        f"standard errors: {'; '.join(parts)}"
    )


def _gain(results: Results, panel: str, other: str) -> tuple[float, float]:
    """Log error of another rule less that of lfom, and twice the standard error of the difference."""
    curve: Series = results[panel].series[0]
    names = results[panel].categories
    plain, lfom = names.index(other), names.index("lfom")
    error = ((curve.spread(plain) ** 2 + curve.spread(lfom) ** 2) / len(curve.values)) ** 0.5
    return curve.mean(plain) - curve.mean(lfom), 2 * error


def _gains(results: Results) -> dict[str, float]:
    return {
        f"gain of lfom over '{other}', {shown}": _gain(results, name, other)[0]
        for name, shown in _CASES.items()
        for other in ("none", *_CONTROLS)
    }


def _builder(d: int, **arguments: Any) -> Callable[[int], Variant]:
    return lambda seed: network(seed, d, _LAYERS, **arguments)


def _starting(d: int, start: str) -> Callable[[int], Variant]:
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
    protocol="Non-isotropic tasks, 4 layers, the same recipe for all variants. Two controls have parameters and no "
    "memory: a weight for each layer and feature on the new register alone, and a second head. Where A is free, one "
    "head and no memory is the linear transformer. Parameters differ by at most a few dozen scalars of Gamma or beta, "
    "but for the second head, which doubles them.",
    run=run,
    judge=judge,
    find=find,
)
