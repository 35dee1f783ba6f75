"""A record of kernels on a virtual GPU, made up."""

from benchmarks.gpu.virtual_record import Counted
from virtual_gpu import Counters
from virtual_gpu.hardware import H200
from virtual_gpu.profile import Use
from virtual_gpu.schedule import Prediction

COUNTERS = Counters(
    warp_instructions=4000,
    global_sectors=300,
    global_ideal_sectors=200,
    global_bytes_read=6000,
    global_bytes_written=400,
    shared_wavefronts=90,
    shared_ideal_wavefronts=60,
    floating_point=2000,
    integer=1000,
    control=400,
    memory=600,
)


def use(kernel: str, microseconds: float, device_bytes: int, **busy: float) -> Use:
    cycles = 1e-6 * microseconds * H200.clock
    return Use(kernel, 1, 8, 128, COUNTERS, device_bytes, 64, 4, Prediction(1e-6 * microseconds, cycles, busy))


def counted(*uses: Use, floor: int = 500, architecture: int = 90, sources: str = "0123") -> Counted:
    """100 tasks on one multiprocessor."""
    return Counted("W", "cuda", architecture, "task", 100, floor, 1, sources, uses)
