"""Comparison models: attention stacks in the Memformer's layout, feed-forward blocks, a causal Transformer, an LSTM."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from memformer_kernels import memformer_layer
from memformer_kernels.nn import Memformer

Attention = Literal["linear", "softmax", "relu"]


class FeedForward(nn.Module):
    """The feed-forward blocks of several layers: W2 max(W1 z, 0) of each token, 4 D wide, starting from 0.

    Args:
        layers: layers, each with a block of its own.
        width: D, numbers in a token.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.up = nn.Parameter(torch.randn(layers, width, hidden, device="cpu", dtype=torch.float32) / math.sqrt(width))
        self.down = nn.Parameter(torch.zeros(layers, hidden, width, device="cpu", dtype=torch.float32))

    def forward(self, z: Tensor, layer: int) -> Tensor:
        """What the block of a layer adds to tokens z (..., D)."""
        added: Tensor = (z @ self.up[layer]).relu() @ self.down[layer]
        return added


class FeedForwardMemformer(nn.Module):
    """A linear Transformer without memory, each of whose layers ends in a feed-forward block, on tokens z (B, N, D).

        Z += (1/n) Z Q (sum over the context of z_i z_i^T) P^T,    then    z += W2 max(W1 z, 0) for every token

    Examples and queries go through the same blocks. It begins as the network that it is given, since W2 begins at 0.

    Args:
        start: a Memformer of rule "linear" and one head; its matrices are copied.

    Raises:
        ValueError: for another rule, or several heads.
    """

    def __init__(self, start: Memformer) -> None:
        super().__init__()
        if start.rule != "linear" or start.heads != 1:
            raise ValueError(f"start must have the rule 'linear' and 1 head, got {start.rule!r} and {start.heads}")
        self.layers = start.layers
        self.q = nn.Parameter(start.q.detach().clone())
        self.p = None if start.p is None else nn.Parameter(start.p.detach().clone())
        self.feed_forward = FeedForward(start.layers, start.d + 1)

    def predict(self, z: Tensor, *, context: int, layers: bool = False) -> Tensor:
        """(B, N - context) predictions of the queries, or (L, B, N - context) after each layer."""
        rows = []
        for layer in range(self.layers):
            z, _ = memformer_layer(z, self.q[layer], None if self.p is None else self.p[layer], context=context)
            z = z + self.feed_forward(z, layer)
            rows.append(-z[:, context:, -1])
        return torch.stack(rows) if layers else rows[-1]


class AttentionStack(nn.Module):
    """Attention layers on tokens z (B, N, D), every token attending to the context alone.

    linear: Z += sum over heads of (Z Q Z_c^T / n) Z_c P^T, the linear transformer with dense Q and P. relu: max(., 0)
    of the scores. softmax: the softmax of the scores over the context in place of scores / n. With a feed-forward
    block each layer further adds that of `FeedForward`. The prediction is -Z_L[query, D-1].

    Heads start with scores and outputs of turning signs: two softmax heads of opposite scores, subtracted, are linear
    attention to first order in the scores, which one head with its positive weights cannot be.

    Args:
        d: features.
        layers: layers.
        attention: kind.
        heads: heads.
        feed_forward: whether layers have the block.
    """

    def __init__(
        self, d: int, layers: int, attention: Attention, *, heads: int = 1, feed_forward: bool = False
    ) -> None:
        super().__init__()
        width = d + 1
        self.layers, self.attention, self.heads = layers, attention, heads
        start = 0.5 * torch.eye(width, device="cpu", dtype=torch.float32)
        start[-1, -1] = 0.0
        corner = torch.zeros(width, width, device="cpu", dtype=torch.float32)
        corner[-1, -1] = -1.0
        signs = torch.tensor([1.0, -1.0], device="cpu", dtype=torch.float32).repeat(heads)[:heads, None, None]
        shape = (layers, heads, width, width)
        self.q = nn.Parameter(signs * start + 0.02 * torch.randn(shape, device="cpu", dtype=torch.float32))
        self.p = nn.Parameter(signs / heads * corner + 0.02 * torch.randn(shape, device="cpu", dtype=torch.float32))
        self.feed_forward = FeedForward(layers, width) if feed_forward else None

    def _weights(self, scores: Tensor) -> Tensor:
        """(B, H, N, n) of scores of the same shape."""
        if self.attention == "softmax":
            return scores.softmax(-1)
        return (scores.relu() if self.attention == "relu" else scores) / scores.shape[-1]

    def predict(self, z: Tensor, context: int) -> Tensor:
        """(B, N - context) predictions of the queries."""
        for layer in range(self.layers):
            known = z[:, None, :context]
            weights = self._weights(z[:, None] @ self.q[layer] @ known.mT)
            z = z + (weights @ (known @ self.p[layer].mT)).sum(1)
            if self.feed_forward is not None:
                z = z + self.feed_forward(z, layer)
        return -z[:, context:, -1]


class CausalTransformer(nn.Module):
    """A small softmax Transformer on the sequence x_1, y_1, x_2, y_2, ..., predicting y_t at x_t for every t.

    Args:
        d: features.
        hidden: model width; the feed-forward block is 4 times as wide.
        layers: layers.
        length: largest number of examples.
    """

    def __init__(self, d: int, hidden: int, layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Linear(d + 1, hidden, device="cpu", dtype=torch.float32)
        self.position = nn.Parameter(0.02 * torch.randn(2 * length, hidden, device="cpu", dtype=torch.float32))
        layer = nn.TransformerEncoderLayer(
            hidden, 2, 4 * hidden, dropout=0.0, batch_first=True, norm_first=True, device="cpu", dtype=torch.float32
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(hidden, 1, device="cpu", dtype=torch.float32)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions (B, T) of y_t from the pairs before and x_t, for x (B, T, d) and y (B, T)."""
        sequence = _interleave(x, y)
        steps = sequence.shape[1]
        hidden = self.embed(sequence) + self.position[:steps]
        mask = nn.Transformer.generate_square_subsequent_mask(steps, device=x.device, dtype=x.dtype)
        out: Tensor = self.head(self.body(hidden, mask=mask, is_causal=True))[:, ::2, 0]
        return out


class RecurrentModel(nn.Module):
    """An LSTM on the same sequence.

    Args:
        d: features.
        hidden: width of each of its two layers.
    """

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.LSTM(d + 1, hidden, num_layers=2, batch_first=True, device="cpu", dtype=torch.float32)
        self.head = nn.Linear(hidden, 1, device="cpu", dtype=torch.float32)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As `CausalTransformer.forward`."""
        out: Tensor = self.head(self.body(_interleave(x, y))[0])[:, ::2, 0]
        return out


def _interleave(x: Tensor, y: Tensor) -> Tensor:
    batch, length, d = x.shape
    sequence = x.new_zeros(batch, length, 2, d + 1)
    sequence[:, :, 0, :d] = x
    sequence[:, :, 1, d] = y
    return sequence.view(batch, 2 * length, d + 1)
