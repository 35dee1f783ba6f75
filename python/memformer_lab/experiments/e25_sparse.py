"""Experiment 25: sparse recovery by learned iterative shrinkage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import lfom_solve
from memformer_lab.experiments.rows import rows_and_longer
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.runs.fitting import Recipe, fit, seeded
from memformer_lab.solvers.proximal import PROXIMAL, analytic_weights, coupled_preconditioner, decibels
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.sparse import SparseTasks

_MATRICES, _ANALYTIC = "LISTA, a matrix a layer", "ALISTA, analytic weights"
_MEMORY = "LFOM with thresholds, no matrix"
_AHEAD, _AS_GOOD = "learned shrinkage is ahead of ISTA and FISTA", "analytic weights are as good as learned ones"
_PENALTIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
_START = 0.1
_CLOSE = 1.0
"""Decibels that analytic weights may be behind learned ones."""


class Shrinkage(nn.Module):
    """Layers of `lfom_solve` that end in soft thresholding by a level each.

    Args:
        layers: layers.
        start: A (d, d), which all layers begin with, a step included.
        level: that all layers begin with.
        learned: which of "matrices" (A_l), "sizes" (a step size a layer) or "memory" (gamma of all registers).
    """

    a: Tensor

    def __init__(self, layers: int, start: Tensor, level: float, learned: str) -> None:
        super().__init__()
        a = -start.float().repeat(layers, 1, 1)
        gamma = torch.eye(layers, device="cpu", dtype=torch.float32)
        gamma = gamma.diagonal().clone() if learned == "sizes" else gamma[:, :, None]
        if learned == "matrices":
            self.a = nn.Parameter(a)
        else:
            self.register_buffer("a", a)
        self.gamma = None if learned == "matrices" else nn.Parameter(gamma)
        self.level = nn.Parameter(torch.full((layers, 1), level, device="cpu", dtype=torch.float32))

    def forward(self, h: Tensor, b: Tensor) -> Tensor:
        """Codes (B, d) of quadratics h (B, d, d) and b (B, d)."""
        gamma: Tensor | None = self.gamma
        if gamma is not None and gamma.ndim == 1:
            gamma = gamma.diag()[:, :, None]
        return lfom_solve(h, b, self.a, gamma, level=self.level)


def run(setting: Setting) -> Results:
    """Trains a network for each depth, and judges all on the same fresh codes."""
    tasks = setting.pick(tiny=SparseTasks(16, 10, 0.1), quick=SparseTasks(40, 20, 0.1), full=SparseTasks(100, 50, 0.1))
    depths = setting.pick(tiny=(1, 2), quick=(2, 4, 8), full=(2, 4, 8, 16))
    recipe = Recipe(
        setting.pick(tiny=10, quick=300, full=2_000), setting.pick(tiny=32, quick=128, full=256), 0.003, warmup=5
    )
    judged = setting.pick(tiny=100, quick=2_000, full=10_000)
    lipschitz = float(torch.linalg.matrix_norm(tasks.dictionary, 2)) ** 2
    plain = torch.eye(tasks.d, dtype=torch.float64, device="cpu") / lipschitz
    analytic = coupled_preconditioner(tasks.dictionary, analytic_weights(tasks.dictionary))
    makers = {
        _MATRICES: lambda depth: Shrinkage(depth, plain, _START / lipschitz, "matrices"),
        _ANALYTIC: lambda depth: Shrinkage(depth, analytic, _START, "sizes"),
        _MEMORY: lambda depth: Shrinkage(depth, plain, _START / lipschitz, "memory"),
    }
    curves = []
    for label, make in makers.items():
        rows, longer = rows_and_longer(setting, recipe, partial(_errors, tasks, depths, judged, make))
        curves.append(series(label, depths, rows, longer=longer))
    for name in PROXIMAL:
        rows = [_classical(name, tasks, depths, judged, seed) for seed in setting.seeds]
        curves.append(series(name, depths, rows))
    title = f"Recovery of codes of {tasks.d} entries from {tasks.n} measurements without noise"
    return Results(
        (Panel("depth", title, "layers or steps", "squared error over that of zeros, dB", tuple(curves)),), {}
    )


def _errors(
    tasks: SparseTasks, depths: Sequence[int], judged: int, make: Callable[[int], nn.Module], recipe: Recipe, seed: int
) -> list[float]:
    """Decibels of a trained network for each depth."""
    drawn, found = tasks.quadratics(judged, generator_for("evaluation", seed)), []
    for depth in depths:
        model = seeded(partial(make, depth), seed)

        def loss(generator: Generator, model: nn.Module = model) -> Tensor:
            batch = tasks.quadratics(recipe.batch, generator)
            left: Tensor = (model(batch.h, batch.b) - batch.weights).square().sum() / batch.weights.square().sum()
            return left

        fit(model, loss, recipe, seed)
        with torch.no_grad():
            found.append(float(decibels(model(drawn.h, drawn.b), drawn.weights)))
    return found


def _classical(name: str, tasks: SparseTasks, depths: Sequence[int], judged: int, seed: int) -> list[float]:
    """Decibels of a method after each number of steps, at the penalty that is best there on other codes."""
    tuning = tasks.quadratics(min(judged, 1_000), generator_for("training", seed))
    drawn, steps = tasks.quadratics(judged, generator_for("evaluation", seed)), depths[-1]
    tuned = torch.stack([decibels(PROXIMAL[name](tuning.h, tuning.b, steps, p), tuning.weights) for p in _PENALTIES])
    found = torch.stack([decibels(PROXIMAL[name](drawn.h, drawn.b, steps, p), drawn.weights) for p in _PENALTIES])
    return [float(found[int(tuned[:, depth - 1].argmin()), depth - 1]) for depth in depths]


def judge(results: Results) -> Sequence[Check]:
    """Learned matrices below both methods at every depth, analytic weights within a decibel of learned ones."""
    panel, checks = results["depth"], []
    for depth in panel[_MATRICES].x:
        for name in PROXIMAL:
            text = f"{depth:g} layers: LISTA is below {name}"
            checks.append(below(text, panel[_MATRICES], panel[name], depth, part=_AHEAD))
        text = f"{depth:g} layers: analytic weights are within a decibel of learned ones"
        checks.append(below(text, panel[_ANALYTIC], panel[_MATRICES], depth, _CLOSE, part=_AS_GOOD))
        text = f"{depth:g} layers: memory and thresholds without a matrix are below FISTA"
        checks.append(below(text, panel[_MEMORY], panel["FISTA"], depth, essential=False))
    return checks


def find(results: Results) -> str:
    """Decibels of all at the largest depth."""
    panel = results["depth"]
    last = panel.series[0].x[-1]
    told = "; ".join(f"{one.label} {one.mean(last):.1f}" for one in panel.series)
    return f"decibels after {last:g} layers or steps: {told}"


EXPERIMENT = Experiment(
    number=25,
    name="sparse",
    title="Sparse recovery by learned iterative shrinkage",
    claim="A network whose layers are steps of iterative shrinkage with learned matrices and thresholds recovers "
    "sparse codes better than as many steps of ISTA or FISTA, and with analytic weights, where only a step size and a "
    "threshold a layer are learned, as well as with learned ones.",
    source="Gregor & LeCun, 2010; Chen et al., arXiv 1808.10038; Liu et al., ICLR 2019 (ALISTA)",
    protocol="Codes have Bernoulli-Gaussian entries, a tenth of which are not 0, one dictionary with columns of norm 1 "
    "serves all tasks, and measurements have no noise; there are 100 entries and 50 measurements, a fifth of the "
    "published sizes. Networks are layers of lfom_solve with level; each depth is trained by itself and end to end, "
    "where the publications train layer by layer, and without support selection. ISTA and FISTA have the penalty that "
    "is best at each number of steps on other codes. Errors are sums of squares over those of the codes, in decibels. "
    "A further row learns gamma of all registers and thresholds with multiples of the identity as matrices.",
    asks="noise, other sparsities, and a dictionary that differs from task to task, which one matrix a layer cannot "
    "know",
    minutes=60,
    run=run,
    judge=judge,
    find=find,
)
