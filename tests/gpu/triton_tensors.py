"""Where the GPU tests of the Triton backend run, on an NVIDIA GPU and on a virtual one, and tensors for them there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from memformer_kernels import build
from memformer_kernels.testing import Case

NEEDS_TRITON = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
    pytest.mark.skipif(not build.available("triton"), reason=build.build_info().backends["triton"].reason),
    pytest.mark.skipif(build.INTERPRETS, reason="TRITON_INTERPRET=1 interprets kernels on the CPU: unset it"),
]


def on_nvidia_alone(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of what a virtual GPU has not: graphs, streams, several devices, gigabytes."""
    for mark in NEEDS_TRITON:
        test = mark(test)
    return test


GPUS = [
    pytest.param("cuda", marks=NEEDS_TRITON),
    pytest.param("virtual", marks=[pytest.mark.compiled, pytest.mark.slow, pytest.mark.timeout(1800)]),
]
ALGORITHMS = ("gram", "token")


@dataclass(frozen=True)
class Gpu:
    """Where tensors lie, and whether what computes on them is a virtual GPU: slow, and with checks."""

    device: str
    virtual: bool

    def size(self, full: int, small: int) -> int:
        """A size for an NVIDIA GPU, or the small one that shows the same on a virtual GPU."""
        return small if self.virtual else full

    def moved(self, case: Case) -> Case:
        return replace(case, **{name: x.to(self.device) for name, x in vars(case).items() if isinstance(x, Tensor)})

    def draw(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=dtype)


NVIDIA = Gpu("cuda", virtual=False)


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
