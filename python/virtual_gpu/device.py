"""A device: memory that kernels may touch, launches, and what was found wrong in them."""

import ctypes
import math
import operator
import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from virtual_gpu.counters import CLASSES, COUNTED, Counters
from virtual_gpu.limits import BLOCKS_OF_CLUSTER, LIMITS, RESERVED_SHARED, THREADS_OF_BLOCK
from virtual_gpu.module import Kernel, Module
from virtual_gpu.native import library
from virtual_gpu.report import ALL_CHECKS, CHECKS, Report, place_of, with_places

PROFILE = np.dtype([("executed", "<u8"), ("requests", "<u8"), ("taken", "<u8"), ("ideal", "<u8")])
"""Of one instruction: how often warps ran it, its requests to memory, the sectors or wavefronts that they took, and how
few might have done."""

TRACE = np.dtype([("warp", "<u4"), ("place", "<u4"), ("sectors", "<u4"), ("fresh", "<u4"), ("wavefronts", "<u4")])
"""What a warp of a block ran: an instruction's place in the code, sectors of global memory that it touched, those of
them that its block had not touched before, and its wavefronts of shared memory."""

NO_BLOCK = 2**64 - 1

Extent = int | Sequence[int]


class LaunchFailed(Exception):
    """A launch that could not be made, or that ended early; `reports` say why."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__("; ".join(map(str, reports)))
        self.reports = reports


@dataclass(frozen=True)
class Spot:
    """An instruction of a kernel, and its row of the profile."""

    source: str
    text: str
    executed: int
    requests: int
    taken: int
    ideal: int


@dataclass(frozen=True)
class Launch:
    """A launch that has ended: `profile` has a row (PROFILE) for each instruction of the kernel's code, `trace` one
    (TRACE) for each that the traced block ran; `shared` counts the bytes of a block, static ones too."""

    kernel: Kernel
    label: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    counters: Counters
    profile: NDArray[np.void] = field(repr=False)
    trace: NDArray[np.void] = field(repr=False)

    def worst(self, count: int = 8) -> list[Spot]:
        """The instructions that took most sectors or wavefronts beyond the ideal, the worst first."""
        beyond = self.profile["taken"].astype(np.int64) - self.profile["ideal"].astype(np.int64)
        files = self.kernel.module.source.files
        spots = []
        for place in np.argsort(-beyond, kind="stable")[:count]:
            if beyond[place] > 0:
                instruction = self.kernel.code.instructions[place]
                source = place_of(files, instruction.file, instruction.line)
                spots.append(Spot(source, instruction.text, *map(int, self.profile[place])))
        return spots


class DeviceMemory:
    """Memory of the host that kernels may touch."""

    def __init__(self, machine: int) -> None:
        self._machine = machine

    def register(
        self, address: int, nbytes: int, name: str, *, initialised: bool = True, writable: bool = True
    ) -> None:
        """Lets kernels touch these bytes. Those of memory that is not `initialised` hold nothing until written.

        What lay at the same address is forgotten.
        """
        if address < 0 or nbytes < 0:
            raise ValueError(f"{nbytes} bytes at {address}")
        library().vgpu_register(self._machine, address, nbytes, name.encode(), int(initialised), int(writable))

    def forget(self, address: int) -> None:
        """Kernels may no longer touch what was registered at this address."""
        library().vgpu_forget(self._machine, address)

    def wrote(self, address: int, nbytes: int) -> None:
        """The host wrote these bytes."""
        library().vgpu_wrote(self._machine, address, nbytes)

    def initialised(self, address: int, nbytes: int) -> bool:
        """Whether all of these bytes have been written."""
        return bool(library().vgpu_initialised(self._machine, address, nbytes))


class Device:
    """A device of a compute capability (80, 90, 100).

    `order` is that of warps and blocks: 0 ascending, 1 descending, and each other number a shuffle of its own. A launch
    that runs more than `instruction_limit` instructions of warps is ended.
    """

    def __init__(
        self,
        capability: int = 90,
        multiprocessors: int = 2,
        order: int = 0,
        checks: Collection[str] = CHECKS,
        instruction_limit: int = 2_000_000_000,
    ) -> None:
        if capability not in LIMITS:
            raise ValueError(f"capability is one of {', '.join(map(str, LIMITS))}, not {capability}")
        if not set(checks) <= set(ALL_CHECKS):
            raise ValueError(f"unknown checks: {', '.join(sorted(set(checks) - set(ALL_CHECKS)))}")
        if multiprocessors < 1 or not 0 <= order < 2**32 or instruction_limit < 0:
            raise ValueError(f"multiprocessors {multiprocessors}, order {order}, instruction_limit {instruction_limit}")
        self.capability, self.multiprocessors, self.order = capability, multiprocessors, order
        self.checks = frozenset(checks)
        self.instruction_limit = instruction_limit
        self._limits = LIMITS[capability]
        races = self.checks & {"race-shared", "race-global", "replicated-store", "proxy-fence"}
        self._machine = int(
            library().vgpu_machine(order, multiprocessors, int("uninitialised" in self.checks), int(bool(races)))
        )
        weakref.finalize(self, library().vgpu_free_machine, self._machine)
        self.memory = DeviceMemory(self._machine)
        self.traced_block: int | None = None
        """Counted along the grid: each instruction that it runs is recorded in `Launch.trace`."""
        self._found: dict[tuple[str, str, str], Report] = {}
        self._modules: set[str] = set()
        self._held: list[Module] = []
        self._lock = threading.Lock()

    @property
    def shared_of_block(self) -> int:
        """Bytes of shared memory that one block may have."""
        return self._limits.shared_of_block

    @property
    def shared_of_multiprocessor(self) -> int:
        """Bytes of shared memory of one multiprocessor."""
        return self._limits.shared_of_multiprocessor

    @property
    def reports(self) -> list[Report]:
        """What was found since the last `take_reports`, each place once."""
        return list(self._found.values())

    def take_reports(self) -> list[Report]:
        """The reports, which are forgotten."""
        taken = self.reports
        self._found.clear()
        return taken

    def launch(
        self,
        kernel: Kernel,
        grid: Extent,
        block: Extent,
        arguments: bytes,
        *,
        shared: int = 0,
        cluster: Extent = (1, 1, 1),
        cooperative: bool = False,
        label: str | None = None,
    ) -> Launch:
        """Runs a kernel to its end. `shared` counts the bytes of dynamic shared memory, `arguments` are laid out as
        `kernel.parameters` say.

        Raises LaunchFailed where the launch cannot be made or had to end early, UnknownInstruction for PTX that the
        machine does not execute.
        """
        name = label or kernel.name
        extents = tuple(map(_extents, (grid, block, cluster)))
        with self._lock:
            reason = self._refusal(kernel, extents, len(arguments), shared, cooperative)
            if reason is not None:
                raise LaunchFailed(self._keep([Report("launch", 1, name, "", reason)]))
            program = kernel.program
            self._hold(kernel.module)
            dimensions = (ctypes.c_uint32 * 9)(*(size for extent in extents for size in extent))
            failed = library().vgpu_launch(
                self._machine,
                program,
                dimensions,
                shared,
                bytes(arguments),
                len(arguments),
                int(cooperative),
                self.instruction_limit,
                NO_BLOCK if self.traced_block is None else self.traced_block,
            )
            reports = self._keep(self._collect(kernel, name))
            profile = self._profile(len(kernel.code.instructions))
            total, counters = shared + kernel.static_shared, self._counters(kernel, profile)
            launch = Launch(kernel, name, extents[0], extents[1], total, counters, profile, self._trace())
        if failed:
            raise LaunchFailed(reports)
        return launch

    def _refusal(
        self, kernel: Kernel, extents: tuple[tuple[int, ...], ...], given: int, shared: int, cooperative: bool
    ) -> str | None:
        """Why a launch cannot be made, or None."""
        grid, block, cluster = extents
        threads, blocks, of_cluster = map(math.prod, extents[1::-1] + extents[2:])
        if kernel.target > self.capability or (kernel.specific and kernel.target != self.capability):
            only = " alone" if kernel.specific else ""
            return f"the kernel is for sm_{kernel.target}{only}, the device is an sm_{self.capability}"
        if given != kernel.parameter_bytes:
            return f"{given} bytes of arguments, the kernel takes {kernel.parameter_bytes}"
        if min(*grid, *block, *cluster) < 1:
            return f"a grid of {grid}, blocks of {block}, clusters of {cluster}"
        if grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
            return f"a grid of {grid}"
        if threads > min(kernel.threads or THREADS_OF_BLOCK, THREADS_OF_BLOCK) or block[2] > 64:
            return f"blocks of {threads} threads, the kernel is compiled for {kernel.threads or THREADS_OF_BLOCK}"
        if kernel.block not in (None, block):
            return f"blocks of {block} threads, the kernel is compiled for {kernel.block}"
        if kernel.cluster not in (None, cluster):
            return f"clusters of {cluster} blocks, the kernel is compiled for {kernel.cluster}"
        total = shared + kernel.static_shared
        if shared < 0 or total > self.shared_of_block:
            return f"{total} bytes of shared memory for a block, there are {self.shared_of_block}"
        if of_cluster > 1 and (not self._limits.clusters or of_cluster > BLOCKS_OF_CLUSTER):
            return f"clusters of {of_cluster} blocks on an sm_{self.capability}"
        if any(size % part for size, part in zip(grid, cluster, strict=True)):
            return f"a grid of {grid} in clusters of {cluster}"
        if cooperative and blocks > self._resident(threads, total):
            return f"a cooperative grid of {blocks} blocks, {self._resident(threads, total)} are on the device at once"
        return None

    def _resident(self, threads: int, shared: int) -> int:
        """Blocks that the device holds at once, registers aside."""
        limits = self._limits
        warps = -(-threads // 32)
        of_one = min(
            limits.blocks_of_multiprocessor,
            limits.threads_of_multiprocessor // (32 * warps),
            limits.shared_of_multiprocessor // (shared + RESERVED_SHARED),
        )
        return of_one * self.multiprocessors

    def _hold(self, module: Module) -> None:
        """Lets kernels touch the variables of their module."""
        for name, values in module.variables.items():
            key = f"{id(module)}:{name}"
            if key not in self._modules:
                self._modules.add(key)
                self._held.append(module)
                writable = module.source.variables[name].space == "global"
                self.memory.register(values.ctypes.data, values.nbytes, name, writable=writable)

    def _collect(self, kernel: Kernel, label: str) -> list[Report]:
        found = []
        files = kernel.module.source.files
        check, count, file, line = ctypes.c_int32(), ctypes.c_uint64(), ctypes.c_int32(), ctypes.c_int32()
        for index in range(library().vgpu_report_count(self._machine)):
            values = map(ctypes.byref, (check, count, file, line))
            detail = library().vgpu_report(self._machine, index, *values).decode()
            name = ALL_CHECKS[check.value]
            if name in self.checks:
                place = place_of(files, file.value, line.value)
                found.append(Report(name, count.value, label, place, with_places(files, detail)))
        return found

    def _keep(self, reports: list[Report]) -> list[Report]:
        for report in reports:
            key = report.check, report.kernel, report.source
            known = self._found.get(key)
            count = report.count + (known.count if known else 0)
            self._found[key] = Report(report.check, count, report.kernel, report.source, (known or report).detail)
        return reports

    def _counters(self, kernel: Kernel, profile: NDArray[np.void]) -> Counters:
        values = (ctypes.c_uint64 * len(COUNTED))()
        library().vgpu_counters(self._machine, values)
        classes = np.bincount(kernel.classes, profile["executed"].astype(np.float64), minlength=len(CLASSES))
        return Counters(*values, *map(int, classes))

    def _trace(self) -> NDArray[np.void]:
        trace = np.zeros(library().vgpu_trace_length(self._machine), TRACE)
        library().vgpu_trace(self._machine, trace.ctypes.data)
        return trace

    def _profile(self, instructions: int) -> NDArray[np.void]:
        profile = np.zeros(instructions, PROFILE)
        library().vgpu_profile(self._machine, profile.ctypes.data)
        return profile


def _extents(extent: Extent) -> tuple[int, ...]:
    """An extent in three directions; raises ValueError for none or more of them, TypeError for what is no integer."""
    sizes = tuple(map(operator.index, extent if isinstance(extent, Iterable) else (extent,)))
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"an extent has one to three directions, not {len(sizes)}")
    return (*sizes, 1, 1)[:3]
