"""Experiment 25: sparse recovery by learned iterative shrinkage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import lfom_solve
from memformer_lab.experiments.rows import rows_and_longer
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Published, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.runs.fitting import Recipe, fit, seeded
from memformer_lab.solvers.proximal import PROXIMAL, analytic_weights, coupled_preconditioner, decibels
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.sparse import SparseTasks

_LEARNED, _ANALYTIC, _SIZES = "LISTA-CP, learned weights", "ALISTA, analytic weights", "step sizes and thresholds alone"
_LINEAR, _AHEAD, _AS_GOOD = (
    "decibels fall in proportion to layers",
    "far below ISTA and FISTA",
    "analytic weights are as good as learned ones",
)
_PENALTIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
_LEVELS = (0.2, 0.01)
"""Thresholds that the first and the last layer begin with, those between in a geometric row."""
_FAR, _CLOSE = 10.0, 1.0
"""Decibels that are far, and that analytic weights may be behind learned ones."""
_STRIDE = 0.1
"""How far learned weights move for a change of 1 in their parameters: one rate serves them and logarithms."""


class Shrinkage(nn.Module):
    """w_{l+1} = soft(w_l + size_l W_l^T (y - D w_l), level_l): layers of `lfom_solve` with columns for codes.

    Args:
        tasks: their dictionary D.
        layers: layers.
        kind: one of the labels above: what is learned besides levels, W_l or sizes, and which W there is.
    """

    a: Tensor
    solved: Tensor
    start: Tensor

    def __init__(self, tasks: SparseTasks, layers: int, kind: str) -> None:
        super().__init__()
        dictionary = tasks.dictionary
        lipschitz = float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
        analysis = dictionary / lipschitz if kind == _SIZES else analytic_weights(dictionary)
        self.register_buffer("a", -coupled_preconditioner(dictionary, analysis).float())
        self.register_buffer("solved", torch.linalg.solve(dictionary @ dictionary.mT, dictionary).float())
        self.register_buffer("start", analysis.float())
        step = 1 / lipschitz if kind == _SIZES else 1.0
        first, last = (math.log(level * step) for level in _LEVELS)
        levels = torch.linspace(first, last, layers, device="cpu", dtype=torch.float32)
        self.log_level = nn.Parameter(levels[:, None])
        learned = kind == _LEARNED
        shape = (layers, *analysis.shape) if learned else (layers, 1, 1)
        self.change = nn.Parameter(torch.zeros(shape, device="cpu", dtype=torch.float32))
        self.learned = learned

    def forward(self, h: Tensor, b: Tensor) -> Tensor:
        """Codes after each layer, (L, B, d), of h (d, d) and b (B, d)."""
        learned = (self.start + _STRIDE * self.change).mT @ self.solved if self.learned else None
        a = self.change.exp() * self.a if learned is None else -learned
        codes = lfom_solve(h[None], b.mT[None], a, level=self.log_level.exp(), layers=True)
        return codes[:, 0].mT


def run(setting: Setting) -> Results:
    """Trains one network of each kind on the errors after all of its layers, and judges all on the same fresh codes."""
    tasks = setting.pick(tiny=SparseTasks(16, 10, 0.1), quick=SparseTasks(40, 20, 0.1), full=SparseTasks(200, 100, 0.1))
    layers = setting.pick(tiny=4, quick=8, full=16)
    recipe = Recipe(
        setting.pick(tiny=10, quick=300, full=3_000), setting.pick(tiny=32, quick=128, full=128), 0.01, warmup=20
    )
    judged = setting.pick(tiny=100, quick=2_000, full=10_000)
    places, curves = range(1, layers + 1), []
    for kind in (_LEARNED, _ANALYTIC, _SIZES):
        rows, longer = rows_and_longer(setting, recipe, partial(_trained, tasks, layers, judged, kind))
        curves.append(series(kind, places, rows, longer=longer))
    for name in PROXIMAL:
        rows = [_classical(name, tasks, layers, judged, seed) for seed in setting.seeds]
        curves.append(series(name, places, rows))
    title = f"Recovery of codes of {tasks.d} entries from {tasks.n} measurements without noise"
    panel = Panel("layers", title, "layers or steps", "squared error over that of zeros, dB", tuple(curves), digits=1)
    return Results((panel,))


def _trained(tasks: SparseTasks, layers: int, judged: int, kind: str, recipe: Recipe, seed: int) -> list[float]:
    """Decibels of one trained network after each of its layers."""
    model = seeded(partial(Shrinkage, tasks, layers, kind), seed)

    def loss(generator: Generator) -> Tensor:
        drawn = tasks.quadratics(recipe.batch, generator)
        errors = (model(drawn.h[0], drawn.b) - drawn.weights).square().sum((-2, -1))
        mean: Tensor = (errors / drawn.weights.square().sum()).log().mean()
        return mean

    fit(model, loss, recipe, seed)
    drawn = tasks.quadratics(judged, generator_for("evaluation", seed))
    with torch.no_grad():
        found: list[float] = decibels(model(drawn.h[0], drawn.b), drawn.weights).tolist()
    return found


def _classical(name: str, tasks: SparseTasks, steps: int, judged: int, seed: int) -> list[float]:
    """Decibels of a method after each number of steps, at the penalty that is best there on other codes."""
    tuning = tasks.quadratics(min(judged, 1_000), generator_for("training", seed))
    drawn = tasks.quadratics(judged, generator_for("evaluation", seed))
    tuned, found = (
        torch.stack([decibels(PROXIMAL[name](x.h, x.b, steps, penalty), x.weights) for penalty in _PENALTIES])
        for x in (tuning, drawn)
    )
    chosen: list[float] = found.gather(0, tuned.argmin(0, keepdim=True))[0].tolist()
    return chosen


def judge(results: Results) -> Sequence[Check]:
    """The second half of the layers takes off at least half of what the first does; 10 dB ahead; a decibel apart."""
    panel, checks = results["layers"], []
    last = panel.places[-1]
    for name in (_LEARNED, _ANALYTIC):
        text = f"{name}: what {last:g} layers leave less 1.5 times what {last / 2:g} do"
        checks.append(below(text, _halves(panel[name]), 0.0, last, part=_LINEAR))
        for method in PROXIMAL:
            text = f"{last:g} layers: {name} is {_FAR:g} dB below {method}"
            checks.append(below(text, panel[name], panel[method], last, -_FAR, part=_AHEAD))
    text = f"{last:g} layers: {_ANALYTIC} are within {_CLOSE:g} dB of {_LEARNED}"
    checks.append(below(text, panel[_ANALYTIC], panel[_LEARNED], last, _CLOSE, part=_AS_GOOD))
    for name in PROXIMAL:
        text = f"control, {name}: what {last:g} steps leave less 1.5 times what {last / 2:g} do"
        checks.append(below(text, _halves(panel[name]), 0.0, last, essential=False))
    text = f"{last:g} layers: {_SIZES} are {_FAR:g} dB below FISTA"
    return [*checks, below(text, panel[_SIZES], panel["FISTA"], last, -_FAR, essential=False)]


def _halves(curve: Series) -> Series:
    """Decibels after all layers less 1.5 times those after half of them.

    At most 0 where the second half takes off at least half of what the first does.
    """
    last, half = len(curve.x) - 1, len(curve.x) // 2 - 1

    def change(rows: Sequence[Sequence[float]]) -> list[list[float]]:
        return [[row[last] - 1.5 * row[half]] for row in rows]

    return series(curve.label, curve.x[-1:], change(curve.values), longer=change(curve.longer))


def find(results: Results) -> str:
    """Decibels of all after the last layer."""
    panel = results["layers"]
    last = panel.places[-1]
    told = "; ".join(f"{one.label} {one.mean(last):.1f}" for one in panel.series)
    return f"decibels after {last:g} layers or steps: {told}"


EXPERIMENT = Experiment(
    number=25,
    name="sparse",
    title="Sparse recovery by learned iterative shrinkage",
    claim="Networks whose layers are steps of iterative shrinkage with coupled weights and learned thresholds recover "
    "sparse codes with an error that falls geometrically with layers, far below those of ISTA and FISTA after as many "
    "steps, and with analytic weights, where only a step size and a threshold a layer are learned, as well as with "
    "learned ones.",
    source="Chen et al., arXiv 1808.10038 (LISTA-CP); Liu et al., ICLR 2019 (ALISTA)",
    protocol="Codes have Bernoulli-Gaussian entries, a tenth of which are not 0, one dictionary with columns of norm 1 "
    "serves all tasks, and measurements have no noise; there are 200 entries and 100 measurements, two fifths of the "
    "published sizes. Networks are layers of lfom_solve with level. One network of each kind is trained, end to end, "
    "on the mean over layers of ln of the error, and its curve is read after each layer; the publications train layer "
    "by layer and a hundred times as long. Learned weights begin at analytic ones. Support selection, which the second "
    "publication has in all networks, is not served. ISTA and FISTA have the penalty that is best at each number of "
    "steps on other codes. Errors are sums of squares over those of the codes, in decibels.",
    asks="noise, other sparsities, support selection, and a dictionary that differs from task to task, which analytic "
    "weights cannot know",
    minutes=15,
    run=run,
    judge=judge,
    find=find,
    published=(Published("errors against layers up to 16: figures 1 and 2 of Chen et al., figure 1 of Liu et al."),),
)
