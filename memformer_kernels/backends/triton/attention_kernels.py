"""The kernels of `attention`: sums over the keys of splits, and tokens that see the sum so far.

The E entries of a head come in parts of at most 64. `state_kernel`: a program owns a split of one head, a part and up
to 64 columns of v, and sums k_i v_i^T over it. `attend_kernel`: a program owns a split and columns, and goes through
its split chunk by chunk with the sum so far on chip, a tile a part: 2 E + F numbers read and F written a token, 2 E F +
C (E + F) multiply-adds for chunks of C. The scores of a chunk never leave the chip.

What is loaded is transposed by its strides, and no product transposes a tile that another one left in registers. No
product is longer than a part or a chunk: its terms are added in a tensor core, which rounds towards zero, and sums of
products outside, where they are rounded to nearest.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.tiles import multiply, wide, with_tile


class States(NamedTuple):
    """Tensors of `state_kernel`: k (B, N, H, E), v (B, N, H, F), weights of keys (B, N) or None, sums of splits."""

    k: Tensor
    v: Tensor
    keys: Tensor | None
    states: Tensor


class StatesStrides(NamedTuple):
    """Of a batch, a token, a head and an entry, or of a batch and a token."""

    k: tuple[int, ...]
    v: tuple[int, ...]
    keys: tuple[int, ...]


class Attend(NamedTuple):
    """Tensors of `attend_kernel`: the same and q, weights of rows, the first tokens of packed sequences, the result."""

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    keys: Tensor | None
    bounds: Tensor | None
    states: Tensor | None
    out: Tensor


class AttendStrides(NamedTuple):
    """The same; of the sums before splits, of an entry of k and one of v: a head's and a split's follow one another."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    rows: tuple[int, ...]
    keys: tuple[int, ...]
    states: tuple[int, ...]


class Sizes(NamedTuple):
    """Heads, tokens, splits of a sequence and their tokens, and the blocks of columns of v."""

    heads: Any
    tokens: Any
    splits: Any
    split_tokens: Any
    blocks: Any


class Constants(NamedTuple):
    """FORM: which keys a token sees. WIDTH, VALUE_WIDTH: E and F. PARTS of PART entries cover E.

    COLUMNS: of v at a time. CHUNK: tokens at a time.
    """

    FORM: str
    WIDTH: int
    VALUE_WIDTH: int
    PARTS: int
    PART: int
    COLUMNS: int
    CHUNK: int
    ACC: tl.dtype
    PRECISION: str


class Place(NamedTuple):
    """A program's batch, head and split, the first of its columns, and its tokens [first, last)."""

    i_batch: Any
    i_head: Any
    i_split: Any
    first_column: Any
    first: Any
    last: Any


@triton.jit
def owned(i_program, sizes, bounds, C: tl.constexpr):
    """The place of a program."""
    first_column = i_program % sizes.blocks * C.COLUMNS
    i_place = i_program // sizes.blocks
    i_split = i_place % sizes.splits
    i_head = i_place // sizes.splits % sizes.heads
    i_batch = i_place // sizes.splits // sizes.heads
    if bounds is None:
        first = i_split * sizes.split_tokens
        last = tl.minimum(first + sizes.split_tokens, sizes.tokens)
    else:
        first = tl.load(bounds + i_split)
        last = tl.load(bounds + i_split + 1)
    return Place(i_batch, i_head, i_split, first_column, tl.cast(first, tl.int64), tl.cast(last, tl.int64))


@triton.jit
def load_weights(weights, strides, i_batch, i_token, m_token, ACC: tl.constexpr):
    """The weights of tokens, in the shape of `i_token`; 0 outside."""
    s_batch, s_token = strides
    if weights is None:
        weight = tl.where(m_token, 1.0, 0.0).to(ACC)
    else:
        weight = tl.load(weights + i_batch * s_batch + i_token * s_token, mask=m_token, other=0.0).to(ACC)
    return weight


@triton.jit
def weighted(values, weight, WEIGHTED: tl.constexpr, ACC: tl.constexpr):
    """Values times their weights; as they are, in their dtype, where there are none."""
    return values.to(ACC) * weight if WEIGHTED else values


@triton.jit
def sum_keys(key, value, weights, strides, place, part, C: tl.constexpr):
    """The weighted k_i v_i^T of a place's tokens (1, PART, COLUMNS), for a part; key and value point at its head."""
    k_strides, v_strides, weight_strides = strides
    _, k_token, _, k_entry = k_strides
    _, v_token, _, v_entry = v_strides
    e = part * C.PART + tl.arange(0, C.PART)[None, :, None]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    last = place.last
    total = tl.zeros((1, C.PART, C.COLUMNS), C.ACC)
    for start in range(place.first, last, C.CHUNK):
        across = start + tl.arange(0, C.CHUNK)[None, None, :]
        down = start + tl.arange(0, C.CHUNK)[None, :, None]
        weight_across = load_weights(weights, weight_strides, place.i_batch, across, across < last, C.ACC)
        weight_down = load_weights(weights, weight_strides, place.i_batch, down, down < last, C.ACC)
        m_key = (weight_across != 0) & (e < C.WIDTH)
        keys = tl.load(key + across * k_token + e * k_entry, mask=m_key, other=0.0)
        m_value = (weight_down != 0) & (f < C.VALUE_WIDTH)
        values = tl.load(value + down * v_token + f * v_entry, mask=m_value, other=0.0)
        total += multiply(keys, weighted(values, weight_down, weights is not None, C.ACC), C.ACC, C.PRECISION)
    return total


@triton.jit(do_not_specialize=["heads", "tokens", "splits", "split_tokens", "blocks"])
def state_kernel(t, strides, heads, tokens, splits, split_tokens, blocks, C: tl.constexpr):
    """states (B, H, splits, E, F): the sum over the keys of every split."""
    sizes = Sizes(heads, tokens, splits, split_tokens, blocks)
    k_batch, _, k_head, _ = wide(strides.k)
    v_batch, _, v_head, _ = wide(strides.v)
    i_program = tl.cast(tl.program_id(0), tl.int64)
    part = i_program % C.PARTS
    place = owned(i_program // C.PARTS, sizes, None, C)
    total = sum_keys(
        t.k + place.i_batch * k_batch + place.i_head * k_head,
        t.v + place.i_batch * v_batch + place.i_head * v_head,
        t.keys,
        (wide(strides.k), wide(strides.v), wide(strides.keys)),
        place,
        part,
        C,
    )
    e = part * C.PART + tl.arange(0, C.PART)[None, :, None]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    i_place = i_program // C.PARTS // blocks
    p_state = t.states + i_place * C.WIDTH * C.VALUE_WIDTH + e * C.VALUE_WIDTH + f
    tl.store(p_state, total, mask=(e < C.WIDTH) & (f < C.VALUE_WIDTH))


@triton.jit
def first_states(t, strides, sizes, key, value, place, C: tl.constexpr):
    """What the first token of a place sees of the keys before it, and of all where every token sees all: a tile a part.

    A tuple, which a loop can carry: a tile of all parts would have to be cut where it is multiplied.
    """
    state_entry, state_column = wide(strides.states)
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    made = ()
    for part in tl.static_range(C.PARTS):
        e = part * C.PART + tl.arange(0, C.PART)[None, :, None]
        if t.states is not None:
            i_head = place.i_batch * sizes.heads + place.i_head
            i_state = i_head if C.FORM == "full" else i_head * sizes.splits + place.i_split
            p_state = t.states + i_state * (C.WIDTH * C.VALUE_WIDTH)
            state = tl.load(
                p_state + e * state_entry + f * state_column, mask=(e < C.WIDTH) & (f < C.VALUE_WIDTH), other=0.0
            )
        elif C.FORM == "full" and t.bounds is not None:
            all_strides = (wide(strides.k), wide(strides.v), wide(strides.keys))
            state = sum_keys(key, value, t.keys, all_strides, place, part, C)
        else:
            state = tl.zeros((1, C.PART, C.COLUMNS), C.ACC)
        made = with_tile(made, state)
    return made


@triton.jit(do_not_specialize=["heads", "tokens", "splits", "split_tokens", "blocks"])
def attend_kernel(t, strides, heads, tokens, splits, split_tokens, blocks, C: tl.constexpr):
    """out (B, N, H, F). states: the sum over the keys before each split, or None for none."""
    sizes = Sizes(heads, tokens, splits, split_tokens, blocks)
    q_batch, q_token, q_head, q_entry = wide(strides.q)
    k_batch, k_token, k_head, k_entry = wide(strides.k)
    v_batch, v_token, v_head, v_entry = wide(strides.v)
    rows_strides = wide(strides.rows)
    keys_strides = wide(strides.keys)
    place = owned(tl.cast(tl.program_id(0), tl.int64), sizes, t.bounds, C)
    i_batch = place.i_batch
    first = place.first
    last = place.last
    query = t.q + i_batch * q_batch + place.i_head * q_head
    key = t.k + i_batch * k_batch + place.i_head * k_head
    value = t.v + i_batch * v_batch + place.i_head * v_head
    down = tl.arange(0, C.CHUNK)[None, :, None]
    across = tl.arange(0, C.CHUNK)[None, None, :]
    e_down = tl.arange(0, C.PART)[None, :, None]
    e_across = tl.arange(0, C.PART)[None, None, :]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    states = first_states(t, strides, sizes, key, value, place, C)
    for step in range(0, last - first, C.CHUNK):
        if C.FORM == "anticausal":
            i_token = last - 1 - step - down
            i_seen = last - 1 - step - across
        else:
            i_token = first + step + down
            i_seen = first + step + across
        m_token = step + down < last - first
        row = load_weights(t.rows, rows_strides, i_batch, i_token, m_token, C.ACC)
        p_query = query + i_token * q_token
        if C.FORM != "full":
            weight = load_weights(t.keys, keys_strides, i_batch, i_seen, step + across < last - first, C.ACC)
            p_key = key + i_seen * k_token
            scores = tl.zeros((1, C.CHUNK, C.CHUNK), C.ACC)
        result = tl.zeros((1, C.CHUNK, C.COLUMNS), C.ACC)
        for part in tl.static_range(C.PARTS):
            if C.PARTS > 1:
                # Loads of later parts, moved up here, would take registers that the sums need.
                tl.debug_barrier()
            i_entry = part * C.PART + e_across
            queries = tl.load(p_query + i_entry * q_entry, mask=(row != 0) & (i_entry < C.WIDTH), other=0.0)
            result += multiply(queries, states[part], C.ACC, C.PRECISION)
            if C.FORM != "full":
                i_entry_down = part * C.PART + e_down
                m_key = (weight != 0) & (i_entry_down < C.WIDTH)
                turned = tl.load(p_key + i_entry_down * k_entry, mask=m_key, other=0.0)
                scores += multiply(queries, turned, C.ACC, C.PRECISION)
        if C.FORM != "full":
            weight_down = load_weights(t.keys, keys_strides, i_batch, i_token, m_token, C.ACC)
            m_value = (weight_down != 0) & (f < C.VALUE_WIDTH)
            values = tl.load(value + i_token * v_token + f * v_entry, mask=m_value, other=0.0)
            seen = tl.where(across <= down, scores * weight, 0.0)
            result += multiply(seen, values.to(C.ACC), C.ACC, C.PRECISION)
            added = weighted(values, weight_down, t.keys is not None, C.ACC)
            moved = ()
            for part in tl.static_range(C.PARTS):
                if C.PARTS > 1:
                    tl.debug_barrier()
                i_entry_down = part * C.PART + e_down
                m_key = (weight != 0) & (i_entry_down < C.WIDTH)
                turned = tl.load(p_key + i_entry_down * k_entry, mask=m_key, other=0.0)
                moved = with_tile(moved, states[part] + multiply(turned, added, C.ACC, C.PRECISION))
            states = moved
        p_out = t.out + ((i_batch * tokens + i_token) * heads + place.i_head) * C.VALUE_WIDTH + f
        tl.store(p_out, result * row, mask=m_token & (f < C.VALUE_WIDTH))
