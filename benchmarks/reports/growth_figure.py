"""Throughput as one picture: a panel per axis, ours, the best peer at each point, and the limits, on two logarithms."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from benchmarks.measure.growth import AXES, Axis, Point, held, points
from benchmarks.reports.record import Machine, Report, Timing
from benchmarks.reports.table import memory_floor_ms, operations_floor_ms
from memformer_lab.pictures import encode

_OURS, _PEER, _FLOOR = "#1b7f4b", "#444444", "#2b6cb0"
_MARKERS = ("s", "^", "D", "v", "P", "X")


def draw(report: Report) -> bytes:
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


def _draw_axis(panel: Axes, axis: Axis, found: tuple[Point, ...], machine: Machine, markers: dict[str, str]) -> None:
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


def _draw_line(panel: Axes, axis: Axis, line: list[tuple[Point, Timing]], color: str, label: str) -> None:
    values = [point.value for point, _ in line]
    found = [(point, timing.quantiles) for point, timing in line if timing.quantiles]
    panel.plot(values, [_per_second(axis, p, q.median_ms) for p, q in found], color=color, label=label)
    low = [_per_second(axis, p, q.q90_ms) for p, q in found]
    high = [_per_second(axis, p, q.q10_ms) for p, q in found]
    panel.fill_between(values, low, high, color=color, alpha=0.2)


def _per_second(axis: Axis, point: Point, milliseconds: float) -> float:
    return axis.amount(point.workload) / milliseconds * 1e3


def _rate(axis: Axis, point: Point, timing: Timing) -> float:
    return _per_second(axis, point, timing.quantiles.median_ms) if timing.quantiles else float("nan")


def _short(value: float) -> str:
    """A size as a tick label: 10k, 1M."""
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
