"""Q and P as dense matrices, for backends whose kernels know no blocks."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def border(q: Tensor, width: int, corner: float) -> Tensor:
    """The block `q` (..., d, d) with a zero border and, last, `corner` times 1: (..., width, width). Dense passes."""
    d = q.shape[-1]
    if d == width:
        return q
    bordered = pad(q, (0, width - d, 0, width - d))
    if corner == 0.0:
        return bordered
    place = torch.zeros(width, width, dtype=q.dtype, device=q.device)
    place.diagonal()[d:] = corner
    return bordered + place


def projections(q: Tensor, p: Tensor | None, width: int, responses: int = 1) -> tuple[Tensor, Tensor]:
    """Q and P as dense (..., H, D, D) matrices; `p=None` is the response-only P, with ones for the responses alone."""
    block = q.new_zeros(*q.shape[:-2], width - responses, width - responses) if p is None else p
    return border(q, width, 0.0), border(block, width, 1.0)
