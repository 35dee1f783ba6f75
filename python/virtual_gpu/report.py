"""What the device found wrong."""

import re
from dataclasses import dataclass

ALL_CHECKS = (
    "out-of-bounds",
    "misaligned",
    "read-only",
    "uninitialised",
    "race-shared",
    "race-global",
    "replicated-store",
    "copy-not-awaited",
    "proxy-fence",
    "divergent-barrier",
    "barrier-count",
    "warp-mask",
    "inactive-lane",
    "mbarrier",
    "pending-register",
    "deadlock",
    "trap",
    "instruction-limit",
    "launch",
)
"""Names of checks, in the order of machine/report.h."""

CHECKS = frozenset(ALL_CHECKS) - {"replicated-store"}
"""Those that a device makes unless it is told otherwise: stores of equal values by several threads are none of them."""


@dataclass(frozen=True)
class Report:
    """One finding at one place of one kernel.

    `source` is the line of the source that the instruction comes from, as in "grid.cuh:72", or "" where the PTX does
    not tell; `detail` describes the first of the `count` times.
    """

    check: str
    count: int
    kernel: str
    source: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check} ({self.count} x) at {self.source or '?'} in {self.kernel}: {self.detail}"


def place_of(files: dict[int, str], file: int, line: int) -> str:
    """The name of a place in the source."""
    return f"{files[file]}:{line}" if file in files else ""


def with_places(files: dict[int, str], detail: str) -> str:
    """A description in which places, which the machine writes as numbers, have their names."""
    return re.sub(r"@(\d+):(\d+)@", lambda found: place_of(files, int(found[1]), int(found[2])) or "?", detail)
