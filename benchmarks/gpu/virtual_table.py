"""The record of kernels on virtual GPUs in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.gpu.virtual_record import CHANGED, GPUS, Counted, label, short
from memformer_lab.profiling.counts import counts_of

TITLE = "On a virtual GPU. Times are predicted for a whole GPU: no hardware has confirmed one"
HEADERS = (
    "warp\ninstr.",
    "% float/int/\ncontrol/mem.",
    "sectors\n/ ideal",
    "bytes\nread",
    "bytes\nwritten",
    "device\nbytes",
    "wavefr.\n/ ideal",
    "tensor\ninstr.",
    "ns",
    "bound by",
)
"""Of what `counts_of` gives."""


def as_table(counted: Sequence[Counted]) -> Table:
    """A line a kernel, under the case with the bytes that it must move; counts are of one task, token or row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=TITLE)
    table.add_column("kernel", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for one in counted:
        table.add_section()
        title = label(one.backend, one.name, one.sources)
        table.caption = CHANGED if title.endswith("*") else table.caption
        table.add_row(f"[bold]{title}[/bold]")
        table.add_row(f"a {one.unit} on an {GPUS[one.architecture].name}", "", "", "", f"{one.floor:,}", "floor")
        for use in one.kernels:
            table.add_row(short(use.kernel), *counts_of(use, one.units, one.predicted_ns(use)))
    return table
