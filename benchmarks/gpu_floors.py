"""What the GPU kernels can reach on an H200, by what they do on a virtual GPU; nothing is measured.

For every resource the time in which it could do a case's work if it did nothing else and nothing kept it waiting: what
was counted over what the hardware does in a cycle (`virtual_gpu.hardware`), memory at the bandwidth that a copy is
expected to reach. The highest is the floor. The schedule's own prediction, which knows of latencies, stands beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT
from benchmarks.table import figure
from benchmarks.virtual_record import Counted, read
from virtual_gpu.hardware import H200

FORMAT = 2
ARCHITECTURE = 90
COUNTED = ROOT / "benchmarks" / "results" / "virtual-gpu.json"
COPY_BYTES_S = 4.3e12
"""What a copy is expected to reach of the nominal bandwidth, read and write counted."""

RESOURCES = ("memory", "issue", "float", "integer", "shared", "tensor")
"""Of those that the schedule knows, the ones that bind a kernel somewhere; `others` are the rest."""


@dataclass(frozen=True)
class Row:
    """One case: bytes and nanoseconds of one task, or of what the case is made of.

    floor_bytes: what must cross memory once; bytes: what blocks touched first; ns: of each resource; predicted_ns: the
    schedule's; bound: the resource with the highest floor.
    """

    name: str
    backend: str
    unit: str
    floor_bytes: int
    bytes: float
    ns: dict[str, float]
    predicted_ns: float

    @property
    def bound(self) -> str:
        return max(self.ns, key=self.ns.__getitem__)

    @property
    def floor_ns(self) -> float:
        return self.ns[self.bound]


def sheet(path: Path = COUNTED) -> tuple[Row, ...]:
    """A row for every case of a record of `python -m benchmarks virtual`.

    Raises:
        OSError, ValueError: no record, or another file.
    """
    return tuple(row_of(one) for one in read(path) if one.architecture == ARCHITECTURE)


def row_of(one: Counted) -> Row:
    """The floors of a case: its kernels run one after another."""
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
    spent["memory"] = 1e9 * max(one.device_bytes, one.floor) / COPY_BYTES_S
    predicted = sum(map(one.predicted_ns, one.kernels))
    return Row(one.name, one.backend, one.unit, one.floor, one.device_bytes, spent, predicted)


def as_record(rows: Sequence[Row]) -> dict[str, Any]:
    """For a JSON file; nothing in it was measured."""
    found = [{**asdict(row), "bound": row.bound, "floor_ns": row.floor_ns} for row in rows]
    return {"format": FORMAT, "measured": False, "gpu": H200.name, "copy_bytes_s": COPY_BYTES_S, "cases": found}


def print_sheet(rows: Sequence[Row], console: Console) -> None:
    """The sheet as a table, which no narrow terminal shows whole."""
    console.width = max(console.width, 120)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"Floors on an {H200.name}, ns a task, token or row: worked out, not measured",
    )
    table.add_column("case", no_wrap=True)
    for header in ("bytes", *RESOURCES, "others", "predicted", "a second"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        spent = [f"[bold]{figure(ns)}[/bold]" if name == row.bound else figure(ns) for name, ns in row.ns.items()]
        rate = f"{1e9 / row.floor_ns:.2g}"
        table.add_row(f"{row.backend}, {row.name}", figure(row.bytes), *spent, figure(row.predicted_ns), rate)
    console.print(table)
    console.print(
        f"{COPY_BYTES_S / 1e9:.0f} GB/s of a nominal {H200.bandwidth / 1e9:.0f}, {H200.multiprocessors} "
        f"multiprocessors at {H200.clock / 1e9:.2f} GHz. Bold: the floor. a second: tasks, tokens, rows at the floor.",
        soft_wrap=True,
    )
