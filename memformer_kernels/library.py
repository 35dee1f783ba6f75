"""Finds the native libraries and loads them when they are first used. Importing loads nothing; nothing compiles."""

import functools
import json
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FILES = {"cpu": "memformer_cpu", "cuda": "memformer_cuda"}
NEEDS = {"cuda": "cpu"}
"""A library whose operators another one defines, and that other one."""

_OPERATORS = {
    "cpu": ("forward", "backward", "loss", "layer", "lfom_solve", "context_gram", "attention", "train_steps"),
    "cuda": ("rehearse_on_cuda",),
}
"""Some of what a library registers: one that has none of it is another file under its name, or of another version."""

_TOOLS = {"cpu": "torch, ninja and a C++ compiler are", "cuda": "torch, ninja, a C++ compiler and nvcc are"}

_lock = threading.Lock()
_loaded: set[str] = set()
_failed: dict[str, str] = {}


@dataclass(frozen=True)
class Status:
    """A native library: its file and the instruction sets in it, or no file, why, and how to fix it.

    driver: the oldest CUDA driver that serves it, such as 13000 for CUDA 13; 0 for a library that needs none.
    """

    path: Path | None
    instruction_sets: tuple[str, ...]
    reason: str
    driver: int = 0


def status(name: str) -> Status:
    """What is known of a library ("cpu", "cuda") without loading it; once loading it has failed, why."""
    return Status(None, (), _failed[name]) if name in _failed else _find(name)


@functools.cache
def _find(name: str) -> Status:
    chosen = os.environ.get("MEMFORMER_LIBRARY_DIR")
    folder = Path(chosen) if chosen else Path(__file__).with_name("_lib")
    path = folder / f"{FILES[name]}.so"
    record = _record(folder / f"{FILES[name]}.json")
    if path.is_file():
        built = f"built by {record.get('compiler', 'an unknown compiler')}"
        return Status(path, tuple(record.get("instruction_sets", ())), built, record.get("driver", 0))
    return Status(None, (), record.get("reason") or f"{folder} holds no {path.name}; {_rebuild(name)}")


def _rebuild(name: str) -> str:
    return f"build it by installing the package with --no-build-isolation where {_TOOLS[name]}"


def _record(path: Path) -> dict[str, Any]:
    """What the build left with the library, or left instead of it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def load(name: str) -> None:
    """Registers the operators of a library with torch, once in a process; threads may call it at the same time.

    Raises RuntimeError, which says how to fix it, if the library is missing or does not load.
    """
    if name in _loaded:
        return
    if name in NEEDS:
        load(NEEDS[name])
    with _lock:
        if name in _loaded:
            return
        found = status(name)
        if found.path is None:
            raise RuntimeError(f"the native {name} library is not available: {found.reason}")
        try:
            _check_whole(found.path)
            torch.ops.load_library(found.path)  # type: ignore[no-untyped-call]
            missing = [op for op in _OPERATORS[name] if not hasattr(torch.ops.memformer_native, op)]
            if missing:
                raise RuntimeError(f"it registers no {', '.join(missing)}")
            if not torch.ops.memformer_native.instruction_set():
                held = ", ".join(found.instruction_sets)
                raise RuntimeError(f"it holds kernels for {held} alone, which this processor lacks")
        except (OSError, RuntimeError) as error:
            why = error if error.__cause__ is None else error.__cause__
            _failed[name] = f"{found.path} does not load into torch {torch.__version__} ({why}); {_rebuild(name)}"
            raise RuntimeError(f"the native {name} library is not available: {_failed[name]}") from error
        _loaded.add(name)


def _check_whole(path: Path) -> None:
    """Raises OSError for an ELF file that was cut off, which the loader would read past the end of.

    Its table of sections stands last: the header says where, how many there are and how large each is.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if header[:5] == b"\x7fELF\x02" and len(header) == 64:
        start, size, count = *struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58)
        if path.stat().st_size < start + size * count:
            raise OSError("the file is cut off")


def fault(name: str) -> str | None:
    """Why a library cannot be used, and how to fix it; None where it can, and then it is loaded."""
    try:
        load(name)
    except RuntimeError as error:
        found = status(name)
        return str(error) if found.path is not None else found.reason
    return None


def operators(name: str) -> Any:
    """The native operators, callable by name once their library is loaded; tensors decide which library runs.

    Raises RuntimeError, which says how to fix it, if the library is missing or does not load.
    """
    load(name)
    return torch.ops.memformer_native
