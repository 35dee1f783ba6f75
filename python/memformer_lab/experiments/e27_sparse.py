"""Experiment 27: sparse recovery by learned iterative shrinkage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Published, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.runs.fitting import Recipe, fit
from memformer_lab.runs.shrinkage import Shrinkage
from memformer_lab.solvers.proximal import PROXIMAL, analytic_weights, decibels
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.sparse import SparseTasks

_LEARNED, _ANALYTIC, _SIZES = "LISTA-CP, learned weights", "ALISTA, analytic weights", "step sizes and thresholds alone"
_GEOMETRIC, _AHEAD, _AS_GOOD = (
    "the error falls geometrically",
    "far below ISTA and FISTA",
    "analytic weights are as good as learned ones",
)
_PENALTIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
_LEVELS = (0.2, 0.01)
"""Thresholds that the first and the last layer begin with, those between in a geometric row."""
_DECIBEL = 0.1 * math.log(10.0)
_FAR, _CLOSE = 10 * _DECIBEL, _DECIBEL
"""What is far, and what analytic weights may be behind learned ones, as logarithms of errors."""


def run(setting: Setting) -> Results:
    """Trains networks of each kind on the errors after all of their layers, and judges all on the same fresh codes."""
    d, n = setting.pick(tiny=(16, 10), quick=(50, 25), full=(250, 125))
    layers = setting.pick(tiny=4, quick=8, full=16)
    judged = setting.pick(tiny=100, quick=2_000, full=4_000)
    batch, warmup = setting.pick(tiny=32, quick=64, full=64), setting.pick(tiny=1, quick=20, full=50)
    few = Recipe(setting.pick(tiny=10, quick=200, full=500), batch, 0.02, warmup=warmup)
    many = Recipe(setting.pick(tiny=10, quick=400, full=1_200), batch, 0.01, warmup=warmup)
    first = setting.seeds[0]
    tasks = {seed: SparseTasks(d, n, 0.1, dictionary_seed=seed) for seed in setting.seeds}
    curves: dict[str, Series] = {}
    trained: dict[int, Shrinkage] = {}
    for kind in (_SIZES, _ANALYTIC):
        trained = {seed: _trained(_begun(tasks[seed], layers, kind), tasks[seed], few, seed) for seed in setting.seeds}
        further = (_trained(_begun(tasks[first], layers, kind), tasks[first], one, first) for one in few.further())
        curves[kind] = _curve(kind, trained, further, tasks, judged)
    # What analytic weights came to is where learned ones begin.
    trained, begin = {seed: _trained(_freed(one), tasks[seed], many, seed) for seed, one in trained.items()}, trained
    further = (_trained(_freed(begin[first]), tasks[first], one, first) for one in many.further())
    curves[_LEARNED] = _curve(_LEARNED, trained, further, tasks, judged)
    for name in PROXIMAL:
        rows = [_classical(name, one, layers, judged, seed) for seed, one in tasks.items()]
        curves[name] = series(name, range(1, layers + 1), rows)
    order = (_LEARNED, _ANALYTIC, _SIZES, *PROXIMAL)
    panel = Panel(
        "layers",
        f"Recovery of codes of {d} entries from {n} measurements without noise",
        "layers or steps",
        "ln of the squared error over that of zeros",
        tuple(curves[name] for name in order),
    )
    return Results((panel,))


def _begun(tasks: SparseTasks, layers: int, kind: str) -> Shrinkage:
    """A network that learns sizes and thresholds, with analytic weights or with those of ISTA."""
    dictionary, step = tasks.dictionary, 1.0
    if kind == _SIZES:
        step = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    levels = [step * float(level) for level in np.geomspace(*_LEVELS, layers)]
    weights = step * dictionary if kind == _SIZES else analytic_weights(dictionary)
    return Shrinkage(dictionary, weights, levels, learned=False)


def _freed(model: Shrinkage) -> Shrinkage:
    """The same network with all entries of its weights to learn."""
    levels = model.log_level.exp().tolist()
    return Shrinkage(model.dictionary, model.matrices.detach(), levels, learned=True)


def _trained(model: Shrinkage, tasks: SparseTasks, recipe: Recipe, seed: int) -> Shrinkage:
    def loss(generator: Generator) -> Tensor:
        y, codes = tasks.measurements(recipe.batch, generator)
        errors = (model(y) - codes).square().sum((-2, -1))
        mean: Tensor = (errors / codes.square().sum()).log().mean()
        return mean

    fit(model, loss, recipe, seed)
    return model


def _curve(
    label: str,
    trained: dict[int, Shrinkage],
    further: Iterator[Shrinkage],
    tasks: dict[int, SparseTasks],
    judged: int,
) -> Series:
    """A row of each network; `further` are those of the first seed that were trained for longer."""

    def row(model: Shrinkage, seed: int) -> list[float]:
        y, codes = tasks[seed].measurements(judged, generator_for("evaluation", seed))
        with torch.no_grad():
            errors: list[float] = (_DECIBEL * decibels(model.codes(y), codes)).tolist()
        return errors

    rows = [row(model, seed) for seed, model in trained.items()]
    longer = [row(model, next(iter(trained))) for model in further]
    return series(label, range(1, len(rows[0]) + 1), rows, longer=longer)


def _classical(name: str, tasks: SparseTasks, steps: int, judged: int, seed: int) -> list[float]:
    """Errors of a method after each number of steps, at the penalty that is best there on other codes."""
    tuning = tasks.quadratics(min(judged, 1_000), generator_for("training", seed, 1))
    drawn = tasks.quadratics(judged, generator_for("evaluation", seed))
    tuned, found = (
        torch.stack([decibels(PROXIMAL[name](x.h, x.b, steps, penalty), x.weights) for penalty in _PENALTIES])
        for x in (tuning, drawn)
    )
    chosen: list[float] = (_DECIBEL * found.gather(0, tuned.argmin(0, keepdim=True))[0]).tolist()
    return chosen


def judge(results: Results) -> Sequence[Check]:
    """The second half of the layers takes off at least half of what the first does; 10 dB ahead; a decibel apart."""
    panel, checks = results["layers"], []
    last = panel.places[-1]
    for name in (_LEARNED, _ANALYTIC):
        text = f"{name}: ln error after {last:g} layers less 1.5 times that after {last / 2:g}"
        checks.append(below(text, _halves(panel[name]), 0.0, last, part=_GEOMETRIC))
        for method in PROXIMAL:
            text = f"{last:g} layers: {name} is 10 dB below {method}"
            checks.append(below(text, panel[name], panel[method], last, -_FAR, part=_AHEAD))
    text = f"{last:g} layers: {_ANALYTIC} is within 1 dB of {_LEARNED}"
    checks.append(below(text, panel[_ANALYTIC], panel[_LEARNED], last, _CLOSE, part=_AS_GOOD))
    for name in PROXIMAL:
        text = f"control, {name}: ln error after {last:g} steps less 1.5 times that after {last / 2:g}"
        checks.append(below(text, _halves(panel[name]), 0.0, last, essential=False))
    text = f"{last:g} layers: {_SIZES} are 10 dB below FISTA"
    return [*checks, below(text, panel[_SIZES], panel["FISTA"], last, -_FAR, essential=False)]


def _halves(curve: Series) -> Series:
    """ln error after all layers less 1.5 times that after half of them.

    At most 0 where the second half takes off at least half of what the first does.
    """
    last, half = len(curve.x) - 1, len(curve.x) // 2 - 1

    def change(rows: Sequence[Sequence[float]]) -> list[list[float]]:
        return [[row[last] - 1.5 * row[half]] for row in rows]

    return series(curve.label, curve.x[-1:], change(curve.values), longer=change(curve.longer))


def find(results: Results) -> str:
    """Decibels of all after half of the layers and after the last."""
    panel = results["layers"]
    last = panel.places[-1]
    told = "; ".join(
        f"{one.label} {one.mean(last / 2) / _DECIBEL:.1f} and {one.mean(last) / _DECIBEL:.1f}" for one in panel.series
    )
    return f"decibels after {last / 2:g} and {last:g} layers or steps: {told}"


EXPERIMENT = Experiment(
    number=27,
    name="sparse",
    title="Sparse recovery by learned iterative shrinkage",
    claim="Networks whose layers are steps of iterative shrinkage with coupled weights and learned thresholds recover "
    "sparse codes with an error that falls geometrically with layers, far below those of ISTA and FISTA after as many "
    "steps, and with analytic weights, where only a step size and a threshold a layer are learned, as well as with "
    "learned ones.",
    source="Chen et al., arXiv 1808.10038, theorem 2 (LISTA-CP); Liu et al., ICLR 2019 (ALISTA)",
    protocol="Entries of codes are N(0, 1), a tenth of them, and 0 else. One dictionary with Gaussian columns of norm "
    "1 serves all codes, another one for each seed, and measurements have no noise; there are 250 entries and 125 "
    "measurements, half of the published sizes. Networks are layers of lfom_solve with level. Each is trained end to "
    "end on the mean over layers of ln of the error, and its curve is read after each layer; the publications train "
    "layer by layer and for longer. Learned weights begin at the trained network with analytic ones, so that what they "
    "gain is what weights are worth. Support selection, which the second publication has in its networks, is not "
    "served. ISTA and FISTA have the penalty that is best at each number of steps on other codes. Far is 10 decibels, "
    "as good as is within 1 decibel. Geometrically: the second half of the layers takes at least half as much off ln "
    "of the error as the first does; the controls show what the rule says of ISTA and FISTA.",
    asks="noise, other sparsities, support selection, and a dictionary that differs from task to task, which analytic "
    "weights cannot know",
    minutes=12,
    run=run,
    judge=judge,
    find=find,
    published=(
        Published("errors in decibels against layers up to 16 for 500 entries and 250 measurements: curves in both"),
    ),
)
