"""The labelled tokens of a task: selecting them, counting them, and their Gram matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Labelled:
    """The first `count` tokens of every task, or for ragged contexts the first `lengths[b]` tokens of task b.

    Tokens outside the context are dropped by selection, so a NaN there cannot reach a sum.
    """

    count: int
    lengths: Tensor | None

    def mask(self, tokens: Tensor) -> Tensor:
        """Which tokens of (B, N, .) ragged contexts hold, (B, N, 1)."""
        assert self.lengths is not None
        place = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int64)
        return (place < self.lengths[:, None])[:, :, None]

    def select(self, tokens: Tensor) -> Tensor:
        """Context rows of (B, N, D): (B, n, D), or (B, N, D) with zeros past each task's own context."""
        if self.lengths is None:
            return tokens[:, : self.count]
        return torch.where(self.mask(tokens), tokens, 0.0)

    def place(self, rows: Tensor, total: int) -> Tensor:
        """The transpose of `select`: gradients of context rows as gradients of all `total` tokens."""
        if self.lengths is None:
            return pad(rows, (0, 0, 0, total - self.count))
        return torch.where(self.mask(rows), rows, 0.0)

    def mean(self, total: Tensor) -> Tensor:
        """A sum over the context, (B, ., .), divided by each task's n."""
        if self.lengths is None:
            return total / self.count
        return total / self.lengths[:, None, None].to(total.dtype)


def gram(tokens: Tensor, labelled: Labelled) -> Tensor:
    """sum_{i<n} z_i z_i^T, (B, D, D)."""
    rows = labelled.select(tokens)
    return across_tokens(rows, rows)


_TOKENS_A_BLOCK = 4096


def across_tokens(left: Tensor, right: Tensor) -> Tensor:
    """sum_i left_i right_i^T, (..., D, K), from (..., N, D) and (..., N, K).

    Long sums run in blocks of tokens: a library gives one small result one processor, and few tasks would leave the
    others idle.
    """
    blocks = left.shape[-2] // _TOKENS_A_BLOCK
    if blocks < 2:
        return left.transpose(-1, -2) @ right
    whole = blocks * _TOKENS_A_BLOCK
    left_blocks, right_blocks = (
        x[..., :whole, :].reshape(*x.shape[:-2], blocks, _TOKENS_A_BLOCK, x.shape[-1]) for x in (left, right)
    )
    rest = left[..., whole:, :].transpose(-1, -2) @ right[..., whole:, :]
    return (left_blocks.transpose(-1, -2) @ right_blocks).sum(-3) + rest


def gram_backward(grad: Tensor, tokens: Tensor, labelled: Labelled) -> Tensor:
    """Gradient of `gram` with respect to all tokens, (B, N, D)."""
    return labelled.place(labelled.select(tokens) @ (grad + grad.transpose(-1, -2)), tokens.shape[1])


def without_padding(tokens: Tensor, labelled: Labelled, queries: int) -> Tensor:
    """Context and query rows only. Ragged contexts differ in length, so there padding rows become zero instead."""
    total = tokens.shape[1]
    if labelled.lengths is None:
        if labelled.count + queries == total:
            return tokens
        return torch.cat([tokens[:, : labelled.count], tokens[:, total - queries :]], 1)
    is_query = torch.arange(total, device=tokens.device, dtype=torch.int64) >= total - queries
    return torch.where(labelled.mask(tokens) | is_query[:, None], tokens, 0.0)


def restore_padding(grad: Tensor, total: int, labelled: Labelled, queries: int) -> Tensor:
    """The transpose of `without_padding`: exactly zero gradient for padding rows."""
    if labelled.lengths is None:
        context, rows = grad[:, : labelled.count], grad[:, labelled.count :]
        padding = grad.new_zeros(grad.shape[0], total - labelled.count - queries, grad.shape[2])
        return torch.cat([context, padding, rows], 1)
    return without_padding(grad, labelled, queries)
