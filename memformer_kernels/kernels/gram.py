"""The context Gram matrix sum_{i<n} z_i z_i^T by streaming the context once, and its backward.

Forward: a program owns TASKS tasks and one of `splits` equal runs of their contexts; it reads n D numbers a task and
makes n D^2 multiply-adds, in products of at most 32 tokens. Splits are added pairwise. Backward: a program owns ROWS
tokens of TASKS tasks and multiplies them by G' + G'^T; it reads and writes every token once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.kernels import rules
from memformer_kernels.kernels.launch import on_device, triton_type
from memformer_kernels.kernels.tiles import load_counts, product


@triton.jit(do_not_specialize=["batch", "context", "splits", "split_tokens"])
def gram_kernel(
    z,
    lengths,
    out,
    z_task,
    z_row,
    z_column,
    batch,
    context,
    width: tl.constexpr,
    splits,
    split_tokens,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (B, splits, D, D)."""
    split = tl.program_id(0) % splits
    task = tl.cast(tl.program_id(0) // splits, tl.int64) * TASKS + tl.arange(0, TASKS)[:, None, None]
    live = task < batch
    count = load_counts(lengths, task, context, live)
    first = split * split_tokens
    tokens = z + task * z_task + tl.cast(first, tl.int64) * z_row
    inside = tl.minimum(count - first, split_tokens)
    total = product(
        (tokens, z_column, z_row),
        (tokens, z_row, z_column),
        (live, width, inside, width, tl.minimum(split_tokens, context - first)),
        TASKS,
        BLOCK,
        BLOCK,
        CHUNK,
        ACC,
        PRECISION,
    )
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    at = out + (task * splits + split) * width * width + i * width + j
    tl.store(at, total, mask=live & (i < width) & (j < width))


@triton.jit(do_not_specialize=["batch", "tokens", "context", "row_blocks"])
def gram_backward_kernel(
    z,
    lengths,
    symmetric,
    out,
    z_task,
    z_row,
    z_column,
    batch,
    tokens,
    context,
    width: tl.constexpr,
    row_blocks,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (B, N, D): context rows times `symmetric` (B, D, D), exactly zero past the context."""
    first = tl.program_id(0) % row_blocks * ROWS
    task = tl.cast(tl.program_id(0) // row_blocks, tl.int64) * TASKS + tl.arange(0, TASKS)[:, None, None]
    live = task < batch
    count = load_counts(lengths, task, context, live)
    grad = product(
        (z + task * z_task + tl.cast(first, tl.int64) * z_row, z_row, z_column),
        (symmetric + task * width * width, width, 1),
        (live, count - first, width, width, width),
        TASKS,
        ROWS,
        BLOCK,
        CHUNK,
        ACC,
        PRECISION,
    )
    row = first + tl.arange(0, ROWS)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    kept = tl.where(row < count, grad, 0.0)
    tl.store(out + (task * tokens + row) * width + j, kept, mask=live & (row < tokens) & (j < width))


def gram(z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
    """The context Gram matrices of z (B, N, D), (B, D, D), for D up to 128."""
    batch, tokens, width = z.shape
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    chosen = rules.config(width, tokens, dtype)
    blocks = triton.cdiv(batch, chosen.tasks)
    splits = rules.gram_splits(blocks, context)
    # A split is a whole number of products, so that no product straddles two.
    split_tokens = triton.cdiv(triton.cdiv(context, splits), rules.TOKENS_AT_ONCE) * rules.TOKENS_AT_ONCE
    parts = z.new_empty((batch, splits, width, width), dtype=dtype)
    if batch:
        with on_device(z):
            gram_kernel[(blocks * splits,)](
                z,
                lengths,
                parts,
                *z.stride(),
                batch,
                context,
                width,
                splits,
                split_tokens,
                TASKS=chosen.tasks,
                BLOCK=chosen.block,
                CHUNK=chosen.chunk,
                ACC=triton_type(dtype),
                PRECISION=rules.precision(dtype),
                num_warps=chosen.warps,
                num_stages=chosen.stages,
            )
    while parts.shape[1] > 1:
        parts = parts[:, ::2] + parts[:, 1::2]
    return parts[:, 0]


def gram_backward(grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
    """Gradient of `gram` with respect to z, in z's dtype."""
    batch, tokens, width = z.shape
    dtype = grad.dtype
    chosen = rules.config(width, tokens, dtype)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    row_blocks = triton.cdiv(tokens, chosen.rows)
    if batch:
        with on_device(z):
            gram_backward_kernel[(triton.cdiv(batch, chosen.tasks) * row_blocks,)](
                z,
                lengths,
                (grad + grad.mT).contiguous(),
                out,
                *z.stride(),
                batch,
                tokens,
                context,
                width,
                row_blocks,
                TASKS=chosen.tasks,
                BLOCK=chosen.block,
                ROWS=chosen.rows,
                CHUNK=chosen.chunk,
                ACC=triton_type(dtype),
                PRECISION=rules.precision(dtype),
                num_warps=chosen.warps,
                num_stages=chosen.stages,
            )
    return out
