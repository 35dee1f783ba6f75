"""Experiment 22: Newton's iteration by weights that are written down."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_lab.experiments.common import ISOTROPIC, NONISOTROPIC, relative_difference, worst
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Published, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, at_most, close
from memformer_lab.solvers.estimates import log_of
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.solvers.newton import carried_inverse, newton_inverse, newton_network, newton_tokens
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _ALPHA, _QUERIES = 5, 20, 0.02, 4
_ITERATIONS = (0, 1, 2, 4, 8, 12, 16)
_EXACT, _SIZE, _DOUBLES = "k iterations, exactly", "by k + O(1) layers of size O(d)", "digits double with every layer"
_EXTRA, _WIDTH, _HEADS = "layers less iterations", "numbers in a token, over d", "heads"
_UNSCALED = "the values without their powers of two: least relative difference"


def run(setting: Setting) -> Results:
    """Builds a network for each number of iterations and runs it on fresh tasks in float64."""
    batch = setting.pick(tiny=8, quick=200, full=2000)
    panels = []
    kinds = {
        ISOTROPIC: GaussianTasks.isotropic(_D, _N, dtype=torch.float64),
        NONISOTROPIC: GaussianTasks.nonisotropic(_N, rotation_seed=setting.seed, dtype=torch.float64),
    }
    found = {kind: [_of_seed(tasks, batch, seed) for seed in setting.seeds] for kind, tasks in kinds.items()}
    for place, (name, title) in enumerate(
        {
            "inverse": "M_k that the network carries: relative difference from the iteration, float64",
            "prediction": "Predictions: relative difference from those of the iteration, float64",
            "residual": "What is left of I - M_k S: ln of its largest eigenvalue, median over tasks, carried M_k",
        }.items()
    ):
        curves = tuple(
            series(f"{kind} tasks", _ITERATIONS, [seed[place] for seed in rows]) for kind, rows in found.items()
        )
        logarithmic = name != "residual"
        y_label = "relative difference" if logarithmic else "ln of the largest eigenvalue"
        panels.append(Panel(name, title, "iterations", y_label, curves, log_y=logarithmic))
    model = newton_network(_D, _ITERATIONS[-1], _ALPHA)
    numbers = {
        _EXTRA: float(model.layers - _ITERATIONS[-1]),
        _WIDTH: (model.d + 1) / _D,
        _HEADS: float(model.heads),
        _UNSCALED: min(_unscaled(tasks, batch, setting.seed) for tasks in kinds.values()),
    }
    return Results(tuple(panels), numbers)


def judge(results: Results) -> Sequence[Check]:
    """To rounding at every number of iterations; the size counted; ln of the residual twice as large each time."""
    checks = []
    for name in ("inverse", "prediction"):
        for curve in results[name].series:
            largest = worst(value for x in curve.x for value in curve.column(x))
            checks.append(at_most(f"{name}, {curve.label}: the worst of all iterations", largest, 1e-10, part=_EXACT))
    numbers = results.numbers
    checks.append(at_most(_EXTRA, numbers[_EXTRA], 2, part=_SIZE))
    checks.append(at_most(f"{_WIDTH}, d = {_D}", numbers[_WIDTH], 2 + 1 / _D, part=_SIZE))
    checks.append(at_most(_HEADS, numbers[_HEADS], 1, part=_SIZE))
    for curve in results["residual"].series:
        for before, after in ((1, 2), (2, 4), (4, 8)):
            name = f"{curve.label}: ln residual after {after} iterations over that after {before}"
            ratio = curve.mean(after) / curve.mean(before)
            checks.append(close(name, ratio, 2.0 ** (after - before), 0.01, part=_DOUBLES))
    return [*checks, at_least(f"control, {_UNSCALED}", numbers[_UNSCALED], 0.01, essential=False)]


def find(results: Results) -> str:
    """The size, and the largest difference from the iteration."""
    largest = max(
        curve.mean(x) for name in ("inverse", "prediction") for curve in results[name].series for x in curve.x
    )
    numbers, residual = results.numbers, results["residual"]
    last = residual.places[-1]
    left = " and ".join(f"e^{one.mean(last):.1f} ({one.label})" for one in residual.series)
    return (
        f"k + {numbers[_EXTRA]:.0f} layers of {numbers[_HEADS]:.0f} head on tokens of {numbers[_WIDTH] * _D:.0f} "
        f"numbers for d = {_D} run k iterations, and differ from them by {largest:.0e}; after {last:g} "
        f"iterations the median residual is {left}"
    )


def _of_seed(tasks: GaussianTasks, batch: int, seed: int) -> tuple[list[float], list[float], list[float]]:
    """For each number of iterations the differences of M_k and of predictions, and ln of the residual."""
    z = tasks.tokens(batch, generator_for("evaluation", seed), queries=_QUERIES).z
    s, b = quadratics_of(z, _N)
    inverses, predictions, residuals = [], [], []
    for iterations in _ITERATIONS:
        expected = newton_inverse(s, iterations, _ALPHA)
        answers = (z[:, _N:, :-1] @ (expected @ b.unsqueeze(-1))).squeeze(-1)
        model = newton_network(_D, iterations, _ALPHA)
        with torch.no_grad():
            carried = carried_inverse(model, z, _N)
            predicted = model.predict(newton_tokens(z), context=_N)
        inverses.append(relative_difference(carried, expected))
        predictions.append(relative_difference(predicted, answers))
        left = torch.eye(_D, dtype=s.dtype, device=s.device) - carried @ s
        residuals.append(log_of(float(torch.linalg.eigvals(left).abs().amax(-1).median())))
    return inverses, predictions, residuals


def _unscaled(tasks: GaussianTasks, batch: int, seed: int) -> float:
    """How far predictions are from the iteration where the layers' values are not scaled by powers of two."""
    z = tasks.tokens(batch, generator_for("evaluation", seed), queries=_QUERIES).z
    s, b = quadratics_of(z, _N)
    apart = []
    for iterations in _ITERATIONS[2:]:
        model = newton_network(_D, iterations, _ALPHA)
        assert model.p is not None
        with torch.no_grad():
            model.p[1:] = model.p[1:].sign()
            predicted = model.predict(newton_tokens(z), context=_N)
        answers = (z[:, _N:, :-1] @ (newton_inverse(s, iterations, _ALPHA) @ b.unsqueeze(-1))).squeeze(-1)
        apart.append(relative_difference(predicted, answers))
    return min(apart)


EXPERIMENT = Experiment(
    number=22,
    name="newton",
    title="Newton's iteration by construction",
    claim="There are weights, fixed for all tasks, by which a Transformer of k + O(1) layers and hidden size O(d) runs "
    "k iterations of Newton's method for the inverse, and so converges in depth like a second-order method.",
    source="Fu et al., arXiv 2310.17086, theorem 5.1; Giannou et al., arXiv 2403.03183",
    protocol="The weights are written down and nothing is trained. Linear attention alone, without memory or a "
    "feed-forward block: one layer for M_0 = alpha S, one for each iteration, one for the prediction, one head each, "
    f"on tokens (x, u, y) that carry 2^-k M_k x in u; d = {_D}, n = {_N}, alpha = {_ALPHA}, float64, on isotropic "
    "tasks and on the non-isotropic ones of Dutta & Sra. M_k is read from unit queries before the last layer and "
    "compared with the iteration itself, and predictions with x^T M_k b. Giannou et al. take two layers of linear "
    "attention a step.",
    asks="whether training finds these weights, and how a network chooses alpha for each task, which the theorem "
    "leaves open",
    minutes=1,
    run=run,
    judge=judge,
    find=find,
    published=(Published("layers of linear attention for one step, Giannou et al.", (2.0,)),),
)
