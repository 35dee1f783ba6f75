"""Experiment 20: tasks of different noise, and which networks adapt to each task's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import half_widths
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.runs.fitting import Recipe, fit_memformer, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.tasks.gaussian import TaskBatch
from memformer_lab.tasks.mixed_noise import MixedNoiseTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LARGEST = 5, 20, 3.0
_PLACES = ("OLS", "constant ridge", "tuned adaptive ridge", "ridge of the known noise")
OLS, CONSTANT, ADAPTIVE, ORACLE = _PLACES
BLOCK, DENSE = "Bm free (block)", "all of P and Q free (dense)"
_STRUCTURES = {BLOCK: "block", DENSE: "dense"}
_RESOLUTION = 0.02
_PARTS = ("a network does better than any constant ridge", "a network reaches tuned adaptive ridge")


def run(setting: Setting) -> Results:
    """Tunes the penalties on separate tasks, trains networks without memory, and judges all on the same fresh tasks."""
    tasks = MixedNoiseTasks(_D, _N, _LARGEST)
    depths = setting.pick(tiny=(1,), quick=(2, 4), full=(1, 2, 4))
    tuning = setting.pick(tiny=200, quick=5_000, full=100_000)
    constant, adaptive = _tuned(tasks, tuning, setting.seed)
    rules = {OLS: (1e-9, 0.0), CONSTANT: (constant, 0.0), ADAPTIVE: adaptive}
    models = {
        label: [[_trained(setting, tasks, name, depth, seed) for depth in depths] for seed in setting.seeds]
        for label, name in _STRUCTURES.items()
    }
    further = {
        label: [
            [_trained(setting, tasks, name, depth, setting.seeds[0], which) for depth in depths] for which in (0, 1)
        ]
        for label, name in _STRUCTURES.items()
    }
    flat = [one for grids in (models, further) for rows in grids.values() for row in rows for one in row]

    def sample(batch: int, generator: Generator) -> Tensor:
        drawn, sigma = tasks.with_noise(batch, generator)
        statistics = _statistics(drawn)
        weights = [_ridge(statistics, *pair) for pair in rules.values()]
        weights.append(_solve(statistics, sigma.square() / _N))
        errors = [(one - drawn.weights).square().sum(-1) for one in weights]
        # The squared error of a random query, whose expectation is that of the weights.
        errors += [(model.predict(drawn.z, context=_N) - drawn.target).square().mean(-1) for model in flat]
        return torch.stack(errors)

    count = setting.pick(tiny=300, quick=20_000, full=400_000)
    found = iter(estimate(sample, count, setting.seed))
    curves = []
    for label in _PLACES:
        one = next(found)
        curves.append(series(label, depths, [one.log_mean] * len(depths), sampling=half_widths([[one] * len(depths)])))
    judged = {
        (kind, label): [[next(found) for _ in row] for row in rows]
        for kind, grids in (("models", models), ("further", further))
        for label, rows in grids.items()
    }
    for label in _STRUCTURES:
        values, longer = (
            [[one.log_mean for one in row] for row in judged[kind, label]] for kind in ("models", "further")
        )
        curves.append(series(label, depths, values, sampling=half_widths(judged["models", label]), longer=longer))
    title = f"Noise of each task uniform up to {_LARGEST:g}, d = {_D}, n = {_N}, fresh tasks"
    panel = Panel("noise", title, "layers", "ln mean squared error", tuple(curves), digits=3)
    numbers = {
        "penalty of constant ridge": constant,
        "constant part of the adaptive penalty": adaptive[0],
        "share of the estimated noise in the adaptive penalty": adaptive[1],
    }
    return Results((panel,), numbers)


def _trained(
    setting: Setting, tasks: MixedNoiseTasks, structure: str, depth: int, seed: int, further: int | None = None
) -> Memformer:
    steps, batch = setting.pick(tiny=3, quick=400, full=6000), setting.pick(tiny=8, quick=128, full=256)
    recipe = Recipe(steps, batch, 0.01, warmup=setting.pick(tiny=1, quick=20, full=200))
    model = memformer(seed, _D, depth, rule="linear", structure=structure)
    fit_memformer(model, tasks.tokens, recipe if further is None else recipe.further()[further], seed)
    return model


def _statistics(drawn: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
    """H, b and the unbiased estimate of the noise's variance from the residuals of least squares, in float64."""
    z = drawn.z.double()
    h, b = quadratics_of(z, drawn.context)
    response = z[:, : drawn.context, -1].square().mean(1)
    explained = (b * torch.linalg.solve(h, b)).sum(-1)
    noise = (response - explained).clamp(min=0) * (_N / (_N - _D))
    return h, b, noise


def _ridge(statistics: tuple[Tensor, Tensor, Tensor], constant: float, share: float) -> Tensor:
    """Ridge regression with the penalty (constant + share * estimated variance) / n."""
    return _solve(statistics, (constant + share * statistics[2]) / _N)


def _solve(statistics: tuple[Tensor, Tensor, Tensor], penalty: Tensor) -> Tensor:
    h, b, _ = statistics
    identity = torch.eye(_D, dtype=torch.float64, device=h.device)
    solution: Tensor = torch.linalg.solve(h + penalty.double()[:, None, None] * identity, b)
    return solution


def _tuned(tasks: MixedNoiseTasks, count: int, seed: int) -> tuple[float, tuple[float, float]]:
    """The best constant, and the best pair of `_ridge`, on tasks that no model is judged on; without randomness."""
    drawn = tasks.tokens(count, generator_for("training", seed, 1))
    statistics = _statistics(drawn)

    def error(logs: Sequence[float]) -> float:
        constant, share = (*np.exp(logs), 0.0)[:2]
        return float((_ridge(statistics, constant, share) - drawn.weights).square().sum(-1).mean())

    options = {"xatol": 1e-3, "fatol": 1e-6, "maxiter": 120}
    (constant,) = np.exp(minimize(error, [0.0], method="Nelder-Mead", options=options).x)
    pair = np.exp(minimize(error, [math.log(constant) - 1, -0.5], method="Nelder-Mead", options=options).x)
    return float(constant), (float(pair[0]), float(pair[1]))


def judge(results: Results) -> Sequence[Check]:
    """At the largest depth: the dense network against both kinds of ridge; what the block reads allows the constant."""
    panel = results["noise"]
    last = panel.places[-1]
    dense, block = panel[DENSE], panel[BLOCK]
    text = f"{{}} is below {{}} by {_RESOLUTION}, {last:g} layers"
    return [
        below(text.format(DENSE, CONSTANT), dense, panel[CONSTANT], last, -_RESOLUTION, part=_PARTS[0]),
        below(
            f"{DENSE} is within {_RESOLUTION} of {ADAPTIVE}", dense, panel[ADAPTIVE], last, _RESOLUTION, part=_PARTS[1]
        ),
        below(
            f"{BLOCK} is within {_RESOLUTION} of {CONSTANT}", block, panel[CONSTANT], last, _RESOLUTION, essential=False
        ),
        below(text.format(BLOCK, CONSTANT), block, panel[CONSTANT], last, -_RESOLUTION, essential=False),
        below(f"{DENSE} is within {_RESOLUTION} of {ORACLE}", dense, panel[ORACLE], last, _RESOLUTION, essential=False),
    ]


def find(results: Results) -> str:
    """At the largest depth."""
    panel = results["noise"]
    last = panel.places[-1]
    block, dense, constant, adaptive = (panel[name].mean(last) for name in (BLOCK, DENSE, CONSTANT, ADAPTIVE))
    return (
        f"With {last:g} layers a dense network reaches {dense:.3f}, tuned adaptive ridge {adaptive:.3f}; one with Bm "
        f"free reaches {block:.3f}, the best constant ridge {constant:.3f}."
    )


EXPERIMENT = Experiment(
    number=20,
    name="mixed-noise",
    title="Mixed noise: ridge that adapts to the task",
    claim="Linear Transformers trained on tasks of different noise do better than ridge regression of any constant "
    "penalty, and as well as one whose penalty adapts to each task's estimated noise.",
    source="Vladymyrov et al., arXiv 2402.14180",
    protocol="x ~ N(0, I), w* ~ N(0, I), the noise's standard deviation uniform for each task; queries have none. "
    "Networks have no memory: with Bm free a prediction depends on H and b alone, with P and Q dense on y^T y too, "
    "which tells the noise. Constant ridge has the best penalty over all tasks; adaptive ridge the penalty (c + s v) / "
    "n with v the unbiased estimate of the variance from least squares, c and s the best over all tasks; both are "
    "tuned on separate tasks. Ridge of the known noise is the optimum of all. Networks are judged on one random query "
    "a task, ridge in expectation over it. No optimum is known for the networks.",
    asks="noise drawn from a distribution with heavier tails, and networks with memory",
    minutes=3,
    run=run,
    judge=judge,
    find=find,
)
