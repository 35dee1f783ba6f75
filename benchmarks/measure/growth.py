"""Throughput along the batch, the context, the layers and the features: one axis at a time through workload W."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich import box
from rich.table import Table

from benchmarks.measure.harness import Policy
from benchmarks.measure.workloads import W, Workload
from benchmarks.reports.record import Report, Timing
from benchmarks.reports.table import figure

# The batch sizes of the context's and the features' axes keep these many context tokens and columns of a batch, so that
# linear growth is a flat line and every size reads about as much.
CONTEXT_TOKENS = 2_000_000
COLUMNS = 600_000
# Peers keep what every layer made for their backward, which with 64 layers of so many tasks is half a gigabyte.
LAYER_TASKS = 10_000

# The peers that are fastest somewhere; the others only lengthen the run.
PEERS = ("Gram, eager", "Gram, compiled", "re-associated, eager", "Gram, JAX jit")

POLICY = Policy(seconds=0.5, longest_s=2.0, admit_s=60.0)


@dataclass(frozen=True)
class Axis:
    """One way to grow: `field` of a workload takes `values`; throughput is counted in `unit` a second."""

    field: str
    label: str
    values: tuple[int, ...]
    unit: Literal["tasks", "examples", "numbers"] = "tasks"

    def amount(self, workload: Workload) -> int:
        """How much of the unit a pass goes through."""
        each = {"tasks": 1, "examples": workload.n, "numbers": workload.tokens * workload.width}
        return workload.batch * each[self.unit]

    @property
    def name(self) -> str:
        """What this axis's workloads are called in a record."""
        return f"growth in {self.field}"

    def workloads(self, quick: bool = False) -> tuple[Workload, ...]:
        """A workload per value; a hundredth of the tasks when quick."""
        base = replace(W, name=self.name)
        grown = []
        for value in self.values:
            change: dict[str, Any] = {self.field: value}
            workload = replace(base, **change)
            if self.field == "n":
                workload = workload.with_batch(CONTEXT_TOKENS // value)
            if self.field == "layers":
                workload = workload.with_batch(LAYER_TASKS)
            if self.field == "d":
                workload = workload.with_batch(COLUMNS // workload.width)
            grown.append(workload.with_batch(max(1, workload.batch // 100)) if quick else workload)
        return tuple(dict.fromkeys(grown))


AXES = (
    Axis("batch", "tasks B", (1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)),
    Axis("n", "context n", (8, 20, 50, 100, 500, 2000, 10_000, 100_000, 1_000_000), "examples"),
    Axis("layers", "layers L", (1, 2, 4, 8, 16, 32, 64)),
    Axis("d", "features d", (2, 3, 5, 7, 12, 16, 31, 63, 127, 255), "numbers"),
)


@dataclass(frozen=True)
class Point:
    """What was found at one value of an axis: our fastest backend and the fastest peer, None where none was timed."""

    value: int
    workload: Workload
    ours: Timing | None
    peer: Timing | None


def points(axis: Axis, report: Report) -> tuple[Point, ...]:
    """An axis's points in a report, by value."""
    workloads = {t.workload for t in report.timings if t.workload.name == axis.name}
    found = []
    for workload in sorted(workloads, key=lambda w: getattr(w, axis.field)):
        timings = [t for t in report.timings if t.workload == workload and t.quantiles is not None]
        ours = min((t for t in timings if not t.peer), key=_median, default=None)
        peer = min((t for t in timings if t.peer), key=_median, default=None)
        found.append(Point(getattr(workload, axis.field), workload, ours, peer))
    return tuple(found)


def held(axis: Axis, found: Sequence[Point]) -> str:
    """The sizes that stay the same along an axis, in words."""
    workloads = [point.workload for point in found]
    sizes = [("B", "batch"), ("n", "n"), ("L", "layers"), ("d", "d")]
    named = [(symbol, {getattr(workload, field) for workload in workloads}) for symbol, field in sizes]
    if axis.field == "n":
        named.insert(0, ("B n", {workload.batch * workload.n for workload in workloads}))
    return ", ".join(f"{symbol} = {values.pop():,}" for symbol, values in named if len(values) == 1)


def growth_table(report: Report) -> Table:
    """A line per point, a section per axis: what ours and the fastest peer take."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("axis", no_wrap=True)
    for header in ("ours, ms", "ns/task", "best peer, ms", "x"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("which peer", no_wrap=True)
    for axis in AXES:
        table.add_section()
        for point in points(axis, report):
            ours, peer = (None if timing is None else _median(timing) for timing in (point.ours, point.peer))
            table.add_row(
                f"{axis.label} = {point.value:,}",
                "" if ours is None else figure(ours),
                "" if ours is None else figure(ours * 1e6 / point.workload.batch),
                "" if peer is None else figure(peer),
                "" if ours is None or peer is None else figure(peer / ours),
                point.peer.provider if point.peer else "",
            )
    return table


def _median(timing: Timing) -> float:
    return timing.quantiles.median_ms if timing.quantiles else float("inf")
