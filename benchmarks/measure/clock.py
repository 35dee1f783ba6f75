"""One clock, one time limit and one memory gauge for every device."""

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from memformer_lab.profiling.rates import milliseconds

__all__ = ["limited", "milliseconds", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError inside once `seconds` are over, when Python code next runs there. None: no limit.

    Nor is there one outside the main thread, the only one that signals interrupt.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    # Again every second: what runs inside may have caught the first.
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def peak_bytes(action: Callable[[], object], device: torch.device) -> int | None:
    """Bytes one call takes at its peak beyond what was held before it: the allocator's count on a GPU, resident memory
    elsewhere (a lower bound: of memory that the process already held and reuses, only what glibc's allocator could give
    back beforehand shows). None where neither is told.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _give_back()
        _CLEAR.write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        action()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _give_back() -> None:
    """Returns what the allocator holds of freed memory to the system, where that can be asked for."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
