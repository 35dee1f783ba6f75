"""Experiment 21: the loss landscape of shallow linear Transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from memformer_lab.experiments.landscape import Algorithm, D, Landscape, N, Path, fresh, gradient_noise, train
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.solvers.tails import tail_index
from memformer_lab.tasks.families import FamilyTasks
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 3
_RATES = (0.005, 0.02, 0.08)
_ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
_NOISY = (("sphere", 3), ("linear", 1), ("linear", 3), ("gamma-scaled", 3))
_PLACES = tuple(f"{family}, {layers} layers" for family, layers in _NOISY)
_TAIL = 0.05
_FASTER, _NOISE = "Adam trains faster than SGD", "gradient noise is heavy-tailed, more so with heavier data"
_CONDITION, _SMOOTH = "SGD's path is worse conditioned", "smoothness grows with the gradient"


def run(setting: Setting) -> Results:
    """Trains by both algorithms, measures curvature on their paths, and gradient noise at the start."""
    last = setting.pick(tiny=8, quick=200, full=2_000)
    checkpoints = tuple(last * part // 8 for part in range(9))
    judged = FamilyTasks("linear", D, N).tokens(
        setting.pick(tiny=100, quick=2_000, full=20_000), generator_for("evaluation", setting.seed)
    )
    tuning = FamilyTasks("linear", D, N).tokens(
        setting.pick(tiny=50, quick=1_000, full=10_000), generator_for("training", setting.seed, 2)
    )
    measured = FamilyTasks("linear", D, N).tokens(
        setting.pick(tiny=50, quick=300, full=1_000), generator_for("evaluation", setting.seed, 1)
    )
    test, tuned, terrain = (Landscape(_LAYERS, batch) for batch in (judged, tuning, measured))
    losses: dict[str, list[list[float]]] = {}
    conditions: dict[str, list[list[float]]] = {}
    correlations: dict[str, list[list[float]]] = {}
    numbers = {}
    for algorithm in _ALGORITHMS:
        paths = {
            rate: [_path(algorithm, rate, checkpoints, seed) for seed in setting.seeds]
            for rate in setting.pick(tiny=_RATES[1:2], quick=_RATES[1:2], full=_RATES)
        }
        final = {
            rate: float(np.mean([_log_loss(tuned, path, last) for path in found])) for rate, found in paths.items()
        }
        rate = min(final, key=lambda one: (math.isnan(final[one]), final[one]))
        numbers[f"rate chosen for {algorithm}"] = rate
        losses[algorithm] = [[_log_loss(test, path, step) for step in checkpoints] for path in paths[rate]]
        conditions[algorithm] = [
            [math.log(terrain.robust_condition(path.points[step])) for step in checkpoints[::2]]
            for path in paths[rate]
            if not path.diverged
        ]
        correlations[algorithm] = [[_correlation(terrain, path, checkpoints)] for path in paths[rate]]
    noise = [[_tails(place, setting, seed) for place in _NOISY] for seed in setting.seeds]
    panels = (
        Panel(
            "training",
            f"Ln test loss of a linear Transformer of {_LAYERS} layers, best of the rates tried",
            "steps",
            "ln mean squared error",
            tuple(series(name, checkpoints, rows) for name, rows in losses.items()),
        ),
        Panel(
            "condition",
            "Robust condition number on the way: ln of the largest over the median second derivative of the diagonal",
            "steps",
            "ln condition number",
            tuple(series(name, checkpoints[::2], rows) for name, rows in conditions.items()),
        ),
        Panel(
            "noise",
            f"Hill's tail index of the norm of gradient noise at the start, largest {100 * _TAIL:g}% (small: heavy)",
            "data",
            "tail index",
            (
                series("gradient noise", range(len(_NOISY)), [[ours for ours, _ in row] for row in noise]),
                series("Gaussian, same covariance", range(len(_NOISY)), [[other for _, other in row] for row in noise]),
            ),
            categories=_PLACES,
        ),
        Panel(
            "smoothness",
            "Correlation of ln curvature along the step with ln gradient norm, on the way",
            "measure",
            "correlation",
            (*(series(name, (0,), rows) for name, rows in correlations.items()), series("none", (0,), [0.0])),
            categories=("all checkpoints",),
        ),
    )
    return Results(panels, numbers)


def judge(results: Results) -> Sequence[Check]:
    """The four findings of the publication, each a part."""
    training, condition, noise = (results[name] for name in ("training", "condition", "noise"))
    steps = training.series[0].x
    checks = []
    for step in (steps[len(steps) // 2], steps[-1]):
        name = f"after {step:g} steps Adam's loss is below SGD's, by 0.1"
        found = below(name, training["Adam"], training["SGD"], step, -0.1, part=_FASTER)
        if results.numbers["rate chosen for SGD"] == max(_RATES) and found.passed is True:
            found = replace(found, passed=None, text=f"{found.text}; SGD might gain by a larger rate than was tried")
        checks.append(found)
    ours, gaussian = noise["gradient noise"], noise["Gaussian, same covariance"]
    place = {name: float(index) for index, name in enumerate(noise.categories)}
    normal, sphere, heavy = (place[f"{family}, 3 layers"] for family in ("linear", "sphere", "gamma-scaled"))
    name = "normal covariates: the noise's tail index is below that of Gaussian noise"
    checks.append(below(name, ours, gaussian, normal, part=_NOISE))
    by_data = {x: series("noise", (0,), [[value] for value in ours.column(x)]) for x in (normal, sphere, heavy)}
    name = "the tail index with gamma-scaled covariates is below that with covariates on the sphere"
    checks.append(below(name, by_data[heavy], by_data[sphere], 0, part=_NOISE))
    name = "the tail index with normal covariates is below that with covariates on the sphere"
    checks.append(below(name, by_data[normal], by_data[sphere], 0, essential=False))
    for step in condition.series[0].x[2:]:
        name = f"after {step:g} steps Adam's robust condition number is below SGD's"
        checks.append(below(name, condition["Adam"], condition["SGD"], step, part=_CONDITION))
    smooth = results["smoothness"]
    for algorithm in _ALGORITHMS:
        name = f"{algorithm}: the correlation is above 0"
        checks.append(below(name, smooth["none"], smooth[algorithm], 0.0, part=_SMOOTH))
    return checks


def find(results: Results) -> str:
    """Both losses, both condition numbers, and the tail indices at the ends."""
    training, condition = results["training"], results["condition"]
    last, noise = training.series[0].x[-1], results["noise"]
    ours, gaussian = (noise[name] for name in ("gradient noise", "Gaussian, same covariance"))
    tails = ", ".join(f"{ours.mean(x):.1f} ({name})" for x, name in enumerate(noise.categories))
    normal = f"{min(map(gaussian.mean, gaussian.x)):.1f} to {max(map(gaussian.mean, gaussian.x)):.1f}"
    losses, numbers = ((panel["Adam"].mean(last), panel["SGD"].mean(last)) for panel in (training, condition))
    correlations = " and ".join(f"{results['smoothness'][name].mean(0.0):.2f}" for name in ("Adam", "SGD"))
    return (
        f"After {last:g} steps Adam is at {losses[0]:.2f}, SGD at {losses[1]:.2f}, ln condition numbers "
        f"{numbers[0]:.1f} and {numbers[1]:.1f}; noise has tail indices of {tails}, Gaussian noise {normal}; curvature "
        f"and gradient correlate by {correlations}"
    )


def _path(algorithm: Algorithm, rate: float, checkpoints: Sequence[int], seed: int) -> Path:
    return train(fresh(_LAYERS, seed), "linear", algorithm, rate, checkpoints, seed)


def _log_loss(terrain: Landscape, path: Path, step: int) -> float:
    if step not in path.points:
        return math.inf
    return math.log(terrain.loss(path.points[step]))


def _correlation(terrain: Landscape, path: Path, checkpoints: Sequence[int]) -> float:
    """Of ln |curvature| along the next step with ln gradient norm, over the checkpoints that both are there at."""
    pairs = []
    for step in checkpoints:
        if step in path.points and step + 1 in path.points:
            point, direction = path.points[step], path.points[step + 1] - path.points[step]
            curvature, norm = abs(terrain.curvature(point, direction)), float(terrain.gradient(point).norm())
            pairs.append((math.log(max(curvature, 1e-12)), math.log(max(norm, 1e-12))))
    return float(np.corrcoef(np.array(pairs).T)[0, 1]) if len(pairs) > 2 else math.nan


def _tails(place: tuple[str, int], setting: Setting, seed: int) -> tuple[float, float]:
    family, layers = place
    norms = gradient_noise(layers, family, setting.pick(tiny=80, quick=200, full=2_000), seed)
    return tail_index(norms[0], _TAIL), tail_index(norms[1], _TAIL)


EXPERIMENT = Experiment(
    number=21,
    name="landscape",
    title="The landscape of shallow linear Transformers",
    claim="Training a shallow linear Transformer shows what training Transformers is known for: Adam is faster than "
    "SGD, gradient noise is heavy-tailed, SGD's path is worse conditioned, and smoothness grows with the gradient.",
    source="Ahn et al., arXiv 2310.01082",
    protocol=f"Linear Transformers of {_LAYERS} layers with free blocks of P and Q, d = {D}, n = {N}, started at N(0, "
    "0.05^2), batches of 1000 fresh tasks, the gradient clipped to norm 1, SGD with momentum 0.9 and Adam with decay "
    "rates 0.9 and 0.9, as in the authors' code; each has the best of three constant rates by its final loss on "
    "separate tasks; where SGD's is the largest tried, the comparison stays open. Speed is the claim, so nothing is "
    "trained to its end. The robust condition number is the largest over the median magnitude on the second "
    "derivative's diagonal, smoothness is the magnitude of the curvature along the step taken; both on one set of "
    "1000 tasks in float64. Gradient noise is compared with Gaussian noise of its own covariance.",
    asks="the same with learning rates scheduled, and the noise along the path, not at the start alone",
    minutes=7,
    run=run,
    judge=judge,
    find=find,
)
