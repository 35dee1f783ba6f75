"""GPUs that tests ask for, NVIDIA's and virtual ones, and tensors on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from memformer_kernels import availability
from memformer_kernels.testing import Case


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


def needs_nvidia(backend: str) -> list[pytest.MarkDecorator]:
    """Marks of tests on an NVIDIA GPU."""
    return [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
        pytest.mark.skipif(
            not availability.available(backend), reason=availability.build_info().backends[backend].reason
        ),
    ]


def marked(test: Callable[..., None], marks: list[pytest.MarkDecorator]) -> Callable[..., None]:
    for mark in marks:
        test = mark(test)
    return test
