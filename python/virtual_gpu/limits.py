"""What the devices of each compute capability hold, after the table of technical specifications in NVIDIA's guide."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes of shared memory, and threads and blocks that one multiprocessor holds at once."""

    shared_of_block: int
    shared_of_multiprocessor: int
    clusters: bool
    threads_of_multiprocessor: int = 2048
    blocks_of_multiprocessor: int = 32


THREADS_OF_BLOCK = 1024
BLOCKS_OF_CLUSTER = 8
RESERVED_SHARED = 1024
"""Bytes of shared memory of each block that the system takes."""

LIMITS = {
    80: Limits(163 * 1024, 164 * 1024, clusters=False),
    90: Limits(227 * 1024, 228 * 1024, clusters=True),
    100: Limits(227 * 1024, 228 * 1024, clusters=True),
}
