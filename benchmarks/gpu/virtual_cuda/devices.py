"""The virtual devices of tests and benchmarks. Host code asks a device for its numbers once in a process: each keeps
its index."""

from virtual_gpu import Device
from virtual_gpu.hardware import A100, H200

HOPPER, AMPERE, BLACKWELL, SMALL, WHOLE, WHOLE_AMPERE = range(6)
"""Compute capability 9.0, 8.0, 10.0; 9.0 with one multiprocessor, and with as many as an H200; 8.0 with as many as an
A100."""

_KINDS = {
    HOPPER: (90, 2),
    AMPERE: (80, 2),
    BLACKWELL: (100, 2),
    SMALL: (90, 1),
    WHOLE: (90, H200.multiprocessors),
    WHOLE_AMPERE: (80, A100.multiprocessors),
}


def device(index: int, order: int = 0) -> Device:
    """A new one of a kind; order: of warps and thread blocks."""
    capability, multiprocessors = _KINDS[index]
    return Device(capability, multiprocessors, order)


def devices() -> list[Device]:
    """One of each kind."""
    return [device(index) for index in _KINDS]
