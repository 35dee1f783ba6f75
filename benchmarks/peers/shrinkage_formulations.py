"""The peers of steps that end in soft thresholding: learned iterative shrinkage as one writes it in PyTorch.

From quadratics h (B, d, d) and b (B, d): codes w (B, d) after L layers from 0,

    w_{l+1} = soft(w_l + size_l (b - h w_l), level_l)        sizes and levels (L,): ALISTA's parameters
    w_{l+1} = soft(w_l + A_l (b - h w_l), level_l)           matrices (L, d, d), levels (L,): LISTA with coupled weights
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu

Shrinkage = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From h, b, sizes or matrices, and levels to codes (B, d)."""


def batch_first(h: Tensor, b: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
    """One batched product of matrices and vectors a layer."""
    w = torch.zeros_like(b)
    for step, level in zip(steps, levels, strict=True):
        residual = b - torch.bmm(h, w[..., None])[..., 0]
        w = _soft(w + (residual @ step.T if step.ndim else step * residual), level)
    return w


def batch_last(h: Tensor, b: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
    """The same with the batch axis last: elementwise multiply-adds over (d, d, B), one task per vector lane."""
    h, b = h.permute(1, 2, 0).contiguous(), b.T.contiguous()
    w = torch.zeros_like(b)
    for step, level in zip(steps, levels, strict=True):
        residual = b - (h * w).sum(1)
        w = _soft(w + (step @ residual if step.ndim else step * residual), level)
    return w.T


def _soft(w: Tensor, level: Tensor) -> Tensor:
    return w.sign() * relu(w.abs() - level)


FORMULATIONS: dict[str, Shrinkage] = {"LISTA": batch_first, "batch-last LISTA": batch_last}
