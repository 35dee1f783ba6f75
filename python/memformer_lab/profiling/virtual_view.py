"""A profile on a virtual GPU, on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from memformer_lab.profiling.counts import COUNTS, counts_of
from memformer_lab.profiling.virtual import GPU, VirtualProfile


def print_virtual(found: VirtualProfile, console: Console) -> None:
    """Prints what a call's kernels did, a line each, and what the checks found."""
    call = found.call
    console.print(
        f"{call.direction}: B = {call.batch:,}, n = {call.n}, d = {call.d}, L = {call.layers}, H = {call.heads}, "
        f"{call.rule}, {call.structure}, {call.dtype} on a virtual {GPU.name}",
        soft_wrap=True,
    )
    console.print(
        f"backend {call.backend}, algorithm {found.algorithm}, regime {found.regime}: {found.reason}", soft_wrap=True
    )
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
        f"each of {GPU.multiprocessors} multiprocessors; no hardware has confirmed one.",
        soft_wrap=True,
    )
    for report in found.reports:
        console.print(f"found: {report}", soft_wrap=True)
