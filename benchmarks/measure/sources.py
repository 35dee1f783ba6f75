"""The source tree: its place, its git revision, and digests by which records say what they were made of."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

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
    """The digest of a GPU backend's kernels as they were when first called."""
    return digest(*KERNELS[backend])


def git_revision() -> str:
    """The tree's short revision, "+" behind it if files differ from it, "unknown" outside git."""
    revision = output("git", "-C", str(ROOT), "rev-parse", "--short=12", "--verify", "HEAD")
    if not revision:
        return "unknown"
    changed = output("git", "-C", str(ROOT), "status", "--porcelain")
    return f"{revision}+" if changed else revision


def output(*command: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
