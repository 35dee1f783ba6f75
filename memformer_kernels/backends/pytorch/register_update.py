"""z + sum_j gamma_j * R_j in plain PyTorch, on tokens (A, M, C) and coefficients (J, M)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import compute_dtype


def update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """The updated tokens, in z's dtype; half precision is summed in float32."""
    dtype = compute_dtype(z)
    total = z.to(dtype)
    for register, coefficient in zip(registers, gamma.to(dtype), strict=True):
        total = torch.addcmul(total, coefficient[:, None], register.to(dtype))
    return total.to(z.dtype)


def update_gradients(grad: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> tuple[list[Tensor], Tensor]:
    """Gradients of the registers and of gamma; that of z is `grad` itself."""
    dtype = compute_dtype(grad)
    wide = grad.to(dtype)
    own = [(coefficient[:, None] * wide).to(grad.dtype) for coefficient in gamma.to(dtype)]
    coefficients = [(wide * register.to(dtype)).sum((0, 2)) for register in registers]
    return own, torch.stack(coefficients).to(gamma.dtype)
