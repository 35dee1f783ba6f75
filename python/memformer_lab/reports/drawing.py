"""Panels and matrices as PNG pictures."""

from __future__ import annotations

import io
import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from memformer_lab.reports.pictures import encode
from memformer_lab.reports.results import Matrix, Panel, Series

_COLORS = ("#2b6cb0", "#d95f02", "#7b2d8b", "#1b7f5c", "#b8860b", "#c0392b", "#4d4d4d", "#17a2b8", "#8c6d31", "#e377c2")
_MARKERS = "osD^vP*Xh<"
_DPI = 120
_WIDE_LABEL = 34  # letters of a legend that has one column
_FAR = 8.0  # natural logarithms beyond this are failures, which would flatten every other curve


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


def _png(figure: Figure, colours: int) -> bytes:
    """Few colours in place of 16 million: a third of the bytes, and no difference to see."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(encode(figure))) as picture:
        picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
