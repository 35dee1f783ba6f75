"""Tokens summed into small matrices, and tokens times small matrices: the two passes over a context.

`across_kernel`, sum_i left_i right_i^T: a program owns TASKS tasks and one of `splits` equal runs of their tokens, in
products of at most 32 tokens; splits are added pairwise. The context Gram matrix is left = right = z: n D numbers read
and n D^2 multiply-adds a task. `rows_kernel`, left_i matrix: a program owns ROWS tokens of TASKS tasks; it reads and
writes every token once, with D^2 multiply-adds each.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.feature_gram import feature_gram
from memformer_kernels.backends.triton.launch import architecture, launch, strides_of, triton_type
from memformer_kernels.backends.triton.tiles import load_counts, product, wide
from memformer_kernels.calls.arguments import compute_dtype
from memformer_kernels.calls.limits import TILE_WIDTH

Strides = tuple[int, ...]
"""Of a task, a row and a column."""


class Across(NamedTuple):
    """left (B, ., width), right (B, ., columns), and out (B, splits, width, columns)."""

    left: Tensor
    right: Tensor
    lengths: Tensor | None
    out: Tensor


class AcrossStrides(NamedTuple):
    """Of the operands."""

    left: Strides
    right: Strides


class Rows(NamedTuple):
    """left (B, N, inner), matrix (B, inner, columns), a second pair or None, and out (B, N, columns)."""

    left: Tensor
    matrix: Tensor
    other: Tensor | None
    other_matrix: Tensor | None
    lengths: Tensor | None
    out: Tensor


class RowsStrides(NamedTuple):
    """Of the operands and the result."""

    left: Strides
    matrix: Strides
    other: Strides
    other_matrix: Strides
    out: Strides


class Constants(NamedTuple):
    """INNER, OTHER_INNER: widths of what is multiplied from the left. WIDTH: of the result."""

    INNER: int
    OTHER_INNER: int
    WIDTH: int
    TASKS: int
    BLOCK: int
    ROWS: int
    CHUNK: int
    ACC: tl.dtype
    PRECISION: str


@triton.jit(do_not_specialize=["batch", "context", "splits", "split_tokens"])
def across_kernel(t, strides, batch, context, splits, split_tokens, C: tl.constexpr):
    """out, the sums over one split each of left_i right_i^T.

    Of `batch` tasks, whose longest context is divided into `splits` runs of `split_tokens`.
    """
    left_task, left_row, left_column = wide(strides.left)
    right_task, right_row, right_column = wide(strides.right)
    i_split = tl.program_id(0) % splits
    i_task = tl.cast(tl.program_id(0) // splits, tl.int64) * C.TASKS + tl.arange(0, C.TASKS)[:, None, None]
    m_task = i_task < batch
    count = load_counts(t.lengths, i_task, context, m_task)
    first = i_split * split_tokens
    inside = tl.minimum(count - first, split_tokens)
    total = product(
        (t.left + i_task * left_task + first * left_row, left_column, left_row),
        (t.right + i_task * right_task + first * right_row, right_row, right_column),
        (m_task, C.INNER, inside, C.WIDTH, tl.minimum(split_tokens, context - first)),
        C.BLOCK,
        C.BLOCK,
        C,
    )
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    p_out = t.out + (i_task * splits + i_split) * C.INNER * C.WIDTH + i * C.WIDTH + j
    tl.store(p_out, total, mask=m_task & (i < C.INNER) & (j < C.WIDTH))


@triton.jit(do_not_specialize=["batch", "tokens", "context", "row_blocks"])
def rows_kernel(t, strides, batch, tokens, context, row_blocks, C: tl.constexpr):
    """out: left times matrix, exactly zero past the context; to every row, `other` times `other_matrix` is added.

    Of `batch` tasks of so many tokens, in `row_blocks` blocks a task.
    """
    left_task, left_row, left_column = wide(strides.left)
    matrix_task, matrix_row, matrix_column = wide(strides.matrix)
    other_task, other_row, other_column = wide(strides.other)
    other_matrix_task, other_matrix_row, other_matrix_column = wide(strides.other_matrix)
    out_task, out_row, out_column = wide(strides.out)
    first = tl.program_id(0) % row_blocks * C.ROWS
    i_task = tl.cast(tl.program_id(0) // row_blocks, tl.int64) * C.TASKS + tl.arange(0, C.TASKS)[:, None, None]
    m_task = i_task < batch
    count = load_counts(t.lengths, i_task, context, m_task)
    i_row = tl.arange(0, C.ROWS)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    total = product(
        (t.left + i_task * left_task + first * left_row, left_row, left_column),
        (t.matrix + i_task * matrix_task, matrix_row, matrix_column),
        (m_task, count - first, C.INNER, C.WIDTH, C.INNER),
        C.ROWS,
        C.BLOCK,
        C,
    )
    total = tl.where(first + i_row < count, total, 0.0)
    if t.other is not None:
        total += product(
            (t.other + i_task * other_task + first * other_row, other_row, other_column),
            (t.other_matrix + i_task * other_matrix_task, other_matrix_row, other_matrix_column),
            (m_task, tokens - first, C.OTHER_INNER, C.WIDTH, C.OTHER_INNER),
            C.ROWS,
            C.BLOCK,
            C,
        )
    p_out = t.out + i_task * out_task + (first + i_row) * out_row + j * out_column
    tl.store(p_out, total, mask=m_task & (first + i_row < tokens) & (j < C.WIDTH))


def _config(width: int, z: Tensor, tokens: int) -> rules.Config:
    return rules.config(width, tokens, compute_dtype(z), architecture(z.device))


def _constants(config: rules.Config, dtype: torch.dtype, inner: int, columns: int, other_inner: int = 0) -> Constants:
    return Constants(
        INNER=inner,
        OTHER_INNER=other_inner,
        WIDTH=columns,
        TASKS=config.tasks,
        BLOCK=config.block,
        ROWS=config.rows,
        CHUNK=config.chunk,
        ACC=triton_type(dtype),
        PRECISION=rules.precision(dtype),
    )


def tiles_of(columns: int) -> list[slice]:
    """As many columns at a time as a tile has."""
    return [slice(first, first + TILE_WIDTH) for first in range(0, columns, TILE_WIDTH)]


def across(left: Tensor, right: Tensor, lengths: Tensor | None, context: int) -> Tensor:
    """sum_{i<n} left_i right_i^T, (B, D, K), of left (B, N, D) and right (B, N, K)."""
    batch, tokens, width = left.shape
    columns, dtype = right.shape[2], compute_dtype(left)
    if max(width, columns) > TILE_WIDTH:
        rows = (left[..., part] for part in tiles_of(width))
        made = [[across(row, right[..., part], lengths, context) for part in tiles_of(columns)] for row in rows]
        return torch.cat([torch.cat(row, 2) for row in made], 1)
    config = _config(max(width, columns), left, tokens)
    blocks = triton.cdiv(batch, config.tasks)
    splits = rules.gram_splits(blocks, context)
    # A split is a whole number of products, so that no product straddles two.
    split_tokens = triton.cdiv(triton.cdiv(context, splits), rules.TOKENS_AT_ONCE) * rules.TOKENS_AT_ONCE
    parts = left.new_empty((batch, splits, width, columns), dtype=dtype)
    if parts.numel():
        launch(
            across_kernel,
            blocks * splits,
            t=Across(left, right, lengths, parts),
            strides=AcrossStrides(strides_of(left), strides_of(right)),
            batch=batch,
            context=context,
            splits=splits,
            split_tokens=split_tokens,
            C=_constants(config, dtype, width, columns)._replace(ROWS=0),
            **config.options,
        )
    return _pairwise(parts)


def gram(z: Tensor, lengths: Tensor | None, context: int, mean: bool = False) -> Tensor:
    """The context Gram matrices of z (B, N, D), (B, D, D), for D up to 129; mean: divided by the context's tokens."""
    batch, _, width = z.shape
    if not rules.gram_apart(width):
        total = across(z, z, lengths, context)
        return total / _counts(lengths, context) if mean else total
    splits = rules.gram_splits(batch, context)
    parts = feature_gram(z, lengths, context, splits, mean and splits == 1)
    total = _pairwise(parts)
    return total / _counts(lengths, context) if mean and splits > 1 else total


def _counts(lengths: Tensor | None, context: int) -> int | Tensor:
    return context if lengths is None else lengths[:, None, None]


def _pairwise(parts: Tensor) -> Tensor:
    """The sum along the second axis, whose length is a power of 2."""
    while parts.shape[1] > 1:
        parts = parts[:, ::2] + parts[:, 1::2]
    return parts[:, 0]


def times(
    left: Tensor,
    matrix: Tensor,
    out: Tensor,
    lengths: Tensor | None = None,
    context: int | None = None,
    other: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """out (B, N, K), of any strides: left (B, N, I) times matrix (B, I, K).

    Rows past the context, if one is given, are exactly zero. other, (B, N, J) and (B, J, K), is a second product, which
    is added to every row.
    """
    batch, tokens, inner = left.shape
    columns, dtype = matrix.shape[2], compute_dtype(left)
    second, second_matrix = other or (None, None)
    if columns > TILE_WIDTH:
        for part in tiles_of(columns):
            added = None if second is None or second_matrix is None else (second, second_matrix[..., part])
            times(left, matrix[..., part], out[..., part], lengths, context, added)
        return out
    config = _config(min(max(inner, columns), TILE_WIDTH), left, tokens)
    row_blocks = triton.cdiv(tokens, config.rows)
    none = (0, 0, 0)
    if out.numel():
        launch(
            rows_kernel,
            triton.cdiv(batch, config.tasks) * row_blocks,
            t=Rows(left, matrix, second, second_matrix, lengths, out),
            strides=RowsStrides(
                strides_of(left),
                strides_of(matrix),
                none if second is None else strides_of(second),
                none if second_matrix is None else strides_of(second_matrix),
                strides_of(out),
            ),
            batch=batch,
            tokens=tokens,
            context=tokens if context is None else context,
            row_blocks=row_blocks,
            C=_constants(config, dtype, inner, columns, 0 if second is None else second.shape[2]),
            **config.options,
        )
    return out


def gram_backward(
    grad: Tensor,
    z: Tensor,
    lengths: Tensor | None,
    context: int,
    out: Tensor | None = None,
    other: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gradient of `gram` with respect to z, in z's dtype or into `out`; other: as for `times`."""
    made = torch.empty_like(z, memory_format=torch.contiguous_format) if out is None else out
    return times(z, (grad + grad.mT).contiguous(), made, lengths, context, other)
