"""The peers of every prefix in one pass: the loss of a response-only LFOM network at every prompt length, in PyTorch.

Each keeps a Gram matrix for every prefix, (B, N, d, D), as a running sum of the tokens' products: what one writes
without a kernel. From z (B, N, D), target (B, N - first), q (L, H, d, d) and gamma (L, L, 1, 1, 1 or D).
"""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def cumulative_gram(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, first: int) -> Tensor:
    """Batch first: H (B, P, d, d) and b (B, P, d) of all P prefixes, then L steps on w (B, P, d)."""
    seen = z[:, :-1]
    counts = torch.arange(first, z.shape[1], device=z.device, dtype=z.dtype)
    g = (seen[..., :-1, None] * seen[..., None, :]).cumsum(1)[:, first - 1 :] / counts[:, None, None]
    h, b = g[..., :-1], g[..., -1]
    a = q.sum(1).mT
    weights = gamma[:, :, 0, 0, -1]
    w = torch.zeros_like(b)
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        residual = b - (h @ w[..., None])[..., 0] if layer else b
        registers.append(residual @ a[layer])
        w = w - torch.tensordot(weights[layer, : layer + 1], torch.stack(registers), 1)
    prediction = (z[:, first:, :-1] * w).sum(-1)
    return (prediction - target).square().mean()


def batch_last_cumulative_gram(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, first: int) -> Tensor:
    """The same with the batch axis last: elementwise multiply-adds over (P, d, d, B), one task per vector lane."""
    rows = z.permute(1, 2, 0).contiguous()
    sums = list(accumulate(row[:-1, None] * row for row in rows[:-1]))[first - 1 :]
    g = torch.stack([total / (first + place) for place, total in enumerate(sums)])
    h, b = g[:, :, :-1], g[:, :, -1]
    a = q.sum(1)
    weights = gamma[:, :, 0, 0, -1]
    w = torch.zeros_like(b)
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        residual = b - (h * w[:, None]).sum(2) if layer else b
        registers.append(a[layer] @ residual)
        w = w - torch.tensordot(weights[layer, : layer + 1], torch.stack(registers), 1)
    prediction = (rows[first:, :-1] * w).sum(1)
    return (prediction.T - target).square().mean()


FORMULATIONS: dict[str, Loss] = {
    "cumulative Gram": cumulative_gram,
    "batch-last cumulative Gram": batch_last_cumulative_gram,
}
