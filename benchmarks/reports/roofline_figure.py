"""The roofline as one picture: the machine's limits as lines, every kernel a numbered point, named beside it."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.measure.roofline import Point
from benchmarks.reports.record import Machine
from benchmarks.reports.table import figure as digits
from memformer_lab.pictures import encode

_OURS, _TORCH, _FLOOR = "#1b7f4b", "#c05621", "#2b6cb0"


def draw(machine: Machine, points: Sequence[Point]) -> bytes:
    """A PNG: operations a byte across, GFLOP/s upwards, and a numbered list of the kernels at the right."""
    # A row of the table holds two lines of text.
    height = max(6.6, 1.2 + 0.37 * len(points))
    figure = Figure(figsize=(13, height), dpi=110, layout="constrained")
    panel, names = figure.subplots(1, 2, width_ratios=(1.25, 1))
    low, high = min(p.intensity for p in points) / 1.6, max(p.intensity for p in points) * 2
    for label, rate, style in (("read", machine.read_gb_s, "-"), ("copy", machine.copy_gb_s, "--")):
        if rate is not None:
            ridge = machine.fma_gflop_s / rate
            xs = (low, min(max(ridge, low), high), high)
            ys = [min(x * rate, machine.fma_gflop_s) for x in xs]
            panel.plot(xs, ys, style, color=_FLOOR, label=f"limit at {rate:.0f} GB/s ({label})")
    panel.annotate(
        f"{machine.fma_gflop_s:.0f} GFLOP/s of a large matrix product",
        (high, machine.fma_gflop_s),
        (-6, 5),
        textcoords="offset points",
        ha="right",
        color=_FLOOR,
    )
    ordered = sorted(points, key=lambda p: p.intensity)
    for backend, color in (("cpu", _OURS), ("torch", _TORCH)):
        own = [p for p in ordered if p.backend == backend]
        label = "native kernel" if backend == "cpu" else "torch backend"
        panel.plot([p.intensity for p in own], [p.gflop_s for p in own], "o", color=color, markersize=7, label=label)
    beside = _sides(ordered)
    for number, p in enumerate(ordered, 1):
        offset, align = beside[number - 1]
        panel.annotate(
            str(number), (p.intensity, p.gflop_s), offset, textcoords="offset points", ha=align, va="center", fontsize=9
        )
    panel.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="operations a byte that must be moved (a multiply-add is two)",
        ylabel="GFLOP/s",
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3, which="both")
    panel.legend(loc="lower right", fontsize=9)
    names.axis("off")
    _list(names, machine, ordered)
    figure.suptitle(
        "Every kernel of the CPU against the limits measured in the same run: nearer to the line is better\n"
        f"{machine.processor}, threads: {machine.threads}, torch {machine.torch}; no CUDA or Triton kernel has run"
    )
    return encode(figure)


def _sides(ordered: Sequence[Point]) -> list[tuple[tuple[int, int], str]]:
    """Where each number stands: right of its point, left where the next point is close by."""
    found: list[tuple[tuple[int, int], str]] = []
    for i, p in enumerate(ordered):
        near = [
            other
            for other in ordered[i + 1 :]
            if other.intensity < 1.12 * p.intensity and 0.9 < other.gflop_s / p.gflop_s < 1.1
        ]
        found.append(((-7, 0), "right") if near else ((7, 0), "left"))
    return found


def _list(names: Axes, machine: Machine, ordered: Sequence[Point]) -> None:
    rows = [
        (str(i), f"{p.kernel}\n{p.size}", digits(p.ms), f"{100 * p.limit_ms(machine) / p.ms:.0f}%")
        for i, p in enumerate(ordered, 1)
    ]
    table = names.table(
        rows,
        colLabels=("", "kernel", "ms", "of limit"),
        colWidths=(0.07, 0.66, 0.12, 0.15),
        cellLoc="left",
        loc="center",
        edges="horizontal",
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
