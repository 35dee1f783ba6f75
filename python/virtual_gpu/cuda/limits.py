"""What a driver refuses before a kernel runs: launches beyond a device, attributes that were not set."""

from enum import IntEnum
from math import prod
from typing import NamedTuple

from virtual_gpu import Device, Kernel
from virtual_gpu.limits import BLOCKS_OF_CLUSTER, LIMITS, RESERVED_SHARED, THREADS_OF_BLOCK

SHARED_WITHOUT_ASKING = 48 * 1024
"""Bytes of shared memory, static and dynamic, that a block may have where no attribute allows more."""

_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_LARGEST_BLOCK = (1024, 1024, 64)


class Error(IntEnum):
    """Numbers of cudaError_t."""

    SUCCESS = 0
    INVALID_VALUE = 1
    INVALID_CONFIGURATION = 9
    INVALID_DEVICE_FUNCTION = 98
    NO_KERNEL_IMAGE = 209
    INVALID_HANDLE = 400
    OUT_OF_RESOURCES = 701
    LAUNCH_FAILURE = 719
    COOPERATIVE_TOO_LARGE = 720
    NOT_SUPPORTED = 801
    INVALID_CLUSTER = 912


class Shape(NamedTuple):
    """The sizes of a launch; `cluster` is None where it asked for none, `shared` bytes are the dynamic ones."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int] | None
    shared: int
    cooperative: bool


class Refusal(NamedTuple):
    """The error that the call returns, and what is wrong."""

    error: Error
    reason: str


def refuse_shared(device: Device, kernel: Kernel, wanted: int) -> Refusal | None:
    """Why a kernel may not be allowed `wanted` bytes of dynamic shared memory, or None."""
    most = device.shared_of_block - kernel.static_shared
    if not 0 <= wanted <= most:
        return Refusal(Error.INVALID_VALUE, f"{wanted} bytes of dynamic shared memory, at most {most} may be allowed")
    return None


def refuse_launch(device: Device, kernel: Kernel, shape: Shape, allowed: int) -> Refusal | None:
    """Why a launch cannot be, or None. allowed: the bytes that cudaFuncSetAttribute has allowed, or 0."""
    threads = prod(shape.block)
    if not _within(shape.grid, _LARGEST_GRID) or not _within(shape.block, _LARGEST_BLOCK) or threads > THREADS_OF_BLOCK:
        return Refusal(Error.INVALID_CONFIGURATION, f"a grid of {shape.grid} blocks of {shape.block} threads")
    if kernel.threads is not None and threads > kernel.threads:
        return Refusal(Error.OUT_OF_RESOURCES, f"{threads} threads a block, {kernel.threads} are compiled for")
    most = max(allowed, SHARED_WITHOUT_ASKING - kernel.static_shared)
    if shape.shared > most:
        return Refusal(Error.INVALID_VALUE, f"{shape.shared} bytes of dynamic shared memory, {most} are allowed")
    if shape.cluster is not None:
        return _refuse_cluster(device, shape.grid, shape.cluster)
    if shape.cooperative:
        blocks, fit = prod(shape.grid), device.multiprocessors * _resident(device, kernel, threads, shape.shared)
        if blocks > fit:
            return Refusal(Error.COOPERATIVE_TOO_LARGE, f"{blocks} blocks that meet, {fit} run at the same time")
    return None


def _within(sizes: tuple[int, int, int], largest: tuple[int, int, int]) -> bool:
    return all(1 <= size <= most for size, most in zip(sizes, largest, strict=True))


def _refuse_cluster(device: Device, grid: tuple[int, int, int], cluster: tuple[int, int, int]) -> Refusal | None:
    if not LIMITS[device.capability].clusters:
        return Refusal(Error.INVALID_CLUSTER, f"a cluster on a device of capability {device.capability}")
    if not 1 <= prod(cluster) <= BLOCKS_OF_CLUSTER or min(cluster) < 1:
        return Refusal(Error.INVALID_CLUSTER, f"a cluster of {cluster} blocks")
    if any(blocks % size for blocks, size in zip(grid, cluster, strict=True)):
        return Refusal(Error.INVALID_CLUSTER, f"a grid of {grid} blocks in clusters of {cluster}")
    return None


def _resident(device: Device, kernel: Kernel, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor holds by threads and shared memory; what registers allow is not known from PTX."""
    limits, taken = LIMITS[device.capability], kernel.static_shared + shared + RESERVED_SHARED
    by_threads = limits.threads_of_multiprocessor // (-(-threads // 32) * 32)
    return min(limits.blocks_of_multiprocessor, by_threads, limits.shared_of_multiprocessor // taken)
