"""The table of faults in docs/virtual-gpu.md."""

import re
from pathlib import Path
from typing import NamedTuple

PAGE = (Path(__file__).parents[2] / "docs" / "virtual-gpu.md").read_text(encoding="utf-8")


class Fault(NamedTuple):
    """What is wrong, in a kernel, on a device of an architecture (80, 90), and the check that finds it."""

    what: str
    kernel: str
    architecture: int
    check: str


def listed(way: str) -> list[Fault]:
    """The faults of kernels that come in one way, "CUDA" or "Triton", in the page's order."""
    rows = re.findall(rf"^\| {way} \| ([^|]+) \| (\w+) \| (\d)\.(\d) \| ([a-z-]+) \|$", PAGE, re.MULTILINE)
    return [Fault(what, kernel, int(major + minor), check) for what, kernel, major, minor, check in rows]
