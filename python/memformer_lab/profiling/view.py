"""A profile on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from memformer_lab.profiling.call import Profile, ncu_command


def print_profile(found: Profile, console: Console) -> None:
    """Print where a call ran and why, its floors, its time, and on a GPU its kernels and how to look closer."""
    call = found.call
    console.print(
        f"{call.direction}: B = {call.batch:,}, n = {call.n}, d = {call.d}, L = {call.layers}, H = {call.heads}, "
        f"{call.rule}, {call.structure}, {call.dtype} on {call.device}",
        soft_wrap=True,
    )
    console.print(
        f"backend {found.backend}, algorithm {found.algorithm}, regime {found.regime}: {found.reason}", soft_wrap=True
    )
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
