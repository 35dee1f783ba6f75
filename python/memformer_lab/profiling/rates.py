"""The rates that bound any kernel on a device, measured: bytes and multiply-adds a second; and the clock they use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rates:
    """GB/s of copying (read and write both counted) and of reading; GFLOP/s of float32 matrix products."""

    copy_gb_s: float
    read_gb_s: float
    fma_gflop_s: float


def measure_rates(device: torch.device, *, quick: bool = False) -> Rates:
    """All rates of a device; about a second, a tenth of that when quick."""
    return Rates(
        copy_bandwidth(device, quick=quick), read_bandwidth(device, quick=quick), fma_rate(device, quick=quick)
    )


def milliseconds(action: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call: CUDA events around it on a GPU, the wall clock elsewhere."""
    if device.type == "cuda":
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        action()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1e3


def best_milliseconds(action: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Milliseconds of the quickest of some calls."""
    return min(milliseconds(action, device) for _ in range(repeats))


def copy_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """GB/s of copying one large tensor, read and write both counted: the best of several, far beyond any cache."""
    source = _large_buffer(device, 64 if quick else 256)
    target = torch.empty_like(source).copy_(source)
    best = best_milliseconds(lambda: target.copy_(source), device, 3 if quick else 9)
    return 2 * source.nbytes / best / 1e6


def read_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """GB/s of reading one large tensor on all threads and writing nothing, which is what a loss with gradients to the
    parameters does: the best of several sums, dot products with itself and maxima, far beyond any cache.

    A lower bound of what the memory can do, as any program's rate is. Loops in C++ over several streams at once, or
    with prefetches by hand, came within a tenth of it.
    """
    # Not smaller when quick: part of a smaller one would still lie in a server's cache from the pass before.
    source = _large_buffer(device, 256)
    reductions = (source.sum, source.amax, lambda: torch.dot(source, source))
    best = min(best_milliseconds(read, device, 3 if quick else 9) for read in reductions)
    return source.nbytes / best / 1e6


def _large_buffer(device: torch.device, mebibytes: int) -> torch.Tensor:
    size = (mebibytes << 20) * (4 if device.type == "cuda" else 1)
    return torch.ones(size // 4, dtype=torch.float32, device=device)


def fma_rate(device: torch.device, *, quick: bool = False) -> float:
    """GFLOP/s of a square float32 matrix product (two operations per multiply-add), the best of several."""
    side = 1024 if quick else 2048
    if device.type == "cuda":
        side *= 4
    a = torch.ones(side, side, device=device, dtype=torch.float32)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    best = best_milliseconds(lambda: torch.mm(a, a, out=out), device, 3 if quick else 7)
    return 2 * side**3 / best / 1e6
