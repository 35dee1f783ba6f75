"""The picture of an explanation: residual polynomials, errors, and steps, to be read at a glance."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memformer_lab.reports.pictures import encode
from memformer_lab.spectrum.explanation import BEST, CGD, CHEBYSHEV, DESCENT, HEAVY_BALL, NETWORK, ONE, Explanation

_STYLES = {
    NETWORK: ("#d95f02", "-", 0.0),
    ONE: ("#d95f02", "-", 2.6),
    BEST: ("#111111", ":", 1.6),
    CHEBYSHEV: ("#1b7f5c", "--", 1.4),
    HEAVY_BALL: ("#c9a227", "-.", 1.4),
    DESCENT: ("#9a9a9a", "-", 1.4),
    CGD: ("#2b6cb0", "-", 1.4),
}


_LINEAR = 0.1


def draw(explanation: Explanation, form: str = "png") -> bytes:
    """A picture in one of `pictures.FORMATS`: what is left along each eigenvalue; errors; steps and momentum."""
    figure = Figure(figsize=(15, 5.4), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.7, 1.0, 1.0))
    _draw_residuals(left, explanation)
    _draw_errors(middle, explanation)
    _draw_steps(right, explanation)
    return encode(figure, form)


def _draw_residuals(axes: Axes, found: Explanation) -> None:
    top = found.top
    x = np.linspace(0.0, top, 400)
    # On heights of its own, at the bottom of the picture and behind the curves.
    behind = axes.twinx()
    counts = behind.hist(found.eigenvalues.flatten(), bins=40, range=(0.0, top), color="#e4e4e4")[0]
    behind.set_ylim(0.0, 6.0 * float(np.max(counts)))
    behind.set_yticks([])
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot([], [], "s", color="#e4e4e4", markersize=9, label="where the tasks' eigenvalues are")
    axes.axhline(0.0, color="#bbbbbb", linewidth=0.8)
    low, middle, high = np.quantile(found.cgd_residuals(x), [0.25, 0.5, 0.75], axis=0)
    color = _STYLES[CGD][0]
    axes.fill_between(x, low.clip(-2, 2), high.clip(-2, 2), color=color, alpha=0.15, linewidth=0)
    axes.plot(x, middle.clip(-2, 2), color=color, linewidth=1.4, label="CGD, half of the tasks and their median")
    for name in (DESCENT, HEAVY_BALL, CHEBYSHEV, BEST):
        color, line, width = _STYLES[name]
        axes.plot(x, found.rivals[name].residuals(x)[-1], color=color, linestyle=line, linewidth=width, label=name)
    color, line, width = _STYLES[ONE]
    axes.plot(x, found.learned.residuals(x)[-1], color=color, linewidth=width, label=ONE, zorder=4)
    axes.plot(
        found.eigenvalues.flatten(),
        found.measured.flatten(),
        ".",
        color="#5a2400",
        markersize=2,
        alpha=0.5,
        label="the network itself, measured",
        zorder=5,
    )
    axes.set_xlim(0.0, top)
    # Linear about 0, where the curves differ, and logarithmic beyond.
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.5)
    axes.set_ylim(-1.3, 1.3)
    ticks = [-1.0, -_LINEAR, -_LINEAR / 2, 0.0, _LINEAR / 2, _LINEAR, 1.0]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("eigenvalue of A H (mean 1)")
    axes.set_ylabel("share of w* that is left; linear up to 0.1")
    axes.set_title(f"What {found.learned.layers} layers leave along each eigenvalue", fontsize=11)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    axes.grid(alpha=0.2)


def _draw_errors(axes: Axes, found: Explanation) -> None:
    names = sorted(found.errors, key=lambda name: found.errors[name].log_mean)
    finite = [name for name in names if np.isfinite(found.errors[name].log_mean)]
    for place, name in enumerate(finite):
        one = found.errors[name]
        reach = [[max(0.0, one.log_mean - one.low)], [max(0.0, one.high - one.log_mean)]]
        axes.errorbar([one.log_mean], [place], xerr=reach, color=_STYLES[name][0], marker="o", capsize=3)
        axes.annotate(f"{one.log_mean:.2f}", (one.log_mean, place), (0, 7), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(finite)), finite, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("ln of the mean squared query error")
    axes.set_title("Errors on the same tasks", fontsize=11)
    axes.grid(axis="x", alpha=0.2)


def _draw_steps(axes: Axes, found: Explanation) -> None:
    layers = np.arange(1, found.learned.layers + 1)
    zeros = found.learned.zeros(found.top)
    steps = 1 / zeros
    real = np.abs(zeros.imag) < 1e-6 * np.abs(zeros)
    places = np.arange(1, len(zeros) + 1)
    axes.plot(places[real], steps[real].real, "o", color="#d95f02", label="steps 1 / zero of the polynomial")
    if not real.all():
        axes.plot(places[~real], steps[~real].real, "x", color="#d95f02", label="of complex zeros, real part")
    nearest = found.learned.recurrence(found.top)
    exact = "" if nearest.exact else ", nearest"
    axes.plot(layers, nearest.steps, "s-", color="#2b6cb0", markersize=5, label=f"step of each layer{exact}")
    axes.plot(layers, nearest.momenta, "^--", color="#7b2d8b", markersize=5, label=f"momentum of each layer{exact}")
    axes.axhline(0.0, color="#bbbbbb", linewidth=0.8)
    axes.set_xticks(layers)
    axes.set_xlabel("layer, or zero in increasing order")
    axes.set_title("Implied steps and momentum", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)
