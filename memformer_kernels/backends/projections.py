"""Q and P as dense matrices, for backends whose kernels know no blocks."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def border(q: Tensor, width: int, corner: float) -> Tensor:
    """The block `q` (..., d, d) with a zero border and a last `corner`: (..., width, width). Dense passes."""
    if q.shape[-1] == width:
        return q
    bordered = pad(q, (0, 1, 0, 1))
    if corner == 0.0:
        return bordered
    place = torch.zeros(width, width, dtype=q.dtype, device=q.device)
    place[-1, -1] = corner
    return bordered + place


def projections(q: Tensor, p: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Q and P as dense (..., H, D, D) matrices; `p=None` is the response-only P with a lone corner of 1."""
    block = q.new_zeros(*q.shape[:-2], width - 1, width - 1) if p is None else p
    return border(q, width, 0.0), border(block, width, 1.0)
