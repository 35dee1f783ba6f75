"""Context Gram matrices of many features: of the features as a tile, of the features with the response as a vector.

    G = [[X^T X, X^T y], [y^T X, y^T y]],  z = (X, y)

A program owns one of `splits` equal runs of a task's tokens. It reads every feature once, a chunk ahead of products, in
an order in which a thread holds several tokens of one feature, as products want their operands in shared memory. D is
often a power of 2 and 1: the response would double the tile's side.

Float32 is multiplied in two TF32 products in place of three. With x = big + small, where big has TF32's bits,
X^T X = (M + M^T) / 2, M = big^T big + 2 big^T small, but for small^T small: at most 2^-22 of |X|^T |X|, and on the
diagonal, where it does not cancel, about 2^-24.5 of it for numbers of all sizes. A rounding is at most 2^-24 of it.
Tensor cores truncate where they add: M is summed by them over a chunk of at most 32 tokens, and chunks as float32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.launch import architecture, launch, strides_of, triton_type
from memformer_kernels.backends.triton.tiles import inner, load_counts, multiply, wide
from memformer_kernels.calls.arguments import compute_dtype


class Tensors(NamedTuple):
    """z (B, N, D), lengths (B,) or None, and out (B, splits, D, D)."""

    z: Tensor
    lengths: Tensor | None
    out: Tensor


class Constants(NamedTuple):
    """FEATURES: D - 1. BLOCK: those rounded up. CHUNK: tokens of a product, PARTS of them at a time a thread's.

    ROW: from token to token where tokens lie one after another, else 0. SPLIT: float32 in two TF32 parts. MEAN: divided
    by the number of tokens.
    """

    FEATURES: int
    BLOCK: int
    CHUNK: int
    PARTS: int
    ROW: int
    SPLIT: bool
    MEAN: bool
    ACC: tl.dtype
    PRECISION: str


@triton.jit
def in_parts(x):
    """A float32 tile as the nearest numbers of TF32's bits, and twice the rest. Where it is not finite, one is not."""
    bits = x.to(tl.int32, bitcast=True)
    big = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    small = x - big
    return big, small + small


@triton.jit
def by_feature(x, C: tl.constexpr):
    """(1, BLOCK, CHUNK) of loaded tokens (CHUNK / PARTS, PARTS, BLOCK): no thread gives a number to another."""
    return tl.reshape(tl.permute(x, (2, 1, 0)), (1, C.BLOCK, C.CHUNK))


@triton.jit
def by_token(x, C: tl.constexpr):
    """(1, CHUNK, BLOCK) of loaded tokens (CHUNK / PARTS, PARTS, BLOCK), in the order of `by_feature`."""
    return tl.reshape(tl.permute(x, (1, 0, 2)), (1, C.CHUNK, C.BLOCK))


@triton.jit
def with_mirrored(total):
    """The sum of a matrix (1, BLOCK, BLOCK) and its transpose, which is stored, never multiplied."""
    return total + tl.permute(total, (0, 2, 1))


@triton.jit
def load_features(tokens, start, left, z_row, z_column, WHOLE: tl.constexpr, C: tl.constexpr):
    """Features of a chunk's tokens (CHUNK / PARTS, PARTS, BLOCK). WHOLE: all are there; else the first `left` are."""
    i = tl.arange(0, C.CHUNK // C.PARTS)[:, None, None]
    part = C.CHUNK // C.PARTS * tl.arange(0, C.PARTS)[None, :, None]
    f = tl.arange(0, C.BLOCK)[None, None, :]
    # A thread's tokens are constants from one address on, if a row's length is compiled in.
    pointers = tokens + start * z_row + (part * z_row + f * z_column) + i * z_row
    if WHOLE and C.FEATURES == C.BLOCK:
        features = tl.load(pointers)
    elif WHOLE:
        features = tl.load(pointers, mask=f < C.FEATURES, other=0.0)
    else:
        features = tl.load(pointers, mask=(part + i < left) & (f < C.FEATURES), other=0.0)
    return features


@triton.jit
def load_responses(tokens, start, left, z_row, z_column, WHOLE: tl.constexpr, C: tl.constexpr):
    """Responses of the same tokens (CHUNK / PARTS, PARTS, 1), and again one a thread (CHUNK,).

    Their sectors have come with the features.
    """
    i = tl.arange(0, C.CHUNK // C.PARTS)[:, None, None]
    part = C.CHUNK // C.PARTS * tl.arange(0, C.PARTS)[None, :, None]
    i_token = tl.arange(0, C.CHUNK)
    first = tokens + start * z_row + C.FEATURES * z_column
    if WHOLE:
        responses = tl.load(first + part * z_row + i * z_row)
        each = tl.load(first + i_token * z_row)
    else:
        responses = tl.load(first + part * z_row + i * z_row, mask=part + i < left, other=0.0)
        each = tl.load(first + i_token * z_row, mask=i_token < left, other=0.0)
    return responses.to(C.ACC), each.to(C.ACC)


@triton.jit
def add_chunk(total, column, corner, features, responses, each, C: tl.constexpr):
    """total (1, BLOCK, BLOCK), column (PARTS, BLOCK) and corner (CHUNK,) with a chunk's tokens."""
    if C.SPLIT:
        big, small = in_parts(features)
        # Each step cuts off bits of the sum so far: while that is small they are small.
        across = by_feature(big, C)
        chunk = multiply(across, by_token(small, C), C.ACC, C.PRECISION)
        total += multiply(across, by_token(big, C), C.ACC, C.PRECISION, chunk)
    else:
        total += multiply(by_feature(features, C), by_token(features, C), C.ACC, C.PRECISION)
    column += inner(features.to(C.ACC), responses, 0)
    corner += each * each
    return total, column, corner


@triton.jit(do_not_specialize=["context", "splits", "split_tokens"])
def feature_gram_kernel(t, strides, context, splits, split_tokens, C: tl.constexpr):
    """out, the sums over one split each of z_i z_i^T: the longest context is `splits` runs of `split_tokens`."""
    z_task, z_row, z_column = wide(strides)
    if C.ROW > 0:
        z_row = C.ROW
        z_column = 1
    i_split = tl.program_id(0) % splits
    i_task = tl.cast(tl.program_id(0) // splits, tl.int64)
    count = load_counts(t.lengths, i_task, context, True)
    first = i_split * split_tokens
    # Negative where the task ends before this split begins: no loop runs then, and no load.
    inside = tl.minimum(count - first, split_tokens).to(tl.int32)
    whole = inside // C.CHUNK * C.CHUNK
    tokens = t.z + i_task * z_task + tl.cast(first, tl.int64) * z_row
    total = tl.zeros((1, C.BLOCK, C.BLOCK), C.ACC)
    column = tl.zeros((C.PARTS, C.BLOCK), C.ACC)
    corner = tl.zeros((C.CHUNK,), C.ACC)
    features = load_features(tokens, 0, whole, z_row, z_column, False, C)
    for start in range(0, whole, C.CHUNK):
        # The chunk after the last is the last: no load needs a mask.
        after = tl.minimum(start + C.CHUNK, whole - C.CHUNK)
        following = load_features(tokens, after, whole, z_row, z_column, True, C)
        responses, each = load_responses(tokens, start, whole, z_row, z_column, True, C)
        total, column, corner = add_chunk(total, column, corner, features, responses, each, C)
        features = following
    if whole < inside:
        features = load_features(tokens, whole, inside - whole, z_row, z_column, False, C)
        responses, each = load_responses(tokens, whole, inside - whole, z_row, z_column, False, C)
        total, column, corner = add_chunk(total, column, corner, features, responses, each, C)
    if C.SPLIT:
        total = with_mirrored(total) * 0.5
    column = tl.sum(column, 0)
    corner = tl.sum(corner, 0)
    if C.MEAN:
        total = total / count.to(C.ACC)
        column = column / count.to(C.ACC)
        corner = corner / count.to(C.ACC)
    WIDTH: tl.constexpr = C.FEATURES + 1
    out = t.out + (i_task * splits + i_split) * WIDTH * WIDTH
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    f = tl.arange(0, C.BLOCK)
    tl.store(out + i * WIDTH + j, total, mask=(i < C.FEATURES) & (j < C.FEATURES))
    tl.store(out + f * WIDTH + C.FEATURES, column, mask=f < C.FEATURES)
    tl.store(out + C.FEATURES * WIDTH + f, column, mask=f < C.FEATURES)
    tl.store(out + C.FEATURES * WIDTH + C.FEATURES, corner)


def feature_gram(z: Tensor, lengths: Tensor | None, context: int, splits: int, mean: bool) -> Tensor:
    """The Gram matrices of `splits` runs of every context of z (B, N, D), D from 2 to 129: (B, splits, D, D).

    mean: divided by the context's tokens.
    """
    batch, _, width = z.shape
    dtype = compute_dtype(z)
    config = rules.feature_gram_config(width, dtype, architecture(z.device))
    split_tokens = triton.cdiv(triton.cdiv(context, splits), config.chunk) * config.chunk
    out = z.new_empty((batch, splits, width, width), dtype=dtype)
    precision = rules.precision(dtype)
    in_two = z.dtype == torch.float32 and precision == "tf32x3"
    packed = z.stride()[1:] == (width, 1)
    if out.numel():
        launch(
            feature_gram_kernel,
            batch * splits,
            t=Tensors(z, lengths, out),
            strides=strides_of(z),
            context=context,
            splits=splits,
            split_tokens=split_tokens,
            C=Constants(
                FEATURES=width - 1,
                BLOCK=config.block,
                CHUNK=config.chunk,
                PARTS=config.parts,
                ROW=width if packed else 0,
                SPLIT=in_two,
                MEAN=mean,
                ACC=triton_type(dtype),
                PRECISION="tf32" if in_two else precision,
            ),
            **config.options,
        )
    return out
