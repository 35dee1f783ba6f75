"""Tokens (B, N, D) in other layouts than contiguous: what a kernel must read by strides and whatever the alignment."""

from collections.abc import Callable

import torch
from torch import Tensor

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every other token": lambda z: torch.repeat_interleave(z, 2, dim=1)[:, ::2],
    "batch last": lambda z: z.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "columns of a wider tensor": lambda z: torch.cat([z, z], dim=2)[:, :, : z.shape[2]],
    "four bytes off": lambda z: torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape),
    "one task for all": lambda z: z[:1].expand(z.shape),
}
