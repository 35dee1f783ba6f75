"""Digests of sources, by which records say what they were made of."""

import hashlib
from functools import cache

from benchmarks.measure.machine import ROOT

SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".txt"}
KERNELS = {"cuda": ("csrc/binding", "csrc/core", "csrc/cuda"), "triton": ("memformer_kernels/backends/triton",)}
"""The folders that a GPU backend's kernels and their launches are made of."""


def digest(*folders: str) -> str:
    """A short digest of what the tree has in some folders: equal trees have equal ones, with or without git."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                found.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


@cache
def of_kernels(backend: str) -> str:
    """The digest of a GPU backend's kernels as they were when it was first asked for."""
    return digest(*KERNELS[backend])
