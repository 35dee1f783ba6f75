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
from memformer_kernels.backends.triton.launch import architecture, launch, triton_type
from memformer_kernels.backends.triton.tiles import load_counts, product, wide
from memformer_kernels.calls.arguments import compute_dtype


@triton.jit(do_not_specialize=["batch", "context", "splits", "split_tokens"])
def across_kernel(
    left,
    right,
    lengths,
    out,
    left_task,
    left_row,
    left_column,
    right_task,
    right_row,
    right_column,
    batch,
    context,
    width: tl.constexpr,
    columns: tl.constexpr,
    splits,
    split_tokens,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (B, splits, width, columns) from left (B, ., width) and right (B, ., columns)."""
    left_task, left_row, left_column = wide((left_task, left_row, left_column))
    right_task, right_row, right_column = wide((right_task, right_row, right_column))
    split = tl.program_id(0) % splits
    task = tl.cast(tl.program_id(0) // splits, tl.int64) * TASKS + tl.arange(0, TASKS)[:, None, None]
    live = task < batch
    count = load_counts(lengths, task, context, live)
    first = split * split_tokens
    inside = tl.minimum(count - first, split_tokens)
    total = product(
        (left + task * left_task + first * left_row, left_column, left_row),
        (right + task * right_task + first * right_row, right_row, right_column),
        (live, width, inside, columns, tl.minimum(split_tokens, context - first)),
        TASKS,
        BLOCK,
        COLUMNS,
        CHUNK,
        ACC,
        PRECISION,
    )
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, COLUMNS)[None, None, :]
    at = out + (task * splits + split) * width * columns + i * columns + j
    tl.store(at, total, mask=live & (i < width) & (j < columns))


@triton.jit(do_not_specialize=["batch", "tokens", "context", "row_blocks"])
def rows_kernel(
    left,
    matrix,
    other,
    other_matrix,
    lengths,
    out,
    left_task,
    left_row,
    left_column,
    matrix_task,
    matrix_row,
    matrix_column,
    other_task,
    other_row,
    other_column,
    other_matrix_task,
    other_matrix_row,
    other_matrix_column,
    out_task,
    out_row,
    out_column,
    batch,
    tokens,
    context,
    inner: tl.constexpr,
    other_inner: tl.constexpr,
    columns: tl.constexpr,
    row_blocks,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (B, N, columns): left (B, N, inner) times matrix (B, inner, columns), exactly zero past the context.

    To every row, `other` (B, N, other_inner) times `other_matrix` is added where it is given.
    """
    left_task, left_row, left_column = wide((left_task, left_row, left_column))
    matrix_task, matrix_row, matrix_column = wide((matrix_task, matrix_row, matrix_column))
    other_task, other_row, other_column = wide((other_task, other_row, other_column))
    other_matrix_task, other_matrix_row, other_matrix_column = wide(
        (other_matrix_task, other_matrix_row, other_matrix_column)
    )
    out_task, out_row, out_column = wide((out_task, out_row, out_column))
    first = tl.program_id(0) % row_blocks * ROWS
    task = tl.cast(tl.program_id(0) // row_blocks, tl.int64) * TASKS + tl.arange(0, TASKS)[:, None, None]
    live = task < batch
    count = load_counts(lengths, task, context, live)
    row = tl.arange(0, ROWS)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    total = product(
        (left + task * left_task + first * left_row, left_row, left_column),
        (matrix + task * matrix_task, matrix_row, matrix_column),
        (live, count - first, inner, columns, inner),
        TASKS,
        ROWS,
        BLOCK,
        CHUNK,
        ACC,
        PRECISION,
    )
    total = tl.where(first + row < count, total, 0.0)
    if other is not None:
        total += product(
            (other + task * other_task + first * other_row, other_row, other_column),
            (other_matrix + task * other_matrix_task, other_matrix_row, other_matrix_column),
            (live, tokens - first, other_inner, columns, other_inner),
            TASKS,
            ROWS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
    at = out + task * out_task + (first + row) * out_row + j * out_column
    tl.store(at, total, mask=live & (first + row < tokens) & (j < columns))


class _Sizes(NamedTuple):
    config: rules.Config
    dtype: torch.dtype

    @property
    def constants(self) -> dict[str, object]:
        return {
            "TASKS": self.config.tasks,
            "CHUNK": self.config.chunk,
            "ACC": triton_type(self.dtype),
            "PRECISION": rules.precision(self.dtype),
            **self.config.options,
        }


def _sizes(width: int, tokens: int, z: Tensor) -> _Sizes:
    dtype = compute_dtype(z)
    return _Sizes(rules.config(width, tokens, dtype, architecture(z.device)), dtype)


def across(left: Tensor, right: Tensor, lengths: Tensor | None, context: int) -> Tensor:
    """sum_{i<n} left_i right_i^T, (B, D, K), of left (B, N, D), D up to 128, and right (B, N, K), K up to D's block."""
    batch, tokens, width = left.shape
    columns = right.shape[2]
    chosen, dtype = sizes = _sizes(max(width, columns), tokens, left)
    blocks = triton.cdiv(batch, chosen.tasks)
    splits = rules.gram_splits(blocks, context)
    # A split is a whole number of products, so that no product straddles two.
    split_tokens = triton.cdiv(triton.cdiv(context, splits), rules.TOKENS_AT_ONCE) * rules.TOKENS_AT_ONCE
    parts = left.new_empty((batch, splits, width, columns), dtype=dtype)
    if parts.numel():
        launch(
            across_kernel,
            blocks * splits,
            left,
            right,
            lengths,
            parts,
            *left.stride(),
            *right.stride(),
            batch,
            context,
            width,
            columns,
            splits,
            split_tokens,
            BLOCK=chosen.block,
            COLUMNS=chosen.block,
            **sizes.constants,
        )
    while parts.shape[1] > 1:
        parts = parts[:, ::2] + parts[:, 1::2]
    return parts[:, 0]


def gram(z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
    """The context Gram matrices of z (B, N, D), (B, D, D), for D up to 128."""
    return across(z, z, lengths, context)


def times(
    left: Tensor,
    matrix: Tensor,
    out: Tensor,
    lengths: Tensor | None = None,
    context: int | None = None,
    other: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """out (B, N, K), of any strides: left (B, N, I) times matrix (B, I, K), K up to 128.

    Rows past the context, if one is given, are exactly zero. other, (B, N, J) and (B, J, K), is a second product, which
    is added to every row.
    """
    batch, tokens, inner = left.shape
    columns = matrix.shape[2]
    sizes = _sizes(min(max(inner, columns), rules.TILE_WIDTH), tokens, left)
    row_blocks = triton.cdiv(tokens, sizes.config.rows)
    second, second_matrix = other or (None, None)
    none = (0, 0, 0)
    if out.numel():
        launch(
            rows_kernel,
            triton.cdiv(batch, sizes.config.tasks) * row_blocks,
            left,
            matrix,
            second,
            second_matrix,
            lengths,
            out,
            *left.stride(),
            *matrix.stride(),
            *(none if second is None else second.stride()),
            *(none if second_matrix is None else second_matrix.stride()),
            *out.stride(),
            batch,
            tokens,
            tokens if context is None else context,
            inner,
            0 if second is None else second.shape[2],
            columns,
            row_blocks,
            BLOCK=sizes.config.block,
            ROWS=sizes.config.rows,
            **sizes.constants,
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
