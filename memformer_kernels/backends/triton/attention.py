"""Linear attention with factored heads: the weighted sum over keys of `maths.factored`, which is its own gradient.

Tokens of a sequence are divided into splits. `state_kernel`: a program owns a split of one head and up to 64 columns of
v, and sums k_i v_i^T over it: E + F numbers read and E F multiply-adds a token. The sums before each split are then
added up, and in `attend_kernel` a program of the same ownership goes through its split chunk by chunk with the sum so
far on chip: 2 E + F numbers read and F written a token, 2 E F + C (E + F) multiply-adds for chunks of C. The scores of
a chunk never leave the chip. Later tokens see earlier ones; "anticausal" walks a sequence backwards. Packed sequences
are splits of their own, one program each.

What is loaded is transposed by its strides, and no product transposes a tile that another one left in registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.launch import architecture, launch, triton_type
from memformer_kernels.backends.triton.tiles import multiply, wide
from memformer_kernels.calls.arguments import compute_dtype

ENOUGH_PROGRAMS = 1024
"""Programs that keep an H100 or H200 busy without dividing sequences: 8 for each of 132 multiprocessors."""


@triton.jit
def owned(split, tokens, split_tokens, bounds):
    """The tokens [first, last) of a split."""
    if bounds is None:
        first = split * split_tokens
        last = tl.minimum(first + split_tokens, tokens)
    else:
        first = tl.load(bounds + split)
        last = tl.load(bounds + split + 1)
    return tl.cast(first, tl.int64), tl.cast(last, tl.int64)


@triton.jit
def load_weights(weights, strides, batch, token, inside, ACC: tl.constexpr):
    """The weights of tokens, in the shape of `token`; 0 outside."""
    batch_stride, token_stride = strides
    if weights is None:
        weight = tl.where(inside, 1.0, 0.0).to(ACC)
    else:
        weight = tl.load(weights + batch * batch_stride + token * token_stride, mask=inside, other=0.0).to(ACC)
    return weight


@triton.jit
def weighed(values, weight, WEIGHED: tl.constexpr, ACC: tl.constexpr):
    """Values times their weights; as they are, in their dtype, where there are none."""
    return values.to(ACC) * weight if WEIGHED else values


@triton.jit
def sum_keys(
    total,
    key,
    value,
    weights,
    k_strides,
    v_strides,
    weight_strides,
    batch,
    first,
    last,
    width,
    value_width,
    first_column,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """total (1, E, F) plus the weighed k_i v_i^T of the tokens [first, last)."""
    k_token, k_entry = k_strides
    v_token, v_entry = v_strides
    e = tl.arange(0, BLOCK)[None, :, None]
    f = first_column + tl.arange(0, COLUMNS)[None, None, :]
    for start in range(first, last, CHUNK):
        across = start + tl.arange(0, CHUNK)[None, None, :]
        down = start + tl.arange(0, CHUNK)[None, :, None]
        weight_across = load_weights(weights, weight_strides, batch, across, across < last, ACC)
        weight_down = load_weights(weights, weight_strides, batch, down, down < last, ACC)
        keys = tl.load(key + across * k_token + e * k_entry, mask=(weight_across != 0) & (e < width), other=0.0)
        values = tl.load(value + down * v_token + f * v_entry, mask=(weight_down != 0) & (f < value_width), other=0.0)
        total += multiply(keys, weighed(values, weight_down, weights is not None, ACC), ACC, PRECISION)
    return total


@triton.jit(do_not_specialize=["heads", "tokens", "splits", "split_tokens", "blocks"])
def state_kernel(
    k,
    v,
    keys,
    states,
    k_batch,
    k_token,
    k_head,
    k_entry,
    v_batch,
    v_token,
    v_head,
    v_entry,
    w_batch,
    w_token,
    heads,
    tokens,
    splits,
    split_tokens,
    blocks,
    width: tl.constexpr,
    value_width: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """states (B, H, splits, E, F): the sum over the keys of every split."""
    k_batch, k_token, k_head, k_entry = wide((k_batch, k_token, k_head, k_entry))
    v_batch, v_token, v_head, v_entry = wide((v_batch, v_token, v_head, v_entry))
    w_batch, w_token = wide((w_batch, w_token))
    program = tl.cast(tl.program_id(0), tl.int64)
    first_column = program % blocks * COLUMNS
    place = program // blocks
    split = place % splits
    head = place // splits % heads
    batch = place // splits // heads
    first, last = owned(split, tokens, split_tokens, None)
    total = sum_keys(
        tl.zeros((1, BLOCK, COLUMNS), ACC),
        k + batch * k_batch + head * k_head,
        v + batch * v_batch + head * v_head,
        keys,
        (k_token, k_entry),
        (v_token, v_entry),
        (w_batch, w_token),
        batch,
        first,
        last,
        width,
        value_width,
        first_column,
        BLOCK,
        COLUMNS,
        CHUNK,
        ACC,
        PRECISION,
    )
    e = tl.arange(0, BLOCK)[None, :, None]
    f = first_column + tl.arange(0, COLUMNS)[None, None, :]
    at = states + place * width * value_width + e * value_width + f
    tl.store(at, total, mask=(e < width) & (f < value_width))


@triton.jit(do_not_specialize=["heads", "tokens", "splits", "split_tokens", "blocks"])
def attend_kernel(
    q,
    k,
    v,
    rows,
    keys,
    bounds,
    states,
    out,
    q_batch,
    q_token,
    q_head,
    q_entry,
    k_batch,
    k_token,
    k_head,
    k_entry,
    v_batch,
    v_token,
    v_head,
    v_entry,
    r_batch,
    r_token,
    w_batch,
    w_token,
    state_head,
    state_split,
    heads,
    tokens,
    splits,
    split_tokens,
    blocks,
    width: tl.constexpr,
    value_width: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (B, N, H, F). states: the sum over the keys before each split, or None for none."""
    q_batch, q_token, q_head, q_entry = wide((q_batch, q_token, q_head, q_entry))
    k_batch, k_token, k_head, k_entry = wide((k_batch, k_token, k_head, k_entry))
    v_batch, v_token, v_head, v_entry = wide((v_batch, v_token, v_head, v_entry))
    r_batch, r_token = wide((r_batch, r_token))
    w_batch, w_token = wide((w_batch, w_token))
    state_head, state_split = wide((state_head, state_split))
    program = tl.cast(tl.program_id(0), tl.int64)
    first_column = program % blocks * COLUMNS
    place = program // blocks
    split = place % splits
    head = place // splits % heads
    batch = place // splits // heads
    first, last = owned(split, tokens, split_tokens, bounds)
    query = q + batch * q_batch + head * q_head
    key = k + batch * k_batch + head * k_head
    value = v + batch * v_batch + head * v_head
    down = tl.arange(0, CHUNK)[None, :, None]
    across = tl.arange(0, CHUNK)[None, None, :]
    e_down = tl.arange(0, BLOCK)[None, :, None]
    e_across = tl.arange(0, BLOCK)[None, None, :]
    f = first_column + tl.arange(0, COLUMNS)[None, None, :]
    if states is None:
        state = tl.zeros((1, BLOCK, COLUMNS), ACC)
    else:
        at = states + (batch * heads + head) * state_head + split * state_split
        inside = (e_down < width) & (f < value_width)
        state = tl.load(at + e_down * value_width + f, mask=inside, other=0.0)
    if FORM == "full" and bounds is not None:
        state = sum_keys(
            state,
            key,
            value,
            keys,
            (k_token, k_entry),
            (v_token, v_entry),
            (w_batch, w_token),
            batch,
            first,
            last,
            width,
            value_width,
            first_column,
            BLOCK,
            COLUMNS,
            CHUNK,
            ACC,
            PRECISION,
        )
    for step in range(0, last - first, CHUNK):
        if FORM == "anticausal":
            token = last - 1 - step - down
            seen = last - 1 - step - across
        else:
            token = first + step + down
            seen = first + step + across
        exists = step + down < last - first
        row = load_weights(rows, (r_batch, r_token), batch, token, exists, ACC)
        queries = tl.load(query + token * q_token + e_across * q_entry, mask=(row != 0) & (e_across < width), other=0.0)
        made = multiply(queries, state.to(ACC), ACC, PRECISION)
        if FORM != "full":
            weight = load_weights(keys, (w_batch, w_token), batch, seen, step + across < last - first, ACC)
            weight_down = load_weights(keys, (w_batch, w_token), batch, token, exists, ACC)
            turned = tl.load(key + seen * k_token + e_down * k_entry, mask=(weight != 0) & (e_down < width), other=0.0)
            values = tl.load(
                value + token * v_token + f * v_entry, mask=(weight_down != 0) & (f < value_width), other=0.0
            )
            scores = multiply(queries, turned, ACC, PRECISION)
            made += multiply(tl.where(across <= down, scores * weight, 0.0), values.to(ACC), ACC, PRECISION)
            state += multiply(turned, weighed(values, weight_down, keys is not None, ACC), ACC, PRECISION)
        to = out + ((batch * tokens + token) * heads + head) * value_width + f
        tl.store(to, made * row, mask=exists & (f < value_width))


def attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, keys: Tensor | None, bounds: Tensor | None, form: str
) -> Tensor:
    """`maths.factored.attend` for heads up to 256 wide: (B, N, H, F) in v's dtype."""
    batch, tokens, heads, width = q.shape
    value_width = v.shape[3]
    out = v.new_empty((batch, tokens, heads, value_width))
    if out.numel() == 0:
        return out
    dtype = compute_dtype(q)
    sizes = _sizes(width, value_width, q.dtype, q.device)
    options: dict[str, Any] = {
        **sizes,
        "ACC": triton_type(dtype),
        # Half-precision operands fit in TF32; what is summed between two products is rounded as they are.
        "PRECISION": "tf32" if q.dtype in (torch.bfloat16, torch.float16) else rules.precision(dtype),
    }
    blocks = triton.cdiv(value_width, sizes["COLUMNS"])
    splits, split_tokens, states = 1, tokens, None
    if bounds is not None:
        splits, bounds = bounds.shape[0] - 1, bounds.to(torch.int64).contiguous()
    else:
        splits, split_tokens = _splits(tokens, batch * heads * blocks, width)
        if form == "full":
            states = _states(k, v, keys, dtype, options, blocks).sum(2)
        elif splits > 1:
            states = _before(_states(k, v, keys, dtype, options, blocks), form)
    matrix = width * value_width
    launch(
        attend_kernel,
        batch * heads * splits * blocks,
        q,
        k,
        v,
        rows,
        keys,
        bounds,
        states,
        out,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *_strides(rows),
        *_strides(keys),
        matrix if form == "full" else matrix * splits,
        0 if form == "full" else matrix,
        heads,
        tokens,
        splits,
        split_tokens,
        blocks,
        width,
        value_width,
        FORM=form,
        **options,
    )
    return out


def _states(
    k: Tensor, v: Tensor, keys: Tensor | None, dtype: torch.dtype, options: dict[str, Any], blocks: int
) -> Tensor:
    """The sums over the keys of every split, (B, H, splits, E, F)."""
    batch, tokens, heads, width = k.shape
    splits, split_tokens = _splits(tokens, batch * heads * blocks, width)
    states = v.new_empty((batch, heads, splits, width, v.shape[3]), dtype=dtype)
    launch(
        state_kernel,
        batch * heads * splits * blocks,
        k,
        v,
        keys,
        states,
        *k.stride(),
        *v.stride(),
        *_strides(keys),
        heads,
        tokens,
        splits,
        split_tokens,
        blocks,
        width,
        v.shape[3],
        **options,
    )
    return states


def _before(states: Tensor, form: str) -> Tensor:
    """The sum over the splits that each split's tokens see in whole: a sum in log2 of their number steps, one order."""
    ordered = states.flip(2) if form == "anticausal" else states
    sums, by = pad(ordered[:, :, :-1], (0, 0, 0, 0, 1, 0)), 1
    while by < sums.shape[2]:
        sums = sums + pad(sums[:, :, :-by], (0, 0, 0, 0, by, 0))
        by *= 2
    return (sums.flip(2) if form == "anticausal" else sums).contiguous()


def _strides(weights: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if weights is None else weights.stride()


def _splits(tokens: int, programs: int, width: int) -> tuple[int, int]:
    """How many programs share a sequence, and how many tokens each has.

    None has fewer than four times as many as a head is wide: the sums of splits stay a part of the tokens' memory.
    """
    least = max(256, 4 * int(triton.next_power_of_2(width)))
    splits = max(1, min(triton.cdiv(tokens, least), triton.cdiv(ENOUGH_PROGRAMS, programs)))
    split_tokens = triton.cdiv(triton.cdiv(tokens, splits), 64) * 64
    return triton.cdiv(tokens, split_tokens), split_tokens


def _sizes(width: int, value_width: int, stored: torch.dtype, device: torch.device) -> dict[str, int]:
    """What kernels are compiled for: the sum so far, a chunk's rows and its scores stay in registers together."""
    block = max(rules.DOT_MINIMUM, int(triton.next_power_of_2(width)))
    # An operand of a float32 product is three TF32 parts, of which two are more than a half-precision one takes.
    size = block * {torch.float64: 4, torch.float32: 2}.get(stored, 1)
    # Before Hopper both operands of a product are in registers, not one.
    narrow = block > 64 or stored == torch.float64 or (size > 64 and architecture(device) < 90)
    columns = min(max(rules.DOT_MINIMUM, int(triton.next_power_of_2(value_width))), 32 if narrow else 64)
    return {
        "BLOCK": block,
        "COLUMNS": columns,
        "CHUNK": 64 if size <= 64 else 32 if size <= 128 else 16,
        "num_warps": 4 if size <= 64 else 8,
        "num_stages": 1 if block > 64 or stored == torch.float64 else 2,
    }
