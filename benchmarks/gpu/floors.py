"""What the GPU kernels need of an H200, by what they do on a virtual GPU, and the floor of their work below it.

The floor is of the work, whatever kernel does it: the bytes that must cross the memory once, where no cache has them
yet, at its nominal bandwidth. Arithmetic has none here.
What the kernels as they are need is higher: for every resource the time in which it could do what was counted if it did
nothing else and nothing kept it waiting, at what the hardware does in a cycle (`virtual_gpu.hardware`); of memory the
sectors that thread blocks touched first, at the bandwidth that a copy is expected to reach. Other kernels may need
less. The schedule's prediction, which knows of latencies, is shown too. Nothing is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from benchmarks.gpu.virtual_record import CHANGED, Counted, label, read
from benchmarks.measure.sources import ROOT
from benchmarks.reports.table import figure, new_table
from virtual_gpu.hardware import H200

FORMAT = 3
ARCHITECTURE = 90
COUNTED = ROOT / "benchmarks" / "results" / "virtual-gpu.json"
HEAD = {
    "format": FORMAT,
    "measured": False,
    "gpu": H200.name,
    "bytes_s": H200.bandwidth,
    "copy_bytes_s": H200.copied,
}
"""Of a record, before its cases."""

WIDTH = 150
"""Of the table, which no narrower terminal shows whole."""

RESOURCES = ("memory", "issue", "float", "integer", "shared", "tensor")
"""Of those that the schedule knows, the ones that bind a kernel somewhere; `others` are the rest."""


@dataclass(frozen=True)
class Row:
    """One case: bytes and nanoseconds of one task, or of what the case is made of.

    sources: digest of the kernels that were counted. floor_bytes: what the work must move; bytes: what thread
    blocks touched first; ns: what the kernels need of each resource; predicted_ns: the schedule's; bound: the resource
    of which they need most; floor_ns: of any kernel.
    """

    name: str
    backend: str
    sources: str
    unit: str
    floor_bytes: int
    bytes: float
    ns: dict[str, float]
    predicted_ns: float

    RECORDED: ClassVar = ("bound", "need_ns", "floor_ns")

    @property
    def bound(self) -> str:
        return max(self.ns, key=self.ns.__getitem__)

    @property
    def need_ns(self) -> float:
        return self.ns[self.bound]

    @property
    def floor_ns(self) -> float:
        return 1e9 * self.floor_bytes / H200.bandwidth


def sheet(path: Path = COUNTED) -> tuple[Row, ...]:
    """A row for every case of a record of `python -m benchmarks virtual`.

    Raises:
        OSError, ValueError: no record, or another file.
    """
    return tuple(row_of(one) for one in read(path) if one.architecture == ARCHITECTURE)


def row_of(one: Counted) -> Row:
    """A case, whose kernels run one after another."""
    spent = dict.fromkeys((*RESOURCES, "others"), 0.0)
    for use in one.kernels:
        others = {}
        for resource, share in use.prediction.busy.items():
            ns = share * one.predicted_ns(use)
            if resource in RESOURCES:
                spent[resource] += ns
            else:
                others[resource] = ns
        spent["others"] += max(others.values(), default=0.0)
    spent["memory"] = 1e9 * one.device_bytes / H200.copied
    predicted = sum(map(one.predicted_ns, one.kernels))
    return Row(one.name, one.backend, one.sources, one.unit, one.floor, one.device_bytes, spent, predicted)


def print_sheet(rows: Sequence[Row], console: Console) -> None:
    """The sheet as a table."""
    console.width = max(console.width, WIDTH)
    of_bytes = ("bytes\nto move", "\nfloor", "bytes\ntouched")
    needs = (f"need:\n{name}" for name in (*RESOURCES, "others"))
    table = new_table(["case"], [*of_bytes, *needs, "\npredicted", "\na second"])
    table.title = f"ns a task, token, row or step on an {H200.name}: worked out, not measured"
    for row in rows:
        spent = [f"[bold]{figure(ns)}[/bold]" if name == row.bound else figure(ns) for name, ns in row.ns.items()]
        title = label(row.backend, row.name, row.sources)
        table.caption = CHANGED if title.endswith("*") else table.caption
        moved = (f"{row.floor_bytes:,}", figure(row.floor_ns), figure(row.bytes))
        table.add_row(title, *moved, *spent, figure(row.predicted_ns), f"{1e9 / row.need_ns:.2g}")
    console.print(table)
    console.print(
        f"floor: what any kernel must move, at {H200.bandwidth / 1e9:.0f} GB/s. Need: of these kernels as they are, "
        f"memory at {H200.copied / 1e9:.0f} GB/s, {H200.multiprocessors} multiprocessors at {H200.clock / 1e9:.2f} "
        "GHz; bold: the most. a second: tasks, tokens, rows, steps by that need.",
        soft_wrap=True,
    )
