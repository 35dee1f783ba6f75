"""How long a kernel takes on a GPU: a model of issue slots, scoreboards, memory and occupancy.

One multiprocessor runs the blocks that fit on it, each warp the course of instructions that a block's warps really ran.
A warp issues in order, at most one instruction a cycle and scheduler, when its operands are ready and its unit is free;
results come after the unit's latency; device memory serves the sectors that a block touches first, at the
multiprocessor's share of what a copy reaches of the bandwidth, and a first-level cache the others, as if it held all
that a block touches. Blocks that do not fit wait for others to end.

No prediction has been held against a measurement on a GPU: trust which resource it finds scarce, and one kernel against
another, before the microseconds. It does not know how ptxas folds addresses and spills registers (it orders what stands
between two branches again, the longest chain first, as ptxas might), caches that blocks share or that are too small for
what a block reads again, and clocks that vary.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virtual_gpu.hardware import SCHEDULERS, SECTOR, WARP, Gpu, classified


class Operation(NamedTuple):
    """An instruction: what it does, the registers it reads and writes, its multiply-adds of tensor cores, and how many
    instructions it is where that does not follow from what it does."""

    key: str
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    products: int = 0
    instructions: int | None = None

    @property
    def work(self) -> tuple[str, float]:
        """The unit that runs it, and how many instructions it is; of tensor cores, the cost of a multiply-add."""
        unit, usual = classified(self.key)
        if self.instructions is None:
            return unit, usual
        return ("integer", self.instructions) if self.instructions else ("none", 0)


class Issue(NamedTuple):
    """An operation that a warp ran: sectors of global memory that it touched, those of them that its block had not
    touched before, and wavefronts of shared memory."""

    operation: Operation
    sectors: int = 0
    fresh: int = 0
    wavefronts: int = 0


Course = Sequence[Issue]


@dataclass(frozen=True)
class Prediction:
    """`busy`: the share of the time that each resource works, on the multiprocessors that have blocks."""

    seconds: float
    cycles: float
    busy: dict[str, float]

    @property
    def bound(self) -> str:
        """The resource that works most, or `latency` where none works most of the time."""
        name = max(self.busy, key=self.busy.__getitem__)
        return name if self.busy[name] > 0.6 else "latency"


def predict(gpu: Gpu, courses: Iterable[Course], blocks: int, resident: int) -> Prediction:
    """The time of a launch, without its start.

    Args:
        courses: of the warps of one block; every block is taken to run the same.
        blocks: of the launch.
        resident: blocks that fit on a multiprocessor.

    Raises:
        ValueError: no block fits.
    """
    if resident < 1:
        raise ValueError("no block of the kernel fits on a multiprocessor")
    block = [_reordered(course, gpu) for course in courses]
    each, active = -(-blocks // gpu.multiprocessors), min(blocks, gpu.multiprocessors)
    # From the third round of blocks on, all take as long.
    rounds, rest = divmod(each, resident)
    simulated = min(rounds, 3) * resident + rest
    model = _Multiprocessor(gpu, block, simulated, resident, active)
    cycles, busy = model.run(), model.busy
    if rounds > 3:
        shorter = _Multiprocessor(gpu, block, simulated - resident, resident, active)
        more = rounds - 3
        cycles += more * (cycles - shorter.run())
        busy = {name: time + more * (time - shorter.busy[name]) for name, time in busy.items()}
    return Prediction(cycles / gpu.clock, cycles, {name: time / cycles for name, time in busy.items()})


def _latency(issue: Issue, gpu: Gpu) -> float:
    if issue.sectors:
        return gpu.latency["device" if issue.fresh else "cached"]
    if issue.wavefronts:
        return gpu.latency["shared"] + issue.wavefronts - 1
    unit, count = issue.operation.work
    if unit == "none":
        return 0.0
    # What takes many instructions is about half as long a chain of them.
    return gpu.latency[unit] * (max(1.0, count / 2) if unit != "tensor" else 1.0)


def _reordered(course: Course, gpu: Gpu) -> list[Issue]:
    """A warp's course as ptxas might order it."""
    orders: dict[tuple[int, ...], list[int]] = {}
    ordered: list[Issue] = []
    run: list[Issue] = []
    for k, issue in enumerate(course, 1):
        run.append(issue)
        if issue.operation.work[0] == "control" or len(run) == 512 or k == len(course):
            same = tuple(id(one.operation) for one in run)
            if same not in orders:
                orders[same] = _order(run, gpu)
            ordered.extend(run[k] for k in orders[same])
            run = []
    return ordered


def _order(run: Course, gpu: Gpu) -> list[int]:
    """Places, by the chain of latencies that hangs on each. Of accesses to memory, loads pass loads alone."""
    followers: list[list[int]] = [[] for _ in run]
    writers: dict[int, int] = {}
    since_store: list[int] = []
    for k, (operation, sectors, _, wavefronts) in enumerate(run):
        before = {writers[register] for register in operation.reads if register in writers}
        if sectors or wavefronts:
            stores = not operation.writes
            before.update(since_store if stores else since_store[:1])
            since_store = [k] if stores else [*since_store, k]
        if k == len(run) - 1:
            before.update(range(k))
        for other in before:
            followers[other].append(k)
        writers.update((register, k) for register in operation.writes)
    chain = [0.0] * len(run)
    for k in range(len(run) - 1, -1, -1):
        chain[k] = _latency(run[k], gpu) + max((chain[other] for other in followers[k]), default=0.0)
    return sorted(range(len(run)), key=lambda k: -chain[k])


class _Multiprocessor:
    """One of `active` multiprocessors, which runs `count` blocks, `resident` of them at a time. A resource is free from
    some cycle on; warps ask for it in the order in which they are ready."""

    def __init__(self, gpu: Gpu, block: Sequence[Course], count: int, resident: int, active: int) -> None:
        self._gpu = gpu
        self._bytes = min(gpu.fabric, gpu.copied / gpu.clock / active)
        self._block, self._count, self._resident = block, count, resident
        self._running = [len(block)] * count
        self._ready: list[dict[int, float]] = [{} for _ in range(len(block) * count)]
        self._place = [0] * len(self._ready)
        self._at_barrier: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        self._waiting: list[tuple[float, int, bool]] = []
        self._free: dict[tuple[str, int], float] = {}
        self.busy: dict[str, float] = {"issue": 0.0}
        """Cycles that resources worked; of those that each scheduler has, the mean."""

    def run(self) -> float:
        """Cycles until all blocks have ended."""
        warps, started = len(self._block), min(self._resident, self._count)
        for warp in range(warps * started):
            self._go_on(warp, 0.0)
        end = 0.0
        while self._waiting:
            time, warp, has_unit = heapq.heappop(self._waiting)
            block, course = warp // warps, self._block[warp % warps]
            if self._place[warp] == len(course):
                self._running[block] -= 1
                self._pass_barrier(block)
                if self._running[block] == 0 and started < self._count:
                    for new in range(warps * started, warps * (started + 1)):
                        self._go_on(new, time)
                    started += 1
                continue
            issue = course[self._place[warp]]
            operation = issue.operation
            unit, count = operation.work
            if not has_unit and unit != "none":
                start = self._take_unit(issue, unit, count, warp % SCHEDULERS, time)
                if start > time:
                    heapq.heappush(self._waiting, (start, warp, True))
                    continue
            slots = 0.0 if unit == "none" else 1.0 if unit == "tensor" else count
            issued = self._take("issue", warp % SCHEDULERS, time, slots) if slots else time
            arrives = issued + _latency(issue, self._gpu)
            if issue.fresh:
                duration = issue.fresh * SECTOR / self._bytes
                served = self._take("memory", 0, issued, duration) + duration
                arrives = served + self._gpu.latency["device"]
                end = max(end, served)
            self._ready[warp].update((register, arrives) for register in operation.writes)
            end = max(end, arrives if operation.writes else issued + slots)
            self._place[warp] += 1
            if operation.key.startswith("bar.") and operation.key not in ("bar.warp", "bar.arrive"):
                self._at_barrier[block].append((warp, issued))
                self._pass_barrier(block)
            else:
                self._go_on(warp, issued + slots)
        return end

    def _go_on(self, warp: int, earliest: float) -> None:
        """A warp's next instruction waits for its operands."""
        course, ready = self._block[warp % len(self._block)], self._ready[warp]
        if self._place[warp] < len(course):
            reads = course[self._place[warp]].operation.reads
            earliest = max([earliest, *(ready.get(register, 0.0) for register in reads)])
        heapq.heappush(self._waiting, (earliest, warp, False))

    def _take(self, resource: str, which: int, earliest: float, duration: float) -> float:
        """Reserves a resource; when it starts."""
        start = max(earliest, self._free.get((resource, which), 0.0))
        self._free[resource, which] = start + duration
        shares = 1 if resource in ("memory", "cache", "shared") else SCHEDULERS
        self.busy[resource] = self.busy.get(resource, 0.0) + duration / shares
        return start

    def _take_unit(self, issue: Issue, unit: str, count: float, scheduler: int, time: float) -> float:
        if issue.sectors:
            return self._take("cache", 0, time, max(1.0, issue.sectors / 4))
        if issue.wavefronts:
            return self._take("shared", 0, time, issue.wavefronts)
        work = count * (issue.operation.products if unit == "tensor" else WARP)
        return self._take(unit, scheduler, time, work * SCHEDULERS / self._gpu.results[unit])

    def _pass_barrier(self, block: int) -> None:
        """Lets a block's warps go on when all that still run have come."""
        arrived = self._at_barrier[block]
        if arrived and len(arrived) == self._running[block]:
            time = max(arrival for _, arrival in arrived) + self._gpu.latency["barrier"]
            self._at_barrier[block] = []
            for warp, _ in arrived:
                self._go_on(warp, time)
