"""Context Gram matrices of many features: of the features as a tile, of the features with the response as a vector.

    G = [[X^T X, X^T y], [y^T X, y^T y]],  z = (X, y)

A program owns one of `splits` equal runs of a task's tokens. It reads every feature once, a chunk ahead of products, in
an order in which a thread holds several tokens of one feature, as products want their operands in shared memory. D is
often a power of 2 and 1: the response would double the tile's side.

More than 64 features are two sides, of which three blocks are summed: each with itself and one with the other, whose
transpose is stored and never made. Programs of four warps then leave room for two more, which multiply while one loads,
splits and adds.

Float32 is multiplied in TF32 products, of a block with itself in two in place of three. With x = big + small, where big
has TF32's bits, X^T X = (M + M^T) / 2, M = big^T big + 2 big^T small, but for small^T small: at most 2^-22 of
|X|^T |X|, and on the diagonal, where it does not cancel, about 2^-24.5 of it for numbers of all sizes. A rounding is at
most 2^-24 of it. Tensor cores truncate where they add: a block is summed by them over a chunk of at most 32 tokens, and
chunks as float32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.launch import architecture, launch, strides_of, triton_type
from memformer_kernels.backends.triton.tiles import inner, load_counts, wide, with_tile
from memformer_kernels.calls.arguments import compute_dtype


class Tensors(NamedTuple):
    """z (B, N, D), lengths (B,) or None, and out (B, splits, D, D)."""

    z: Tensor
    lengths: Tensor | None
    out: Tensor


class Constants(NamedTuple):
    """FEATURES: D - 1, in SIDES of BLOCK. CHUNK: tokens of a product, PARTS of them at a time a thread's.

    ROW: from token to token where tokens lie one after another, else 0. SPLIT: float32 in two TF32 parts. MEAN: divided
    by the number of tokens.
    """

    FEATURES: int
    BLOCK: int
    SIDES: int
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
    """(BLOCK, CHUNK) of loaded tokens (CHUNK / PARTS, PARTS, BLOCK): no thread gives a number to another."""
    return tl.reshape(tl.permute(x, (2, 1, 0)), (C.BLOCK, C.CHUNK))


@triton.jit
def operands_of(features, C: tl.constexpr):
    """What a chunk's products are made of: all sides by feature, and then, where they are split, their small parts."""
    made = ()
    rests = ()
    for side in tl.static_range(C.SIDES):
        if C.SPLIT:
            big, small = in_parts(features[side])
            made = with_tile(made, by_feature(big, C))
            rests = with_tile(rests, by_feature(small, C))
        else:
            made = with_tile(made, by_feature(features[side], C))
    return made + rests


@triton.jit
def load_side(pointers, there, z_column, FIRST: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr):
    """Features from FIRST on of tokens (CHUNK / PARTS, PARTS, BLOCK), of those that are `there` unless WHOLE."""
    f = FIRST + tl.arange(0, C.BLOCK)[None, None, :]
    from_first = pointers + FIRST * z_column
    if WHOLE and FIRST + C.BLOCK <= C.FEATURES:
        features = tl.load(from_first)
    elif WHOLE:
        features = tl.load(from_first, mask=f < C.FEATURES, other=0.0)
    else:
        features = tl.load(from_first, mask=there & (f < C.FEATURES), other=0.0)
    return features


@triton.jit
def load_features(tokens, start, left, z_row, z_column, WHOLE: tl.constexpr, C: tl.constexpr):
    """The sides of a chunk's tokens. WHOLE: all tokens are there; else the first `left` are."""
    i = tl.arange(0, C.CHUNK // C.PARTS)[:, None, None]
    part = C.CHUNK // C.PARTS * tl.arange(0, C.PARTS)[None, :, None]
    f = tl.arange(0, C.BLOCK)[None, None, :]
    # A thread's tokens are constants from one address on, if a row's length is compiled in.
    pointers = tokens + start * z_row + (part * z_row + f * z_column) + i * z_row
    made = ()
    for side in tl.static_range(C.SIDES):
        made = with_tile(made, load_side(pointers, part + i < left, z_column, side * C.BLOCK, WHOLE, C))
    return made


@triton.jit
def load_responses(tokens, start, left, z_row, z_column, C: tl.constexpr):
    """Responses of the first `left` of the same tokens (CHUNK / PARTS, PARTS, 1), and again one a thread (CHUNK,).

    Their sectors have come with the features.
    """
    i = tl.arange(0, C.CHUNK // C.PARTS)[:, None, None]
    part = C.CHUNK // C.PARTS * tl.arange(0, C.PARTS)[None, :, None]
    i_token = tl.arange(0, C.CHUNK)
    first = tokens + start * z_row + C.FEATURES * z_column
    responses = tl.load(first + part * z_row + i * z_row, mask=part + i < left, other=0.0)
    each = tl.load(first + i_token * z_row, mask=i_token < left, other=0.0)
    return responses.to(C.ACC), each.to(C.ACC)


@triton.jit
def add_responses(columns, corner, features, responses, each, C: tl.constexpr):
    """columns (PARTS, BLOCK) and corner (CHUNK,) with a chunk's tokens."""
    made = ()
    for side in tl.static_range(C.SIDES):
        # Loaded by rows, a feature's tokens are one thread's.
        made = with_tile(made, columns[side] + inner(features[side].to(C.ACC), responses, 0, FUSED=C.ROW > 0))
    return made, corner + each * each


@triton.jit
def across(left, right, total, C: tl.constexpr):
    """total or nothing plus the product (BLOCK, BLOCK) of an operand by feature and one by token."""
    return tl.dot(left, right, total, input_precision=C.PRECISION, out_dtype=C.ACC)


@triton.jit
def plus(total, chunk, C: tl.constexpr):
    """A sum (1, BLOCK, BLOCK) plus a product, outside of tensor cores: of one shape, they would be made one product."""
    return total + tl.reshape(chunk, (1, C.BLOCK, C.BLOCK))


@triton.jit
def add_products(totals, x, C: tl.constexpr):
    """The sums (1, BLOCK, BLOCK) of every side with itself, and of both, with a chunk's operands.

    Of parts, twice the sums: of a side with itself M, which its transpose is still to join.
    """
    # All of them first, so that all are stored before any is multiplied, and their registers are free.
    by_token = with_tile((), tl.trans(x[0]))
    for i in tl.static_range(1, C.SIDES * (2 if C.SPLIT else 1)):
        by_token = with_tile(by_token, tl.trans(x[i]))
    if C.SIDES == 2 and C.SPLIT:
        twice = tl.trans(x[1] + x[1])
    made = ()
    for side in tl.static_range(C.SIDES):
        if C.SPLIT:
            # Each step cuts off bits of the sum so far: while that is small they are small.
            chunk = across(x[side], by_token[C.SIDES + side], None, C)
            chunk = across(x[side], by_token[side], chunk, C)
        else:
            chunk = across(x[side], by_token[side], None, C)
        made = with_tile(made, plus(totals[side], chunk, C))
    if C.SIDES == 2:
        if C.SPLIT:
            chunk = across(x[0], by_token[3], None, C)
            chunk = across(x[2], by_token[1], chunk, C)
            chunk = across(x[0], twice, chunk, C)
        else:
            chunk = across(x[0], by_token[1], None, C)
        made = with_tile(made, plus(totals[2], chunk, C))
    return made


@triton.jit
def store_sums(out, totals, columns, corner, scale, C: tl.constexpr):
    """The matrix (D, D) of all sums, multiplied by `scale`."""
    WIDTH: tl.constexpr = C.FEATURES + 1
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    f = tl.arange(0, C.BLOCK)
    of_blocks = scale * 0.5 if C.SPLIT else scale
    for side in tl.static_range(C.SIDES):
        first = side * C.BLOCK
        total = totals[side]
        if C.SPLIT:
            # The transpose is stored, never multiplied.
            total += tl.permute(total, (0, 2, 1))
        inside = (first + i < C.FEATURES) & (first + j < C.FEATURES)
        tl.store(out + (first + i) * WIDTH + (first + j), total * of_blocks, mask=inside)
        column = tl.sum(columns[side], 0) * scale
        tl.store(out + (first + f) * WIDTH + C.FEATURES, column, mask=first + f < C.FEATURES)
        tl.store(out + C.FEATURES * WIDTH + (first + f), column, mask=first + f < C.FEATURES)
    if C.SIDES == 2:
        total = totals[2] * of_blocks
        inside = C.BLOCK + j < C.FEATURES
        tl.store(out + i * WIDTH + (C.BLOCK + j), total, mask=inside)
        tl.store(out + (C.BLOCK + j) * WIDTH + i, total, mask=inside)
    tl.store(out + C.FEATURES * WIDTH + C.FEATURES, tl.sum(corner, 0) * scale)


@triton.jit
def share_of(count, MEAN: tl.constexpr, ACC: tl.constexpr):
    """One, or for a mean one over the number of tokens, to the last bit: a fast quotient is off by two of them."""
    tokens = count.to(ACC)
    if not MEAN:
        share = tl.cast(1.0, ACC)
    elif tokens.dtype == tl.float32:
        share = tl.math.div_rn(1.0, tokens)
    else:
        share = 1.0 / tokens
    return share


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
    tokens = t.z + i_task * z_task + tl.cast(first, tl.int64) * z_row
    totals = ()
    columns = ()
    for _ in tl.static_range(C.SIDES * (C.SIDES + 1) // 2):
        totals = with_tile(totals, tl.zeros((1, C.BLOCK, C.BLOCK), C.ACC))
    for _ in tl.static_range(C.SIDES):
        columns = with_tile(columns, tl.zeros((C.PARTS, C.BLOCK), C.ACC))
    corner = tl.zeros((C.CHUNK,), C.ACC)
    features = load_features(tokens, 0, inside, z_row, z_column, False, C)
    responses, each = load_responses(tokens, 0, inside, z_row, z_column, C)
    columns, corner = add_responses(columns, corner, features, responses, each, C)
    # What a loop carries is multiplied from shared memory, where both operands are the same tile; what has just been
    # made would go into registers once more.
    operands = operands_of(features, C)
    for start in range(0, inside, C.CHUNK):
        after = start + C.CHUNK
        left = inside - after
        if left >= C.CHUNK:
            features = load_features(tokens, after, left, z_row, z_column, True, C)
        else:
            features = load_features(tokens, after, left, z_row, z_column, False, C)
        totals = add_products(totals, operands, C)
        # They have come with the features; until now they would have taken registers.
        responses, each = load_responses(tokens, after, left, z_row, z_column, C)
        columns, corner = add_responses(columns, corner, features, responses, each, C)
        operands = operands_of(features, C)
    out = t.out + (i_task * splits + i_split) * (C.FEATURES + 1) * (C.FEATURES + 1)
    store_sums(out, totals, columns, corner, share_of(count, C.MEAN, C.ACC), C)


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
                SIDES=config.sides,
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
