"""Pictures of the main job's report, and of how well a table was solved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memformer_lab.reports.pictures import encode
from memformer_lab.reports.results import LABELS, Report

if TYPE_CHECKING:
    # They import pandas and scikit-learn, for seconds.
    from memformer_lab.solvers.comparison import Score
    from memformer_lab.tasks.table import Problem

_STYLES = {
    "gradient_descent": ("#9a9a9a", "o"),
    "momentum": ("#c9a227", "v"),
    "nesterov": ("#7a9e5b", "^"),
    "conjugate_gradient": ("#2b6cb0", "s"),
    "response-only": ("#d95f02", "D"),
    "block": ("#7b2d8b", "*"),
    "memformer": ("#7b2d8b", "*"),
    "ols": ("#111111", "x"),
    "ridge": ("#111111", "+"),
    "context mean": ("#c4c4c4", "|"),
}


def draw_report(report: Report) -> bytes:
    """A PNG: error by depth on the random tasks, left, and errors on the measured sets, right.

    Its description is that of the report (`Report.digest`), so that a picture can be held to the JSON of the same run.
    """
    figure = Figure(figsize=(13, 5.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_depths(left, report)
    _draw_sets(right, report)
    return encode(figure, of=report.digest())


def draw_comparison(problem: Problem, comparison: Mapping[str, Score], form: str = "png") -> bytes:
    """A picture, in one of `pictures.FORMATS`: predicted against measured, for each method but the mean."""
    shown = {name: score for name, score in comparison.items() if name != "mean"}
    figure = Figure(figsize=(4 * len(shown), 4), dpi=110, layout="constrained")
    low, high = float(problem.y.min()), float(problem.y.max())
    for axes, (name, score) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        axes.plot([low, high], [low, high], color="#888888", linewidth=1)
        axes.scatter(problem.y, score.predictions, s=14, alpha=0.7, color="#2b6cb0")
        axes.set_title(f"{name} failed" if score.failure else f"{name}, R² = {score.r_squared:.3f}", fontsize=10)
        # A column's name is no formula, whatever dollars are in it.
        axes.set_xlabel(f"{problem.target}, measured", parse_math=False)
        axes.set_ylabel("predicted on held-out rows")
        axes.grid(alpha=0.25)
    return encode(figure, form)


def _draw_depths(axes: Axes, report: Report) -> None:
    for method in report.methods:
        color, marker = _STYLES[method.name]
        depths = range(1, len(method.depths) + 1)
        means = [one.log_mean for one in method.depths]
        below = [one.log_mean - one.low for one in method.depths]
        above = [one.high - one.log_mean for one in method.depths]
        size = 11 if marker == "*" else 6
        label = f"{LABELS[method.name]} ({method.depths[0].tasks:,} tasks)"
        axes.errorbar(
            depths, means, [below, above], color=color, marker=marker, markersize=size, capsize=3, label=label
        )
    axes.set_xticks(range(1, len(report.methods[0].depths) + 1))
    axes.set_xlabel("depth: layers of a Memformer, steps of an optimiser")
    axes.set_ylabel("ln of the mean squared query error")
    axes.set_title("Fresh random tasks, d = 5, n = 20")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def _draw_sets(axes: Axes, report: Report) -> None:
    places = range(len(report.sets))
    shown = [name for name in _STYLES if any(name in one.methods for one in report.sets)]
    for order, name in enumerate(shown):
        color, marker = _STYLES[name]
        # Apart by method, since many of them agree.
        shift = 0.6 * (order / max(1, len(shown) - 1) - 0.5)
        points = [
            (math.exp(one.methods[name].log_mean), place + shift)
            for place, one in zip(places, report.sets, strict=True)
            if name in one.methods and one.methods[name].log_mean < 700
        ]
        if points:
            size = 120 if marker == "*" else 32
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                color=color,
                marker=marker,
                s=size,
                label=LABELS[name],
                zorder=3,
            )
    axes.set_xscale("log")
    axes.set_yticks(places, [f"{one.name}\nd = {one.d}, n = {one.n}" for one in report.sets], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean squared error on held-out rows / variance of the context's response")
    axes.set_title(f"Measured data, {report.layers} layers or steps")
    axes.grid(axis="x", alpha=0.3)
    for place in places[1:]:
        axes.axhline(place - 0.5, color="#dddddd", linewidth=0.8)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
