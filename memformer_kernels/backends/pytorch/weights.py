"""Weights of a context's tokens, as the shares of the whole that tokens have in a Gram matrix.

    G = sum_i s_i z_i z_i^T,    s_i = w_i / sum_j w_j

Shares, and not their roots times tokens: G is linear in them, so that gradients are right where a weight is 0, at which
a root has none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shares:
    """Of M tokens a task.

    Attributes:
        values: (B, M), they sum to 1, or are all 0 in a task without weight.
        scale: 1 / sum_j w_j, or 0 there, (B, 1).
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> "Shares":
        """Those of weights (B, M), which are 0 outside the context."""
        # Their sum may be more than a number can hold, or less; a constant factor has no gradient, as shares have none
        # along it.
        largest = weights.detach().amax(1, keepdim=True)
        largest = torch.where(largest == 0, 1.0, largest)
        parts = weights / largest
        total = parts.sum(1, keepdim=True)
        empty = total == 0
        total = torch.where(empty, 1.0, total)
        return cls(torch.where(empty, 0.0, parts / total), torch.where(empty, 0.0, 1 / total / largest))

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient of weights (B, M) from that of their shares.

        Of a weight of 0, which its token may take anywhere, it is 0 where that of its share is no finite number; nor
        does that reach the other weights.
        """
        usable = (self.values != 0) | grad.isfinite()
        grad = torch.where(usable, grad, 0.0)
        return torch.where(usable, (grad - (self.values * grad).sum(1, keepdim=True)) * self.scale, 0.0)
