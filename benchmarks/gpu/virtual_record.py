"""What `virtual` leaves behind: the kernels of every case that has run, written as JSON, read back and shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measure.sources import git_revision, of_kernels
from benchmarks.reports.record import read_json, write_json
from benchmarks.reports.table import new_table
from memformer_lab.profiling.view import counts_of
from virtual_gpu import Counters
from virtual_gpu.hardware import A100, H200
from virtual_gpu.profile import Use
from virtual_gpu.schedule import Prediction

FORMAT = 2
GPUS = {90: H200, 80: A100}
"""The GPU that times are predicted for, by compute capability."""


@dataclass(frozen=True)
class Counted:
    """A case (`virtual_cases.Case`) that has run.

    multiprocessors: virtual ones. sources: digest of the backend's kernels as they were.
    """

    name: str
    backend: str
    architecture: int
    unit: str
    units: int
    floor: int
    multiprocessors: int
    sources: str
    kernels: tuple[Use, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.name, self.backend, self.architecture

    @property
    def counters(self) -> Counters:
        """Of all kernels."""
        return sum((use.counters for use in self.kernels), Counters())

    @property
    def device_bytes(self) -> float:
        """Of one unit: sectors that a thread block touches first, as `Use` has them."""
        return sum(use.device_bytes for use in self.kernels) / self.units

    def predicted_ns(self, use: Use) -> float:
        """Nanoseconds of one unit in one kernel, on the whole GPU."""
        return (
            1e9 * use.prediction.seconds * self.multiprocessors / (self.units * GPUS[self.architecture].multiprocessors)
        )


CHANGED = "* of other kernels than the tree has: their sources have changed since"


def label(backend: str, name: str, sources: str) -> str:
    """A case in a table: with the mark of `CHANGED` where its kernels were made of other sources."""
    return f"{backend}, {name}" + ("" if sources == of_kernels(backend) else " *")


def short(kernel: str) -> str:
    """A kernel's name as its source has it: of C++'s `run_kernel<Kernel>` the class."""
    found = re.match(r"_ZN9memformer4cuda10run_kernelINS0_(\d+)", kernel)
    return kernel if found is None else kernel[found.end() :][: int(found[1])]


def write(path: Path, counted: Sequence[Counted]) -> None:
    """Writes a record atomically. Nothing in it was measured."""
    write_json(path, {"format": FORMAT, "measured": False, "revision": git_revision(), "cases": counted})


def read(path: Path) -> list[Counted]:
    """The cases of a record.

    Raises:
        ValueError: a file that is none.
        OSError: no file.
    """

    def build(content: dict[str, Any]) -> list[Counted]:
        return [Counted(**{**case, "kernels": tuple(map(_use, case["kernels"]))}) for case in content["cases"]]

    return read_json(path, FORMAT, "a record of kernels on a virtual GPU", build)


def _use(content: dict[str, Any]) -> Use:
    counters, prediction = Counters(**content["counters"]), Prediction(**content["prediction"])
    return Use(**{**content, "counters": counters, "prediction": prediction})


TITLE = "On a virtual GPU. Times are predicted for a whole GPU: no hardware has confirmed one"
HEADERS = (
    "warp\ninstr.",
    "% float/int/\ncontrol/mem.",
    "sectors\n/ ideal",
    "bytes\nread",
    "bytes\nwritten",
    "device\nbytes",
    "wavefr.\n/ ideal",
    "tensor\ninstr.",
    "ns",
    "binds",
)
"""Of what `counts_of` gives."""


def as_table(counted: Sequence[Counted]) -> Table:
    """A line a kernel, under the case with the bytes that it must move; counts are of one task, token or row."""
    table = new_table(["kernel"], HEADERS)
    table.title = TITLE
    for one in counted:
        table.add_section()
        title = label(one.backend, one.name, one.sources)
        table.caption = CHANGED if title.endswith("*") else table.caption
        table.add_row(f"[bold]{title}[/bold]")
        table.add_row(f"a {one.unit} on an {GPUS[one.architecture].name}", "", "", "", f"{one.floor:,}", "floor")
        for use in one.kernels:
            table.add_row(short(use.kernel), *counts_of(use, one.units, one.predicted_ns(use)))
    return table
