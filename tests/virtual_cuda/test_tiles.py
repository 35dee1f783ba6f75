"""Tiles of shared memory that are filled in every way after every other (csrc/cuda/machine/stage.cuh)."""

import itertools
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.virtual_cuda.library import ROOT
from native_build import CannotBuild, cuda
from virtual_gpu import Device, Kernel, Module

ROWS = 3
TASKS = 32


@dataclass(frozen=True)
class Way:
    """Where rows of `width` numbers lie: bytes off 16, numbers between one and the next and after a task, tasks."""

    offset: int = 0
    step: int = 1
    gap: int = 0
    tasks: int = TASKS


WAYS = {
    "one bulk copy": Way(),
    "one bulk copy and a rest": Way(tasks=TASKS - 1),
    "a bulk copy a task, or words": Way(gap=4),
    "words of four bytes": Way(offset=4),
    "number by number": Way(step=2),
}


@pytest.fixture(scope="module", params=[80, 90])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    try:
        nvcc = cuda.find_cuda().nvcc
    except CannotBuild as reason:
        pytest.skip(str(reason))
    made, source = tmp_path_factory.mktemp("tiles") / "tiles.ptx", Path(__file__).with_name("tiles.cu")
    command = [nvcc, *cuda.DEVICE_FLAGS, "-lineinfo", "-ptx", f"-arch=compute_{request.param}", source, "-o", made]
    subprocess.run(command, cwd=ROOT, check=True)
    return Module(made.read_text()).kernels["fill_twice"]


@pytest.mark.parametrize("width", [3, 4])
def test_a_tile_may_be_filled_in_any_way_after_any_other(kernel: Kernel, width: int) -> None:
    for first, second in itertools.product(WAYS.values(), repeat=2):
        for order in (0, 1):
            device = Device(kernel.target, order=order)
            run(device, kernel, width, first, second)
            assert device.take_reports() == [], (first, second)


def run(device: Device, kernel: Kernel, width: int, *ways: Way) -> None:
    numbers = ROWS * width
    natural = 4 * numbers
    task_bytes = natural if natural % 16 else natural + (16 if width == 4 else 4)
    memory, arguments, results = [], b"", []
    for seed, way in enumerate(ways):
        task = ROWS * width * way.step + way.gap
        raw = np.random.default_rng(seed).normal(size=TASKS * task + 8).astype(np.float32)
        begin = (-raw.ctypes.data % 16 + way.offset) // 4
        memory.append(raw)
        address = raw.ctypes.data + 4 * begin
        device.memory.register(address, 4 * (way.tasks * task - way.gap), "tokens", writable=False)
        arguments += struct.pack("<QqqqQ", address, 4 * task, 4 * width * way.step, 4 * way.step, way.tasks)
        cells = raw[begin : begin + way.tasks * task]
        tasks = cells.reshape(way.tasks, task)[:, : task - way.gap]
        results.append(
            (tasks.reshape(way.tasks, ROWS, width, way.step)[..., 0], np.zeros((way.tasks, ROWS, width), np.float32))
        )
    arguments += struct.pack("<4i", ROWS, 4 * width, task_bytes, width)
    for _, made in results:
        device.memory.register(made.ctypes.data, made.nbytes, "result", initialised=False)
        arguments += struct.pack("<Q", made.ctypes.data)
    device.launch(kernel, 1, 32, arguments, shared=128 + TASKS * task_bytes)
    for expected, made in results:
        assert np.array_equal(expected, made)
