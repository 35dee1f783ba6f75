"""A profile on the terminal, of hardware or of a virtual GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from memformer_lab.profiling.call import Profile, ncu_command

if TYPE_CHECKING:
    # They need Triton, which the lab else does without.
    from memformer_lab.profiling.virtual import VirtualProfile
    from virtual_gpu.profile import Use


COUNTS = (
    "warp instructions",
    "% float/int/control/memory",
    "sectors / ideal",
    "bytes read",
    "bytes written",
    "device bytes",
    "wavefronts / ideal",
    "tensor instructions",
    "ns, predicted",
    "bound by",
)
"""What `counts_of` gives: a warp's instructions and their classes; sectors of global memory over the fewest that would
do, bytes read and written, and those of sectors that a block touched first; wavefronts of shared memory over the
fewest; instructions of tensor cores; the predicted time and the resource that binds it."""


def print_profile(found: Profile, console: Console) -> None:
    """Print where a call ran and why, its floors, its time, and on a GPU its kernels and how to look closer."""
    call = found.call
    _print_plan(found, found.backend, call.device, console)
    console.print(_floors(found))
    q10, median, q90 = found.milliseconds
    console.print(
        f"measured: {median:.3g} ms (q10 {q10:.3g}, q90 {q90:.3g}, {found.runs} runs), "
        f"{call.batch / median * 1e3:,.0f} tasks/s, {100 * found.of_the_limit:.0f}% of the limit",
        soft_wrap=True,
    )
    if found.kernels:
        console.print(_kernels(found))
    if call.device.startswith("cuda"):
        console.print(f"closer: {ncu_command(call)}", markup=False, soft_wrap=True)


def print_virtual(found: VirtualProfile, console: Console) -> None:
    """Prints what a call's kernels did, a line each, and what the checks found."""
    call = found.call
    _print_plan(found, call.backend, f"a virtual {found.gpu.name}", console)
    table = Table("a task", *(use.kernel for use in found.uses), box=SIMPLE_HEAD, pad_edge=False)
    shapes = [
        (str(use.launches), f"{use.blocks:,} x {use.threads}", str(use.registers), str(use.resident))
        for use in found.uses
    ]
    for label, *values in zip(
        ("launches", "blocks x threads", "registers", "blocks of a multiprocessor"), *shapes, strict=True
    ):
        table.add_row(label, *values)
    counts = [counts_of(use, call.batch, found.predicted_ns(use)) for use in found.uses]
    for label, *values in zip(COUNTS, *counts, strict=True):
        table.add_row(label, *values)
    console.print(table)
    console.print(
        f"a task: {found.floor:,} bytes must be moved. Times are predicted by a model, for {call.batch:,} tasks on "
        f"each of {found.gpu.multiprocessors} multiprocessors; no hardware has confirmed one.",
        soft_wrap=True,
    )
    for report in found.reports:
        console.print(f"found: {report}", soft_wrap=True)


def counts_of(use: Use, units: int, ns: float) -> list[str]:
    """A kernel's counters, a task (or another unit, of which there are so many), as a table shows them."""
    counters = use.counters
    classes = (counters.floating_point, counters.integer, counters.control, counters.memory)
    bytes_moved = (counters.global_bytes_read, counters.global_bytes_written, use.device_bytes)
    return [
        _figure(counters.warp_instructions / units),
        "/".join(str(round(100 * count / counters.warp_instructions)) for count in classes),
        _ratio(counters.global_sectors, counters.global_ideal_sectors),
        *(_figure(count / units) for count in bytes_moved),
        _ratio(counters.shared_wavefronts, counters.shared_ideal_wavefronts),
        _figure(counters.tensor_operations / units) if counters.tensor_operations else "",
        _figure(ns),
        use.prediction.bound,
    ]


def _print_plan(found: Profile | VirtualProfile, backend: str, place: str, console: Console) -> None:
    """What was called, where it ran and why."""
    call = found.call
    for line in (
        f"{call.direction}: B = {call.batch:,}, n = {call.n}, d = {call.d}, L = {call.layers}, H = {call.heads}, "
        f"{call.rule}, {call.structure}, {call.dtype} on {place}",
        f"backend {backend}, algorithm {found.algorithm}, regime {found.regime}: {found.reason}",
    ):
        console.print(line, soft_wrap=True)


def _floors(found: Profile) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("", "a task", "at", "floor, ms"):
        table.add_column(header, justify="left" if not header else "right")
    operations, rates, floors = found.operations, found.rates, found.floors_ms
    table.add_row(
        "bytes", f"{found.bytes // found.call.batch:,}", f"{rates.read_gb_s:.1f} GB/s read", f"{floors['bytes']:.3g}"
    )
    table.add_row(
        "multiply-adds", f"{operations.total:,}", f"{rates.fma_gflop_s:,.0f} GFLOP/s", f"{floors['operations']:.3g}"
    )
    table.caption = (
        f"multiply-adds: Gram {operations.gram:,}, forward {operations.forward:,}, backward {operations.backward:,}"
    )
    return table


def _kernels(found: Profile) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel")
    for header in ("launches", "us each", "registers", "shared, bytes", "occupancy"):
        table.add_column(header, justify="right")
    for use in found.kernels:
        table.add_row(
            use.name,
            str(use.launches),
            f"{use.microseconds:.2f}",
            *("" if value is None else f"{value:,}" for value in (use.registers, use.shared_bytes)),
            "" if use.occupancy is None else f"{use.occupancy:.0f}%",
        )
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(taken: int, ideal: int) -> str:
    return f"{taken / ideal:.2f}" if ideal else ""
