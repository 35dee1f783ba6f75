"""The CUDA library of this checkout on virtual devices: the objects that `make native` built, another runtime below."""

from pathlib import Path

import torch

from benchmarks.gpu.virtual_cuda.devices import devices
from benchmarks.measure.sources import ROOT
from memformer_kernels import library
from native_build import CannotBuild, cuda, find_toolchain
from virtual_gpu.cuda import Runtime, build

NATIVE = ROOT / "build" / "native"
FOLDER = ROOT / "build" / "virtual"


def missing() -> str | None:
    """Why the library cannot be linked again here, or None."""
    if torch.cuda.is_available():
        return (
            "one process has either a GPU or virtual ones under the library's operators: CUDA_VISIBLE_DEVICES= hides it"
        )
    if library.status("cuda").path is None:
        return library.status("cuda").reason
    try:
        objects = _objects()
    except CannotBuild as reason:
        return str(reason)
    absent = [path.name for path in objects if not path.is_file()]
    return f"objects of the CUDA library are not in {NATIVE}, such as {absent[0]}: make native" if absent else None


def load() -> Runtime:
    """Links the library, loads it after the CPU library, and gives the runtime that it found. Once in a process."""
    standing = build.stand_in(FOLDER, nvcc=cuda.find_cuda().nvcc, torch=find_toolchain().torch)
    linked = standing.link(_objects(), FOLDER / f"virtual_{cuda.LIBRARY}")
    runtime = Runtime(standing.library, devices())
    library.load("cpu")
    torch.ops.load_library(linked)  # type: ignore[no-untyped-call]
    return runtime


def _objects() -> list[Path]:
    toolchain, compiler = find_toolchain(), cuda.find_cuda()
    return [NATIVE / unit.output for unit in cuda.objects(ROOT, NATIVE, toolchain, compiler)]
