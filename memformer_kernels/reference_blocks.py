"""Linear attention with factored heads and the register update, as plain as can be: what backends are checked against.

The n-by-n matrix of attention is formed, every option is a mask on it, and autograd makes the gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    context: int | Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """out_t = sum over the keys i that t sees of (q_t . k_i) v_i, divided by their number; (B, N, H, F)."""
    seen = seen_keys(q.shape[0], q.shape[1], causal, context, mask, cu_seqlens).to(q.device)
    scores = torch.einsum("bthe,bihe->bhti", q, k)
    scores = torch.where(seen[:, None], scores, 0.0)
    values = v if mask is None else torch.where(mask[:, :, None, None], v, 0.0)
    counts = seen.sum(2).clamp(min=1)[:, :, None, None]
    return torch.einsum("bhti,bihf->bthf", scores, values) / counts


def seen_keys(
    batch: int,
    tokens: int,
    causal: bool,
    context: int | Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Which keys (last axis) every token sees, (B, N, N)."""
    place = torch.arange(tokens, device="cpu", dtype=torch.int64)
    seen = torch.ones(batch, tokens, tokens, dtype=torch.bool, device="cpu")
    if causal:
        seen = seen & (place[None, :] <= place[:, None])
    if context is not None:
        lengths = (
            context.cpu()
            if isinstance(context, Tensor)
            else torch.full((batch,), context, device="cpu", dtype=torch.int64)
        )
        seen = seen & (place < lengths[:, None])[:, None, :]
    if mask is not None:
        seen = seen & mask.cpu()[:, None, :] & mask.cpu()[:, :, None]
    if cu_seqlens is not None:
        sequence = (place[:, None] >= cu_seqlens.cpu()[None, 1:]).sum(1)
        seen = seen & (sequence[:, None] == sequence[None, :])
    return seen


def register_update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """z + sum_j gamma_j * R_j."""
    for coefficient, register in zip(gamma, registers, strict=True):
        z = z + coefficient * register
    return z
