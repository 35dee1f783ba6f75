"""A whole run: the machine, then workloads at several batch sizes, as one report."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import torch

from benchmarks.harness import QUICK, STANDARD, run_workload
from benchmarks.machine import measure_machine
from benchmarks.providers import Provider
from benchmarks.record import Report, Timing
from benchmarks.workloads import Workload


def run(
    workloads: Sequence[Workload],
    providers: Sequence[Provider],
    device: torch.device,
    *,
    quick: bool = False,
    announce: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure the machine's rates, then every workload in turn."""
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    begun = time.perf_counter()
    announce("measuring the machine")
    machine = measure_machine(device, quick=quick)
    timings: list[Timing] = []
    for workload in workloads:
        timings.extend(run_workload(workload, providers, device, QUICK if quick else STANDARD, announce))
    return Report(began, round(time.perf_counter() - begun, 1), machine, tuple(timings))
