"""Where the GPU tests of the Triton backend run: on an NVIDIA GPU and on a virtual one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from memformer_kernels import availability
from tests.gpu.tensors import NVIDIA, Gpu, marked, needs_nvidia

NEEDS = [
    *needs_nvidia("triton"),
    pytest.mark.skipif(availability.INTERPRETS, reason="TRITON_INTERPRET=1 interprets kernels on the CPU: unset it"),
]


def on_nvidia_alone(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of what a virtual GPU has not: graphs, streams, several devices, gigabytes."""
    return marked(test, NEEDS)


GPUS = [
    pytest.param("cuda", marks=NEEDS),
    pytest.param("virtual", marks=[pytest.mark.compiled, pytest.mark.slow, pytest.mark.timeout(1800)]),
]
ALGORITHMS = ("gram", "token")


@contextmanager
def gpu_of(kind: str) -> Iterator[Gpu]:
    """The NVIDIA GPU or a virtual H200; AssertionError where the checks of the virtual one found anything."""
    if kind == "cuda":
        yield NVIDIA
        return
    from virtual_gpu import Device
    from virtual_gpu.triton import driver_of

    with driver_of(Device(capability=90)) as driver:
        yield Gpu("cpu", virtual=True)
        assert driver.device.take_reports() == []
