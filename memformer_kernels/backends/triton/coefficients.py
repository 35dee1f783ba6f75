"""Coefficients as the kernels read them: every axis in full except tokens, contiguous, in the working dtype.

The copies are as large as a parameter, and in return kernels know no broadcasting; `gradient` is the transpose.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.triton.tiles import add_to

LINEAR, DIAGONAL, FULL = range(3)
"""Rules of gamma: None, one weight for each layer's own register, one for every register kept."""


class Coefficient(NamedTuple):
    """values: gamma or beta in full, or None. shape: the argument's own. column: only its last column is read."""

    values: Tensor | None
    shape: tuple[int, ...]
    column: bool

    @property
    def numbers(self) -> int:
        """How many there are in full."""
        return 0 if self.values is None else self.values.numel()

    @property
    def has_tokens(self) -> bool:
        """Whether every token has one of its own, on the axis before the last."""
        return self.values is not None and self.values.shape[-2] != 1

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
    coefficient: Tensor | None,
    leading: Sequence[int],
    width: int,
    dtype: torch.dtype | None = None,
    tokens: bool = True,
    column: bool = False,
) -> Coefficient:
    """A coefficient that broadcasts to (*leading, its token axis, width), or without `tokens` to (*leading, width).

    `column` reads its last column alone. dtype: None for its own.
    """
    if coefficient is None:
        return Coefficient(None, (), column)
    if tokens:
        leading = (*leading, coefficient.shape[-2] if coefficient.ndim > 1 else 1)
    read = coefficient[..., -1:] if column and coefficient.ndim else coefficient
    return Coefficient(read.to(dtype).expand(*leading, width).contiguous(), tuple(coefficient.shape), column)


class Entries(NamedTuple):
    """Where a tile's rows begin and its columns, and which of its entries and columns a matrix (rows, width) has."""

    o_row: Any
    i_column: Any
    m_entry: Any
    m_column: Any


@triton.jit
def load_coefficient(coefficient, index, rows, width, entries, TOKENS: tl.constexpr):
    """The `index`-th (rows or 1, width) of a coefficient, at a tile's entries or columns."""
    if TOKENS:
        own = coefficient + tl.cast(index, tl.int64) * rows * width
        values = tl.load(own + entries.o_row + entries.i_column, mask=entries.m_entry, other=0.0)
    else:
        own = coefficient + tl.cast(index, tl.int64) * width
        values = tl.load(own + entries.i_column, mask=entries.m_column, other=0.0)
    return values


@triton.jit
def add_to_coefficient(into, index, total, rows, width, entries, TOKENS: tl.constexpr):
    """Adds a total of the same form to the `index`-th entry of a coefficient's gradient."""
    if TOKENS:
        own = into + tl.cast(index, tl.int64) * rows * width
        add_to(own + entries.o_row + entries.i_column, total, entries.m_entry)
    else:
        own = into + tl.cast(index, tl.int64) * width
        add_to(own + entries.i_column, total, entries.m_column)
