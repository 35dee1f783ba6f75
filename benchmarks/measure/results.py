"""What a run finds: the machine it ran on, its timings, and the floors that no timing can be below."""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.measure.workloads import Workload


@dataclass(frozen=True)
class Machine:
    """Where a run took place. Rates are measured in the run itself.

    copy_gb_s      GB/s of a large tensor copy, read and write both counted
    read_gb_s      GB/s of reading a large tensor; None in records made before it was measured
    fma_gflop_s    GFLOP/s of a large float32 matrix product, a multiply-add being two operations
    revision       git revision of the tree, with "+" behind it if files differ from it; "unknown" outside git
    """

    device: str
    processor: str
    threads: int
    copy_gb_s: float
    fma_gflop_s: float
    python: str
    torch: str
    package: str
    revision: str
    read_gb_s: float | None = None
    gpu: str | None = None
    driver: str | None = None
    cuda: str | None = None


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds of one pass over the whole batch, and over how many runs."""

    median_ms: float
    q10_ms: float
    q90_ms: float
    runs: int

    @property
    def spread(self) -> float:
        """Half the distance from q10 to q90, relative to the median: what one pass may differ by."""
        return (self.q90_ms - self.q10_ms) / (2 * self.median_ms)

    @property
    def error(self) -> float:
        """What the median itself may differ by, relative to it: twice its standard error, were passes normal."""
        return 2 * self.spread / math.sqrt(self.runs)


@dataclass(frozen=True)
class Timing:
    """One provider on one workload.

    status            timed: passed the gate and was timed; rejected: wrong result; failed: raised; unsupported;
                      skipped: too slow to run at this size
    reason            why it was not timed, empty otherwise
    loss_error, gradient_error  relative errors against float64; the gradient's is its worst parameter's
    first_call_s      seconds of the first call, compilation included
    peak_bytes        memory one pass takes beyond its inputs, where the platform tells
    solver            solves the tasks instead of running the network: shown with the peers, and not one of them
    """

    provider: str
    peer: bool
    workload: Workload
    status: Literal["timed", "rejected", "failed", "unsupported", "skipped"]
    reason: str = ""
    quantiles: Quantiles | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    first_call_s: float | None = None
    peak_bytes: int | None = None
    solver: bool = False


@dataclass(frozen=True)
class Report:
    """One run of the benchmarks: when it began (ISO 8601, UTC), how many seconds it took, where, and what came out."""

    began: str
    seconds: float
    machine: Machine
    timings: tuple[Timing, ...]

    def best_peer_ms(self, workload: Workload) -> float | None:
        """Median of the fastest peer on this workload, None if no peer was timed."""
        medians = [
            timing.quantiles.median_ms
            for timing in self.timings
            if timing.workload == workload and timing.peer and not timing.solver and timing.quantiles is not None
        ]
        return min(medians, default=None)


def floors_ms(workload: Workload, machine: Machine) -> dict[str, float]:
    """The milliseconds no method can stay below, by the name of the rate that says so."""
    floors = {"bytes at copy bandwidth": memory_floor_ms(workload, machine.copy_gb_s)}
    if machine.read_gb_s is not None:
        floors["bytes at read bandwidth"] = memory_floor_ms(workload, machine.read_gb_s)
    return {**floors, "operations": operations_floor_ms(workload, machine)}


def memory_floor_ms(workload: Workload, gb_s: float) -> float:
    """Milliseconds a bandwidth needs for the bytes no method can avoid."""
    return workload.bytes_moved / gb_s / 1e6


def operations_floor_ms(workload: Workload, machine: Machine) -> float:
    """Milliseconds the machine's matrix-product rate needs for the cheapest known method's multiply-adds."""
    return 2 * workload.batch * workload.operations.total / machine.fma_gflop_s / 1e6
