"""Coefficients as the kernels read them: every axis in full except tokens, contiguous, in the working dtype.

The copies are as large as a parameter, and in return kernels know no broadcasting; `gradient` is the transpose.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LINEAR, DIAGONAL, FULL = range(3)
"""Rules of gamma: None, one weight for each layer's own register, one for every register kept."""


class Coefficient(NamedTuple):
    """values: gamma or beta in full, or None. shape: the argument's own. column: only its last column is read."""

    values: Tensor | None
    shape: tuple[int, ...]
    column: bool

    def gradient(self, flat: Tensor) -> Tensor | None:
        """The argument's gradient from that of `values`, flat; None for no argument."""
        if self.values is None:
            return None
        grad = flat.view(self.values.shape)
        if not self.column:
            return grad.sum_to_size(self.shape)
        width = self.shape[-1] if self.shape else 1
        one = (*self.shape[:-1], 1) if self.shape else ()
        total = grad.sum(-1, keepdim=True).sum_to_size(one)
        return pad(total, (width - 1, 0)) if width > 1 else total


def in_full(
    coefficient: Tensor | None, leading: Sequence[int], width: int, dtype: torch.dtype, column: bool = False
) -> Coefficient:
    """A coefficient whose last axes broadcast to (*leading, width); `column` reads its last column alone."""
    if coefficient is None:
        return Coefficient(None, (), column)
    read = coefficient[..., -1:] if column and coefficient.ndim else coefficient
    return Coefficient(read.to(dtype).expand(*leading, width).contiguous(), tuple(coefficient.shape), column)
