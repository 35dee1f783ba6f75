"""What a trace of torch.profiler says of the kernels that a call launched on a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KernelUse:
    """One kernel of a trace; None where the trace does not say.

    Attributes:
        name: of the kernel.
        launches: how many.
        microseconds: mean of a launch.
        registers: of a thread.
        shared_bytes: of a thread block.
        occupancy: estimated per cent of a multiprocessor's warps.
    """

    name: str
    launches: int
    microseconds: float
    registers: int | None
    shared_bytes: int | None
    occupancy: float | None


def kernels_of(path: Path) -> tuple[KernelUse, ...]:
    """The kernels in a trace file (Chrome's format), those that took longest together first.

    Raises:
        ValueError: not such a file.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        kernels = [event for event in events if event.get("cat") == "kernel"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a trace of torch.profiler: {error}") from error
    names = dict.fromkeys(event["name"] for event in kernels)
    found = [_use(name, [event for event in kernels if event["name"] == name]) for name in names]
    return tuple(sorted(found, key=lambda use: -use.launches * use.microseconds))


def _use(name: str, events: list[Mapping[str, Any]]) -> KernelUse:
    said: Mapping[str, Any] = events[0].get("args", {})
    registers, shared, occupancy = (
        said.get(key) for key in ("registers per thread", "shared memory", "est. achieved occupancy %")
    )
    return KernelUse(
        name,
        len(events),
        sum(float(event["dur"]) for event in events) / len(events),
        None if registers is None else int(registers),
        None if shared is None else int(shared),
        None if occupancy is None else float(occupancy),
    )
