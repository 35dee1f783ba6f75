"""Pictures of an experiment's panels and matrices; no value is left out, and curves that coincide are told apart."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memformer_lab.reports.curves import Series
from memformer_lab.reports.pictures import encode
from memformer_lab.reports.results import Matrix, Panel

COLORS = ("#2b6cb0", "#d95f02", "#7b2d8b", "#1b7f5c", "#b8860b", "#c0392b", "#4d4d4d", "#17a2b8", "#8c6d31", "#e377c2")
"""Of the series, in their order; those of reference are `GREY`."""

GREY = "#888888"

_MARKERS = "osD^vP*Xh<"
_DPI = 120
_WIDE_LABEL = 34  # letters of a legend that has one column
_FAR = 8.0  # natural logarithms of errors beyond this are failures, which would flatten every other curve
_NEAR = 0.015  # of the axis: curves that are nearer at most of their places coincide
_DASH = 4.0  # points of a dash where curves coincide
_APART = 0.55  # of the way between two categories that the series of a category share


def draw_panel(panel: Panel) -> bytes:
    """A PNG: means over seeds with their standard deviation. What is far off stands at the edge, with its number."""
    columns = 1 if max(len(series.label) for series in panel.series) > _WIDE_LABEL else 2
    legend = 0.23 * math.ceil(len(panel.series) / columns) if len(panel.series) > 1 else 0.0
    figure = Figure(figsize=(6.6, 4.2 + legend), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for index, series in enumerate(panel.series):
        _draw_series(axes, panel, series, index)
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
    return encode(figure)


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
    return encode(figure)


def color_of(panel: Panel, index: int) -> str:
    """Of a panel's series."""
    return GREY if panel.series[index].reference else COLORS[index % len(COLORS)]


def shown(panel: Panel, series: Series, x: float) -> bool:
    """Whether a mean stands at its own place; else it stands at the upper or lower edge."""
    mean = series.mean(x)
    near = mean < _FAR or bool(panel.categories) or "error" not in panel.y_label
    return math.isfinite(mean) and (mean > 0 if panel.log_y else near)


def coinciding(panel: Panel) -> list[list[int]]:
    """Groups of series, by number, that lie upon each other at most of the places that they share."""
    heights = [_height(panel, one.mean(x)) for one in panel.series for x in one.x if shown(panel, one, x)]
    near = _NEAR * (max(heights) - min(heights)) if heights else 0.0
    groups: list[list[int]] = []
    for index, series in enumerate(panel.series):
        for group in groups:
            if _near(panel, panel.series[group[0]], series, near):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _near(panel: Panel, one: Series, other: Series, near: float) -> bool:
    places = [x for x in one.x if x in other.x and shown(panel, one, x) and shown(panel, other, x)]
    close = sum(abs(_height(panel, one.mean(x)) - _height(panel, other.mean(x))) <= near for x in places)
    return len(places) > 1 and 2 * close > len(places)


def _height(panel: Panel, value: float) -> float:
    return math.log(value) if panel.log_y else value


def _draw_series(axes: Axes, panel: Panel, series: Series, index: int) -> None:
    color, places = color_of(panel, index), [_place(panel, x, index) for x in series.x]
    means = [series.mean(x) if shown(panel, series, x) else math.nan for x in series.x]
    spreads = [s if math.isfinite(s := series.spread(x)) else 0.0 for x in series.x]
    lower = [min(spread, 0.99 * mean) for mean, spread in zip(means, spreads, strict=True)] if panel.log_y else spreads
    axes.errorbar(
        places,
        means,
        np.array([lower, spreads]),
        color=color,
        linestyle=_line(panel, index),
        marker="_" if series.reference else _MARKERS[index % len(_MARKERS)],
        markersize=5,
        capsize=2,
        linewidth=1.3,
        label=series.label,
    )
    for x, place in zip(series.x, places, strict=True):
        if not shown(panel, series, x):
            _draw_at_edge(axes, panel, series, x, place, index)


def _draw_at_edge(axes: Axes, panel: Panel, series: Series, x: float, place: float, index: int) -> None:
    """An arrow, and the number beside it; those of one place stand above each other."""
    above = _is_above(series, x)
    order = sum(not shown(panel, one, x) and _is_above(one, x) == above for one in panel.series[:index] if x in one.x)
    mean = series.mean(x)
    text = f"{mean:.3g}" if math.isfinite(mean) else "diverged" if above else "0" if panel.log_y else "-inf"
    axes.annotate(
        text,
        (place, 1.0 if above else 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5, -10 - 9 * order if above else 5 + 9 * order),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=color_of(panel, index),
    )
    axes.plot(
        [place],
        [1.0 if above else 0.0],
        marker="^" if above else "v",
        markersize=7,
        color=color_of(panel, index),
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


def _is_above(series: Series, x: float) -> bool:
    mean = series.mean(x)
    return math.isnan(mean) or mean > 0


def _place(panel: Panel, x: float, index: int) -> float:
    """Where a series stands: the series of a category stand side by side."""
    return x + _APART * ((index + 0.5) / len(panel.series) - 0.5) if panel.categories else x


def _line(panel: Panel, index: int) -> str | tuple[float, tuple[float, ...]]:
    """Solid, dashed for colours' second turn; dashes that alternate where curves coincide."""
    if panel.categories:
        return ""
    group = next(group for group in coinciding(panel) if index in group)
    if len(group) > 1:
        return _DASH * group.index(index), (_DASH, _DASH * (len(group) - 1))
    return ":" if panel.series[index].reference else "--" if index >= len(COLORS) else "-"
