"""Sources are compiled once for all GPUs only where they read the same on all."""

from pathlib import Path

import pytest

from benchmarks.gpu.virtual_cuda.library import NATIVE, ROOT, missing
from native_build import cuda
from virtual_gpu.cuda import fatbinary

NEWER = ("cp.async.bulk", "barrier.cluster", "fence.proxy.async")
"""Instructions that a GPU has from 9.0 on."""


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_what_is_compiled_for_all_gpus_alike_asks_nothing_of_newer_ones() -> None:
    alike, apart = set(), set()
    for source in cuda.kernels(ROOT, NATIVE):
        unit = NATIVE / cuda.kernel_object(source)
        text = "".join(program.text for program in fatbinary.in_file(unit.read_bytes()) if program.target >= 90)
        if any(instruction in text for instruction in NEWER):
            apart.add(source.stem)
        elif ".entry" in text:
            alike.add(source.stem)
    assert apart == {name for name in apart | alike if not cuda.reads_alike(Path(f"{name}.cu"))}
