"""What `virtual` leaves behind: the kernels of every case that has run, written as JSON and read back."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.machine import git_revision
from benchmarks.measure.sources import of_kernels
from benchmarks.reports.record import write_json
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
        """Of one unit: sectors that a block touches first, as `Use` has them."""
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
    cases = [asdict(one) for one in counted]
    write_json(path, {"format": FORMAT, "measured": False, "revision": git_revision(), "cases": cases})


def read(path: Path) -> list[Counted]:
    """The cases of a record.

    Raises:
        ValueError: a file that is none.
        OSError: no file.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}, expected {FORMAT}")
        return [Counted(**{**case, "kernels": tuple(map(_use, case["kernels"]))}) for case in content["cases"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a record of kernels on a virtual GPU: {error}") from error


def _use(content: dict[str, Any]) -> Use:
    counters, prediction = Counters(**content["counters"]), Prediction(**content["prediction"])
    return Use(**{**content, "counters": counters, "prediction": prediction})
