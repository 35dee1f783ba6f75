"""The labelled tokens of a task: selecting them, counting them, and their Gram matrix."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch.weights import Shares

_ROOT_OF_OVERFLOW = {torch.float16: math.inf, torch.bfloat16: 2.0**64, torch.float32: 2.0**64, torch.float64: 2.0**512}
"""The least power of two whose square is more than a sum over tokens of this type, float32 or float64, can hold."""


@dataclass(frozen=True)
class Labelled:
    """The first `count` tokens of every task, or for ragged contexts the first `lengths[b]` tokens of task b.

    Tokens outside the context are dropped by selection, so a NaN there cannot reach a sum; so is what is not finite of
    a token of weight 0, or too large to be squared. shares: of tokens that have weights, (B, n) or for ragged contexts
    (B, N); None for equal ones.
    """

    count: int
    lengths: Tensor | None
    shares: Shares | None = None

    def weighted(self, weights: Tensor | None) -> "Labelled":
        """These tokens with weights (B, N), in the dtype of sums, or None."""
        if weights is None:
            return self
        return replace(self, shares=Shares.of(self._in_context(weights[..., None])[..., 0]))

    def mask(self, tokens: Tensor) -> Tensor:
        """Which tokens of (B, N, .) ragged contexts hold, (B, N, 1)."""
        assert self.lengths is not None
        place = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int64)
        return (place < self.lengths[:, None])[:, :, None]

    def select(self, tokens: Tensor) -> Tensor:
        """Context rows of (B, N, D): (B, n, D), or (B, N, D) with zeros past each task's own context."""
        return self._usable(self._in_context(tokens))

    def _in_context(self, tokens: Tensor) -> Tensor:
        if self.lengths is None:
            return tokens[:, : self.count]
        return torch.where(self.mask(tokens), tokens, 0.0)

    def _usable(self, rows: Tensor) -> Tensor:
        """Rows (B, n or N, D) with 0 for what is not finite of a token of weight 0, or has a square that is not.

        All else stays: it is multiplied by 0, and is what the weight's gradient, a product of two of its numbers, is
        made of.
        """
        if self.shares is None:
            return rows
        absent = (self.shares.values == 0)[..., None]
        return torch.where(absent & ~(rows.abs() < _ROOT_OF_OVERFLOW[rows.dtype]), 0.0, rows)

    def times_shares(self, rows: Tensor) -> Tensor:
        """Context rows times their shares, where tokens have weights."""
        return rows if self.shares is None else rows * self.shares.values[..., None]

    def place(self, rows: Tensor, total: int) -> Tensor:
        """The transpose of `select`: gradients of context rows as gradients of all `total` tokens."""
        if self.lengths is None:
            return pad(rows, (0, 0, 0, total - self.count))
        return torch.where(self.mask(rows), rows, 0.0)

    def mean(self, total: Tensor) -> Tensor:
        """A sum over the context, (B, ., .), divided by each task's n; with shares it is a mean already."""
        if self.shares is not None:
            return total
        if self.lengths is None:
            return total / self.count
        return total / self.lengths[:, None, None].to(total.dtype)


def gram(tokens: Tensor, labelled: Labelled) -> Tensor:
    """sum_{i<n} z_i z_i^T, (B, D, D), with each token's share where tokens have weights."""
    rows = labelled.select(tokens)
    return across_tokens(labelled.times_shares(rows), rows)


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
    rows = labelled.times_shares(labelled.select(tokens))
    return labelled.place(rows @ (grad + grad.transpose(-1, -2)), tokens.shape[1])


def shares_gradient(grad: Tensor, tokens: Tensor, labelled: Labelled) -> Tensor | None:
    """Gradient of `gram` with respect to the shares, z_i^T grad z_i: (B, n or N); None where there are none."""
    if labelled.shares is None:
        return None
    rows = labelled.select(tokens)
    return ((rows @ grad) * rows).sum(-1)


def weights_gradient(grad: Tensor | None, labelled: Labelled) -> Tensor | None:
    """Gradient of the context's weights from that of their shares, (B, n or N)."""
    if grad is None or labelled.shares is None:
        return None
    own = labelled.shares.gradient(grad)[..., None]
    return labelled.place(own, own.shape[1])[..., 0]


def without_padding(tokens: Tensor, labelled: Labelled, queries: int) -> Tensor:
    """Context and query rows only. Ragged contexts differ in length, so there padding rows become zero instead.

    So does what `Labelled.select` drops of a context's tokens of weight 0.
    """
    total = tokens.shape[1]
    if labelled.lengths is None:
        if labelled.count + queries == total and labelled.shares is None:
            return tokens
        return torch.cat([labelled.select(tokens), tokens[:, total - queries :]], 1)
    is_query = torch.arange(total, device=tokens.device, dtype=torch.int64) >= total - queries
    kept = torch.where(labelled.mask(tokens) | is_query[:, None], tokens, 0.0)
    return kept if labelled.shares is None else torch.where(labelled.mask(tokens), labelled.select(tokens), kept)


def restore_padding(grad: Tensor, total: int, labelled: Labelled, queries: int) -> Tensor:
    """The transpose of `without_padding`: exactly zero gradient for padding rows."""
    if labelled.lengths is None:
        context, rows = grad[:, : labelled.count], grad[:, labelled.count :]
        padding = grad.new_zeros(grad.shape[0], total - labelled.count - queries, grad.shape[2])
        return torch.cat([context, padding, rows], 1)
    return without_padding(grad, labelled, queries)
