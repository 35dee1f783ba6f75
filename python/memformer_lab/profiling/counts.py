"""A kernel's counters on a virtual GPU, as tables show them."""

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
do, bytes asked for, and those of sectors that a block touched first; wavefronts of shared memory over the fewest;
instructions of tensor cores; the predicted time and the resource that binds it."""


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


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(taken: int, ideal: int) -> str:
    return f"{taken / ideal:.2f}" if ideal else ""
