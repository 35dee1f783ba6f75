"""One clock and one memory gauge for every device."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from memformer_lab.profiling.rates import milliseconds

__all__ = ["milliseconds", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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
