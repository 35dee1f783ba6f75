"""Pictures: panels and matrices of experiments, the main job's report, and how well a table was solved."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from memformer_lab.reports.curves import Series
from memformer_lab.reports.pictures import encode
from memformer_lab.reports.results import LABELS, Matrix, Panel, Report

if TYPE_CHECKING:
    # They import pandas and scikit-learn, for seconds.
    from memformer_lab.solvers.comparison import Score
    from memformer_lab.tasks.table import Problem

_COLORS = ("#2b6cb0", "#d95f02", "#7b2d8b", "#1b7f5c", "#b8860b", "#c0392b", "#4d4d4d", "#17a2b8", "#8c6d31", "#e377c2")
_MARKERS = "osD^vP*Xh<"
_DPI = 120
_WIDE_LABEL = 34  # letters of a legend that has one column
_FAR = 8.0  # natural logarithms beyond this are failures, which would flatten every other curve

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


def draw_panel(panel: Panel) -> bytes:
    """A PNG: means over seeds with their standard deviation; what is not finite is left out."""
    columns = 1 if max(len(series.label) for series in panel.series) > _WIDE_LABEL else 2
    legend = 0.23 * math.ceil(len(panel.series) / columns) if len(panel.series) > 1 else 0.0
    figure = Figure(figsize=(6.6, 4.2 + legend), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for index, series in enumerate(panel.series):
        _draw_series(axes, panel, series, index)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    if panel.categories:
        axes.set_xticks(range(len(panel.categories)), list(panel.categories), rotation=20, ha="right", fontsize=9)
    if not panel.categories and len(panel.places) <= 12:
        axes.set_xticks(panel.places, [f"{place:g}" for place in panel.places])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_title(textwrap.fill(panel.title, 72), fontsize=10.5)
    axes.grid(alpha=0.25)
    if len(panel.series) > 1:
        figure.legend(fontsize=9, loc="outside lower center", ncols=columns, frameon=False)
    return _png(figure, 64)


def draw_matrix(matrix: Matrix) -> bytes:
    """A PNG: a heat map with its values."""
    height, width = len(matrix.rows), len(matrix.columns)
    figure = Figure(figsize=(2.5 + 0.5 * width, 1.5 + 0.36 * height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    values = np.array(matrix.values, dtype=float)
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(width), list(matrix.columns), rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(height), list(matrix.rows), fontsize=9)
    for row in range(height):
        for column in range(width):
            value = values[row, column]
            if math.isfinite(value):
                color = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)
    axes.set_title(textwrap.fill(matrix.title, 90), fontsize=11)
    return _png(figure, 256)


def draw_report(report: Report) -> bytes:
    """A PNG: error by depth on the random tasks, left, and errors on the measured sets, right."""
    figure = Figure(figsize=(13, 5.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_depths(left, report)
    _draw_sets(right, report)
    return encode(figure)


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


def _draw_series(axes: Axes, panel: Panel, series: Series, index: int) -> None:
    points = []
    for x in series.x:
        mean, spread = series.mean(x), series.spread(x)
        drawable = math.isfinite(mean) and (mean > 0 if panel.log_y else mean < _FAR or panel.categories)
        points.append((x, mean, spread if math.isfinite(spread) else 0.0) if drawable else (x, math.nan, 0.0))
    xs, means, spreads = zip(*points, strict=True)
    color = "#888888" if series.reference else _COLORS[index % len(_COLORS)]
    later = index >= len(_COLORS)
    style = ":" if series.reference else "" if panel.categories else "--" if later else "-"
    if panel.log_y:
        below = [min(spread, 0.99 * mean) if math.isfinite(mean) else 0.0 for _, mean, spread in points]
        error = np.array([below, spreads])
    else:
        error = np.array([spreads, spreads])
    axes.errorbar(
        xs,
        means,
        error,
        color=color,
        linestyle=style,
        marker="_" if series.reference else _MARKERS[index % len(_MARKERS)],
        markersize=5,
        capsize=2,
        linewidth=1.3,
        label=series.label,
    )


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


def _png(figure: Figure, colours: int) -> bytes:
    """Few colours in place of 16 million: a third of the bytes, and no difference to see."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(encode(figure))) as picture:
        picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
