"""The GPUs that tests run on: an NVIDIA GPU and a virtual one, each under the CUDA library and under Triton."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import availability
from memformer_kernels.testing import Case

BACKENDS = ("cuda", "triton")
ALGORITHMS = ("gram", "token")
STRUCTURES = ("response-only", "block", "dense")


@dataclass(frozen=True)
class Gpu:
    """A backend on a GPU, and whether the GPU is a virtual one: slow, and with checks."""

    backend: str
    virtual: bool

    @property
    def device(self) -> str:
        """Where tensors lie: those of a virtual GPU are the host's."""
        return "cpu" if self.virtual else "cuda"

    @property
    def orders(self) -> int:
        """Orders of the tasks in a twin's budget: of the few that a virtual GPU runs, one order may be lucky."""
        return self.size(1, 4, 8)

    def size(self, full: int, small: int, triton: int | None = None) -> int:
        """A size for an NVIDIA GPU, or one that shows the same on a virtual GPU, where Triton may need another."""
        if not self.virtual:
            return full
        return small if triton is None or self.backend != "triton" else triton

    def moved(self, case: Case) -> Case:
        return replace(case, **{name: x.to(self.device) for name, x in vars(case).items() if isinstance(x, Tensor)})

    def draw(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=dtype)


def real(backend: str) -> Any:
    """An NVIDIA GPU under a backend as a parameter, with the marks of tests that need it."""
    info = availability.build_info().backends[backend]
    marks = [
        pytest.mark.gpu,
        getattr(pytest.mark, backend),
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
        pytest.mark.skipif(not info.available, reason=info.reason),
    ]
    if backend == "triton":
        reason = "TRITON_INTERPRET=1 interprets kernels on the CPU: unset it"
        marks.append(pytest.mark.skipif(availability.INTERPRETS, reason=reason))
    return pytest.param(Gpu(backend, virtual=False), id=f"{backend}-nvidia", marks=marks)


def virtual(backend: str) -> Any:
    """A virtual H200 under a backend as a parameter. Triton compiles for it, which takes long."""
    marks = [pytest.mark.compiled, pytest.mark.slow, pytest.mark.timeout(1800)] if backend == "triton" else []
    return pytest.param(Gpu(backend, virtual=True), id=f"{backend}-virtual", marks=marks)


def by_backend(names: str, only_real: bool = False, **values: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by its `gpu`, an NVIDIA or a virtual one, and by the values that each backend is given."""
    made = []
    for backend, of_backend in values.items():
        gpus = [real(backend)] if only_real else [real(backend), virtual(backend)]
        for value in of_backend:
            one = value if hasattr(value, "marks") else pytest.param(*(value if isinstance(value, tuple) else (value,)))
            for gpu in gpus:
                name = "-".join([gpu.id, *map(str, one.values)])
                made.append(pytest.param(*gpu.values, *one.values, id=name, marks=[*gpu.marks, *one.marks]))
    return pytest.mark.parametrize(("gpu", *names.split(",")), made, indirect=["gpu"])


@contextmanager
def opened(gpu: Gpu) -> Iterator[Gpu]:
    """The GPU while a test lasts; AssertionError where the checks of a virtual one found anything."""
    if not gpu.virtual:
        yield gpu
    elif gpu.backend == "cuda":
        from tests.virtual_cuda.virtual import clean_devices

        with clean_devices():
            yield gpu
    else:
        from virtual_gpu import Device
        from virtual_gpu.triton import driver_of

        with driver_of(Device(capability=90)) as driver:
            yield gpu
            assert driver.device.take_reports() == []
