"""A whole run: the machine, then workloads at several batch sizes, as one report."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import torch

from benchmarks.measure.harness import QUICK, STANDARD, Policy, run_workload
from benchmarks.measure.machine import measure_machine
from benchmarks.measure.providers import Provider
from benchmarks.measure.workloads import Workload
from benchmarks.reports.record import Report, Timing

# Above this size a provider is run only if a pass is expected to stay below the limit.
LARGE_BATCH = 100_000
PASS_LIMIT_S = 1.0


def run(
    workloads: Sequence[Workload],
    providers: Sequence[Provider],
    device: torch.device,
    *,
    quick: bool = False,
    policy: Policy | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure the machine's rates, then every workload in turn.

    A provider whose pass would take more than PASS_LIMIT_S at a size above LARGE_BATCH, by its median at the largest
    size before, is skipped there and its timing says so.
    """
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    begun = time.perf_counter()
    announce("measuring the machine")
    machine = measure_machine(device, quick=quick)
    timings: list[Timing] = []
    for workload in workloads:
        slow = {provider.name: _too_slow(provider, workload, timings) for provider in providers}
        timed = run_workload(
            workload,
            [provider for provider in providers if not slow[provider.name]],
            device,
            policy or (QUICK if quick else STANDARD),
            announce,
        )
        found = {timing.provider: timing for timing in timed}
        timings.extend(
            found.get(p.name) or Timing(p.name, p.peer, workload, "skipped", slow[p.name]) for p in providers
        )
    return Report(began, round(time.perf_counter() - begun, 1), machine, tuple(timings))


def _too_slow(provider: Provider, workload: Workload, timings: Sequence[Timing]) -> str:
    """Why a provider is not run on a workload, empty if it is."""
    if workload.batch <= LARGE_BATCH:
        return ""
    medians = {
        timing.workload.batch: timing.quantiles.median_ms
        for timing in timings
        if timing.provider == provider.name
        and timing.quantiles is not None
        and timing.workload.with_batch(workload.batch) == workload
        and timing.workload.batch < workload.batch
    }
    if not medians:
        return ""
    size = max(medians)
    expected_s = medians[size] * workload.batch / size / 1e3
    if expected_s <= PASS_LIMIT_S:
        return ""
    return (
        f"about {expected_s:.1f} s a pass by its {medians[size]:,.0f} ms at B = {size:,}, "
        f"and above B = {LARGE_BATCH:,} the limit is {PASS_LIMIT_S:g} s"
    )
