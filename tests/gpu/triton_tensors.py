"""What the GPU tests of the Triton backend share: when they run, and tensors on the GPU."""

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
ALGORITHMS = ("gram", "token")


def moved(case: Case) -> Case:
    tensors = {name: value.cuda() for name, value in vars(case).items() if isinstance(value, Tensor)}
    return Case(**{**vars(case), **tensors})


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
