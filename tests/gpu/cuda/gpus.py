"""Where the GPU tests of the CUDA library run: on an NVIDIA GPU and on a virtual one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.gpu.tensors import NVIDIA, Gpu, marked, needs_nvidia

NEEDS = needs_nvidia("cuda")


def on_nvidia_alone(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of what a virtual GPU has not: torch's own graphs, streams and allocator, gigabytes."""
    return marked(test, NEEDS)


GPUS = [pytest.param("cuda", marks=NEEDS), "virtual"]
ALGORITHMS = ("gram", "token")
STRUCTURES = ("response-only", "block", "dense")


@contextmanager
def gpu_of(kind: str) -> Iterator[Gpu]:
    """The NVIDIA GPU or a virtual H200; AssertionError where the checks of the virtual one found anything."""
    if kind == "cuda":
        yield NVIDIA
        return
    from tests.virtual_cuda.virtual import clean_devices

    with clean_devices():
        yield Gpu("cpu", virtual=True)
