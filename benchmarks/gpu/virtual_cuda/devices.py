"""The virtual devices of tests and benchmarks. Host code asks a device for its numbers once in a process: each keeps
its index."""

from virtual_gpu import Device

HOPPER, AMPERE, BLACKWELL, SMALL, DEFAULT = range(5)
"""Compute capability 9.0, 8.0, 10.0; 9.0 with one multiprocessor; and 9.0 with the code of a default build, whose PTX
is for 8.0 where sources read the same on both."""

_KINDS = {HOPPER: (90, 2), AMPERE: (80, 2), BLACKWELL: (100, 2), SMALL: (90, 1), DEFAULT: (90, 2)}


def device(index: int, order: int = 0) -> Device:
    """A new one of a kind; order: of warps and blocks."""
    capability, multiprocessors = _KINDS[index]
    return Device(capability, multiprocessors, order)


def devices() -> list[Device]:
    """One of each kind."""
    return [device(index) for index in _KINDS]
