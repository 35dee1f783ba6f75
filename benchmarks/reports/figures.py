"""Pictures of records as PNGs. matplotlib takes longer to import than most commands to start: import this to draw."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter
from matplotlib.transforms import Bbox

from benchmarks.measure.attention import HEADS, WIDTHS
from benchmarks.measure.dispatch import Choice
from benchmarks.measure.growth import AXES, Axis, held, points
from benchmarks.measure.growth import Point as GrowthPoint
from benchmarks.measure.results import Machine, Report, Timing, memory_floor_ms, operations_floor_ms
from benchmarks.measure.roofline import Point
from benchmarks.reports.attention import Record
from benchmarks.reports.table import figure as digits
from memformer_lab.reports.pictures import encode

_OURS, _PEER, _FLOOR, _TORCH, _LOSS = "#1b7f4b", "#444444", "#2b6cb0", "#c05621", "#b83232"
_MARKERS = ("s", "^", "D", "v", "P", "X")


def growth(report: Report) -> bytes:
    """A PNG with a panel for each axis that the report has points of."""
    shown = [axis for axis in AXES if points(axis, report)]
    rows = (len(shown) + 1) // 2
    figure = Figure(figsize=(13, 4.8 * rows), dpi=120, layout="constrained")
    peers = list(dict.fromkeys(p.peer.provider for axis in shown for p in points(axis, report) if p.peer))
    markers = dict(zip(peers, _MARKERS * len(peers), strict=False))
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for panel, axis in zip(panels, shown, strict=False):
        _draw_axis(panel, axis, points(axis, report), report.machine, markers)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    machine = report.machine
    figure.suptitle(
        "Throughput of a loss and its gradients in all parameters, LFOM, gamma per feature, float32: higher is better\n"
        f"{machine.processor}, threads: {machine.threads}, torch {machine.torch}; band: q10 to q90"
    )
    return encode(figure)


def _draw_axis(
    panel: Axes, axis: Axis, found: tuple[GrowthPoint, ...], machine: Machine, markers: dict[str, str]
) -> None:
    ours = [(point, point.ours) for point in found if point.ours]
    peers = [(point, point.peer) for point in found if point.peer]
    if ours:
        names = " or ".join(dict.fromkeys(timing.provider for _, timing in ours))
        _draw_line(panel, axis, ours, _OURS, names)
        panel.plot([p.value for p, _ in ours], [_rate(axis, p, t) for p, t in ours], "o", color=_OURS, markersize=6)
    if peers:
        _draw_line(panel, axis, peers, _PEER, "fastest of the peers timed")
        for name in dict.fromkeys(timing.provider for _, timing in peers):
            at = [(p.value, _rate(axis, p, t)) for p, t in peers if t.provider == name]
            panel.plot(*zip(*at, strict=True), markers[name], color=_PEER, markersize=6, label=f"  {name}")
    values = [point.value for point in found]
    bandwidth = machine.read_gb_s or machine.copy_gb_s
    kind = "read" if machine.read_gb_s else "copy"
    memory = [_per_second(axis, p, memory_floor_ms(p.workload, bandwidth)) for p in found]
    operations = [_per_second(axis, p, operations_floor_ms(p.workload, machine)) for p in found]
    panel.plot(values, memory, "--", color=_FLOOR, label=f"limit of memory: {bandwidth:.0f} GB/s ({kind})")
    panel.plot(values, operations, ":", color=_FLOOR, label=f"limit of arithmetic: {machine.fma_gflop_s:.0f} GFLOP/s")
    panel.set(xscale="log", yscale="log", xlabel=axis.label, ylabel=f"{axis.unit} a second", title=held(axis, found))
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_major_formatter(lambda value, _: _short(value))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _draw_line(panel: Axes, axis: Axis, line: list[tuple[GrowthPoint, Timing]], color: str, label: str) -> None:
    values = [point.value for point, _ in line]
    found = [(point, timing.quantiles) for point, timing in line if timing.quantiles]
    panel.plot(values, [_per_second(axis, p, q.median_ms) for p, q in found], color=color, label=label)
    low = [_per_second(axis, p, q.q90_ms) for p, q in found]
    high = [_per_second(axis, p, q.q10_ms) for p, q in found]
    panel.fill_between(values, low, high, color=color, alpha=0.2)


def _per_second(axis: Axis, point: GrowthPoint, milliseconds: float) -> float:
    return axis.amount(point.workload) / milliseconds * 1e3


def _rate(axis: Axis, point: GrowthPoint, timing: Timing) -> float:
    return _per_second(axis, point, timing.quantiles.median_ms) if timing.quantiles else float("nan")


def _short(value: float) -> str:
    """A size as a tick label: 10k, 1M."""
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def roofline(machine: Machine, points: Sequence[Point]) -> bytes:
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
    sides = _sides(ordered)
    for number, p in enumerate(ordered, 1):
        offset, align = sides[number - 1]
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
    _kernel_list(names, machine, ordered)
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


def _kernel_list(names: Axes, machine: Machine, ordered: Sequence[Point]) -> None:
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


def dispatch(machine: Machine, found: Sequence[Choice]) -> bytes:
    """A PNG with a bar for each workload that a peer was timed on; 1 is as fast as the best peer."""
    shown = [(choice, choice.peer, choice.peer_ratio) for choice in found if choice.peer and choice.peer_ratio]
    figure = Figure(figsize=(11, 1.6 + 0.27 * len(shown)), dpi=100, layout="constrained")
    panel = figure.subplots()
    ratios = [ratio for _, _, ratio in shown]
    colors = [_OURS if ratio >= 1 else _LOSS for ratio in ratios]
    places = list(range(len(shown)))
    panel.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colors, height=0.7)
    for place, (_, peer, ratio) in zip(places, shown, strict=True):
        panel.annotate(
            f"{digits(ratio)}  {peer}",
            (max(ratio, 1), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.axvline(1, color="#444444", linewidth=1)
    panel.set_yticks(places, [choice.workload.name for choice, _, _ in shown], fontsize=8)
    panel.invert_yaxis()
    panel.set(
        xscale="log",
        xlim=(min(0.5, 0.8 * min(ratios, default=1)), 6 * max(ratios, default=1)),
        xlabel="times as fast as the best peer, which is named (right of 1 is better)",
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3, axis="x")
    panel.margins(y=0.01)
    figure.suptitle(
        'backend="auto" compared with the fastest peer, workload by workload\n'
        f"{machine.processor}, threads: {machine.threads}, torch {machine.torch}",
        fontsize=11,
    )
    return encode(figure)


def attention(record: Record) -> bytes:
    """A PNG: milliseconds and megabytes of every provider, full and causal, for the first of the widths."""
    figure = Figure(figsize=(10, 6.6), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    names = list(dict.fromkeys(timing.provider for timing in record.attention))
    for column, causal in enumerate((False, True)):
        for name, colour in zip(names, (_OURS, _PEER, "#b7791f", _FLOOR), strict=False):
            case = [
                t
                for t in record.attention
                if t.provider == name and t.case.width == WIDTHS[0] and t.case.causal == causal
            ]
            lengths = [t.case.tokens for t in case]
            panels[0][column].plot(lengths, [t.ms for t in case], "o-", color=colour, markersize=4, label=name)
            # Less than one does not show in what a process holds.
            held = [(t.case.tokens, t.peak_mb) for t in case if t.peak_mb and t.peak_mb >= 1]
            panels[1][column].plot([n for n, _ in held], [mb for _, mb in held], "o-", color=colour, markersize=4)
        panels[0][column].set(title="causal" if causal else "full", ylabel="ms")
        panels[1][column].set(xlabel="tokens", ylabel="MB at the peak")
    for panel in panels.flat:
        # A platform that tells no memory leaves its panels empty.
        if any(len(line.get_xdata()) for line in panel.lines):
            panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize=8)
    machine = record.machine
    figure.suptitle(
        f"Attention, forward + backward, {HEADS} heads of {WIDTHS[0]}, float32\n"
        f"{machine.gpu or machine.processor}, threads: {machine.threads}, torch {machine.torch}"
    )
    return encode(figure)
