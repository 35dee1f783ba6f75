"""What a call's kernels did, and how long the model of time says they take on a GPU.

device = Device(90, multiprocessors=1)
device.traced_block = 0
...launches with it...
for use in uses(launches, H200):
    print(use.kernel, use.counters.global_sectors, use.prediction)

One virtual multiprocessor stands for each of the GPU's: times are of a call with so many times the work, which is right
where the work of a call goes to its blocks, and blocks to multiprocessors, evenly. No prediction has been held against
a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from virtual_gpu.counters import Counters
from virtual_gpu.courses import courses
from virtual_gpu.device import Launch
from virtual_gpu.hardware import SECTOR, Gpu, registers_of, resident_blocks
from virtual_gpu.schedule import Prediction, predict


@dataclass(frozen=True)
class Use:
    """A kernel in a call.

    blocks, threads: of the largest launch, and of a block. registers: of a thread, as ptxas allocates them. resident:
        blocks of a multiprocessor.
    device_bytes: of sectors of global memory that a block touches for the first time, counted for all blocks as for the
        one that was traced: what device memory must move if blocks share nothing through a cache.
    prediction: of all launches, one after another.
    """

    kernel: str
    launches: int
    blocks: int
    threads: int
    counters: Counters
    device_bytes: int
    registers: int
    resident: int
    prediction: Prediction


def uses(launches: Sequence[Launch], gpu: Gpu, multiprocessors: int = 1) -> list[Use]:
    """The kernels of a call in the order in which they first ran, on a device of so many multiprocessors.

    Raises:
        ValueError: no block of a launch was traced.
        RuntimeError: there is no ptxas.
    """
    found: dict[str, list[Launch]] = {}
    for launch in launches:
        found.setdefault(launch.kernel.name, []).append(launch)
    return [_use(name, same, gpu, multiprocessors) for name, same in found.items()]


def longer_by(uses: Sequence[Use], shorter: Sequence[Use]) -> list[Use]:
    """What a call did beyond a shorter one by the same kernels: kernels that took no longer are left out.

    Raises:
        ValueError: the shorter one has a kernel that the longer one has not.
    """
    before = {use.kernel: use for use in shorter}
    if more := before.keys() - {use.kernel for use in uses}:
        raise ValueError(f"the shorter call ran {', '.join(sorted(more))}, and the longer one did not")
    found = []
    for use in uses:
        less = before.get(use.kernel)
        if less is None:
            found.append(use)
        elif use.prediction.cycles > less.prediction.cycles:
            found.append(_beyond(use, less))
    return found


def _beyond(use: Use, less: Use) -> Use:
    longer, shorter = use.prediction, less.prediction
    cycles = longer.cycles - shorter.cycles
    busy = {
        name: max(0.0, share * longer.cycles - shorter.busy.get(name, 0.0) * shorter.cycles) / cycles
        for name, share in longer.busy.items()
    }
    return replace(
        use,
        counters=use.counters - less.counters,
        device_bytes=use.device_bytes - less.device_bytes,
        prediction=Prediction(longer.seconds - shorter.seconds, cycles, busy),
    )


def _use(name: str, launches: Sequence[Launch], gpu: Gpu, multiprocessors: int) -> Use:
    largest = max(launches, key=_blocks)
    threads, registers = math.prod(largest.block), _registers(largest.kernel.module.text, name)
    resident = resident_blocks(gpu, threads, registers, largest.shared)
    predictions = [
        predict(gpu, courses(launch), -(-_blocks(launch) * gpu.multiprocessors // multiprocessors), resident)
        for launch in launches
    ]
    return Use(
        kernel=name,
        launches=len(launches),
        blocks=_blocks(largest),
        threads=threads,
        counters=sum((launch.counters for launch in launches), Counters()),
        device_bytes=sum(SECTOR * _blocks(launch) * int(launch.trace["fresh"].sum()) for launch in launches),
        registers=registers,
        resident=resident,
        prediction=_together(predictions),
    )


def _together(predictions: Sequence[Prediction]) -> Prediction:
    """Of launches one after another."""
    seconds, cycles = sum(one.seconds for one in predictions), sum(one.cycles for one in predictions)
    names = dict.fromkeys(name for one in predictions for name in one.busy)
    busy = {name: sum(one.busy.get(name, 0.0) * one.cycles for one in predictions) / cycles for name in names}
    return Prediction(seconds, cycles, busy)


def _blocks(launch: Launch) -> int:
    return math.prod(launch.grid)


@cache
def _registers(text: str, kernel: str) -> int:
    return registers_of(text, kernel)[kernel]
