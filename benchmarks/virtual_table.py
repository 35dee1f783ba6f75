"""The record of kernels on virtual GPUs in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.table import figure
from benchmarks.virtual_record import GPUS, Counted, short
from virtual_gpu.profile import Use

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


def as_table(counted: Sequence[Counted]) -> Table:
    """A line a kernel, under the case with the bytes that it must move; counts are of one task, token or row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=TITLE)
    table.add_column("kernel", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for one in counted:
        table.add_section()
        table.add_row(f"[bold]{one.backend}, {one.name}[/bold]")
        table.add_row(f"a {one.unit} on an {GPUS[one.architecture].name}", "", "", "", f"{one.floor:,}", "floor")
        for use in one.kernels:
            table.add_row(short(use.kernel), *_figures(one, use))
    return table


def _figures(one: Counted, use: Use) -> list[str]:
    counters, units = use.counters, one.units
    classes = (counters.floating_point, counters.integer, counters.control, counters.memory)
    numbers = (counters.global_bytes_read, counters.global_bytes_written, use.device_bytes)
    return [
        figure(counters.warp_instructions / units),
        "/".join(str(round(100 * count / counters.warp_instructions)) for count in classes),
        _ratio(counters.global_sectors, counters.global_ideal_sectors),
        *(figure(number / units) for number in numbers),
        _ratio(counters.shared_wavefronts, counters.shared_ideal_wavefronts),
        figure(counters.tensor_operations / units) if counters.tensor_operations else "",
        figure(one.predicted_ns(use)),
        use.prediction.bound,
    ]


def _ratio(taken: int, ideal: int) -> str:
    return f"{taken / ideal:.2f}" if ideal else ""
