"""Launching: the device of the tensors, and whether kernels run on a GPU or in Triton's interpreter."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1, and so runs its kernels on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def check_device(tensor: Tensor) -> None:
    """Whether kernels can run on a tensor.

    Raises:
        RuntimeError: a CPU tensor, and kernels are compiled.
    """
    if not tensor.is_cuda and not interpreted():
        raise RuntimeError(
            f'backend="triton" got tensors on {tensor.device}, and its kernels run on CUDA GPUs: move the tensors to '
            "one, choose another backend, or set TRITON_INTERPRET=1 before triton is first imported to run the "
            "kernels in Triton's interpreter"
        )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one for a launch."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def triton_type(dtype: torch.dtype) -> triton.language.dtype:
    """The accumulator type of kernels that compute in `dtype`."""
    return triton.language.float64 if dtype == torch.float64 else triton.language.float32
