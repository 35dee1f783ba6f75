"""Growth as one picture: a panel per axis, ours, the best peer at each point, and the floors, on logarithmic axes."""

import io

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from benchmarks.growth import AXES, Axis, Point, held, points
from benchmarks.record import Machine, Report, Timing
from benchmarks.table import memory_floor_ms, operations_floor_ms

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
        "Forward + backward to all parameters, response-only LFOM, gamma per feature, float32\n"
        f"{machine.processor}, threads: {machine.threads}, torch {machine.torch}; band: q10 to q90"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_axis(panel: Axes, axis: Axis, found: tuple[Point, ...], machine: Machine, markers: dict[str, str]) -> None:
    ours = [(point.value, point.ours) for point in found if point.ours]
    peers = [(point.value, point.peer) for point in found if point.peer]
    if ours:
        names = " or ".join(dict.fromkeys(timing.provider for _, timing in ours))
        _draw_line(panel, ours, _OURS, names)
        panel.plot([x for x, _ in ours], [_median(t) for _, t in ours], "o", color=_OURS, markersize=6)
    if peers:
        _draw_line(panel, peers, _PEER, "best peer at each point")
        for name in dict.fromkeys(timing.provider for _, timing in peers):
            at = [(x, _median(t)) for x, t in peers if t.provider == name]
            panel.plot(*zip(*at, strict=True), markers[name], color=_PEER, markersize=6, label=f"  {name}")
    values = [point.value for point in found]
    bandwidth = machine.read_gb_s or machine.copy_gb_s
    memory = [memory_floor_ms(point.workload, bandwidth) for point in found]
    operations = [operations_floor_ms(point.workload, machine) for point in found]
    kind = "read" if machine.read_gb_s else "copy"
    panel.plot(values, memory, "--", color=_FLOOR, label=f"memory floor: bytes at {bandwidth:.0f} GB/s ({kind})")
    panel.plot(values, operations, ":", color=_FLOOR, label=f"arithmetic floor: {machine.fma_gflop_s:.0f} GFLOP/s")
    panel.set(xscale="log", yscale="log", xlabel=axis.label, ylabel="milliseconds a pass", title=held(axis, found))
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _draw_line(panel: Axes, line: list[tuple[int, Timing]], color: str, label: str) -> None:
    values = [value for value, _ in line]
    quantiles = [timing.quantiles for _, timing in line if timing.quantiles]
    panel.plot(values, [q.median_ms for q in quantiles], color=color, label=label)
    panel.fill_between(values, [q.q10_ms for q in quantiles], [q.q90_ms for q in quantiles], color=color, alpha=0.2)


def _median(timing: Timing) -> float:
    return timing.quantiles.median_ms if timing.quantiles else float("nan")
