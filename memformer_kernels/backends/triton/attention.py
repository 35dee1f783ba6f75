"""Linear attention with factored heads: the sum over keys of `backends.pytorch.attention`, which is its own gradient.

Tokens of a sequence are divided into splits. `state_kernel`: a program owns a split of one head and up to 64 columns of
v, and sums k_i v_i^T over it: E + F numbers read and E F multiply-adds a token. The sums before each split are then
added up, and in `attend_kernel` a program of the same ownership goes through its split chunk by chunk with the sum so
far on chip: 2 E + F numbers read and F written a token, 2 E F + C (E + F) multiply-adds for chunks of C. The scores of
a chunk never leave the chip. Later tokens see earlier ones; "anticausal" walks a sequence backwards. Packed sequences
are splits of their own, one program each.

What is loaded is transposed by its strides, and no product transposes a tile that another one left in registers.
"""

from typing import Any, NamedTuple

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
    """The same; of the sums before splits, of a head and a split."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    rows: tuple[int, ...]
    keys: tuple[int, ...]
    states: tuple[int, ...]


class Sizes(NamedTuple):
    """Heads, tokens, splits of a sequence and their tokens, and the blocks of columns of v."""

    heads: int
    tokens: int
    splits: int
    split_tokens: int
    blocks: int


class Constants(NamedTuple):
    """FORM: which keys a token sees. WIDTH, VALUE_WIDTH: E and F. BLOCK, COLUMNS: of a sum of keys. CHUNK: tokens."""

    FORM: str
    WIDTH: int
    VALUE_WIDTH: int
    BLOCK: int
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
def owned(sizes, bounds, C: tl.constexpr):
    """The place of this program."""
    i_program = tl.cast(tl.program_id(0), tl.int64)
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
def sum_keys(total, key, value, weights, strides, place, C: tl.constexpr):
    """total (1, E, F) plus the weighted k_i v_i^T of a place's tokens; key and value point at its head."""
    k_strides, v_strides, weight_strides = strides
    _, k_token, _, k_entry = k_strides
    _, v_token, _, v_entry = v_strides
    e = tl.arange(0, C.BLOCK)[None, :, None]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    last = place.last
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


@triton.jit(do_not_specialize=["sizes"])
def state_kernel(t, strides, sizes, C: tl.constexpr):
    """states (B, H, splits, E, F): the sum over the keys of every split."""
    k_batch, _, k_head, _ = wide(strides.k)
    v_batch, _, v_head, _ = wide(strides.v)
    place = owned(sizes, None, C)
    total = sum_keys(
        tl.zeros((1, C.BLOCK, C.COLUMNS), C.ACC),
        t.k + place.i_batch * k_batch + place.i_head * k_head,
        t.v + place.i_batch * v_batch + place.i_head * v_head,
        t.keys,
        (wide(strides.k), wide(strides.v), wide(strides.keys)),
        place,
        C,
    )
    e = tl.arange(0, C.BLOCK)[None, :, None]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    i_place = tl.cast(tl.program_id(0), tl.int64) // sizes.blocks
    p_state = t.states + i_place * C.WIDTH * C.VALUE_WIDTH + e * C.VALUE_WIDTH + f
    tl.store(p_state, total, mask=(e < C.WIDTH) & (f < C.VALUE_WIDTH))


@triton.jit(do_not_specialize=["sizes"])
def attend_kernel(t, strides, sizes, C: tl.constexpr):
    """out (B, N, H, F). states: the sum over the keys before each split, or None for none."""
    q_batch, q_token, q_head, q_entry = wide(strides.q)
    k_batch, k_token, k_head, k_entry = wide(strides.k)
    v_batch, v_token, v_head, v_entry = wide(strides.v)
    rows_strides = wide(strides.rows)
    keys_strides = wide(strides.keys)
    state_head, state_split = wide(strides.states)
    place = owned(sizes, t.bounds, C)
    i_batch = place.i_batch
    first = place.first
    last = place.last
    query = t.q + i_batch * q_batch + place.i_head * q_head
    key = t.k + i_batch * k_batch + place.i_head * k_head
    value = t.v + i_batch * v_batch + place.i_head * v_head
    down = tl.arange(0, C.CHUNK)[None, :, None]
    across = tl.arange(0, C.CHUNK)[None, None, :]
    e_down = tl.arange(0, C.BLOCK)[None, :, None]
    e_across = tl.arange(0, C.BLOCK)[None, None, :]
    f = place.first_column + tl.arange(0, C.COLUMNS)[None, None, :]
    if t.states is None:
        state = tl.zeros((1, C.BLOCK, C.COLUMNS), C.ACC)
    else:
        p_state = t.states + (i_batch * sizes.heads + place.i_head) * state_head + place.i_split * state_split
        m_state = (e_down < C.WIDTH) & (f < C.VALUE_WIDTH)
        state = tl.load(p_state + e_down * C.VALUE_WIDTH + f, mask=m_state, other=0.0)
    if C.FORM == "full" and t.bounds is not None:
        state = sum_keys(state, key, value, t.keys, (wide(strides.k), wide(strides.v), keys_strides), place, C)
    for step in range(0, last - first, C.CHUNK):
        if C.FORM == "anticausal":
            i_token = last - 1 - step - down
            i_seen = last - 1 - step - across
        else:
            i_token = first + step + down
            i_seen = first + step + across
        m_token = step + down < last - first
        row = load_weights(t.rows, rows_strides, i_batch, i_token, m_token, C.ACC)
        p_query = query + i_token * q_token + e_across * q_entry
        queries = tl.load(p_query, mask=(row != 0) & (e_across < C.WIDTH), other=0.0)
        result = multiply(queries, state.to(C.ACC), C.ACC, C.PRECISION)
        if C.FORM != "full":
            weight = load_weights(t.keys, keys_strides, i_batch, i_seen, step + across < last - first, C.ACC)
            weight_down = load_weights(t.keys, keys_strides, i_batch, i_token, m_token, C.ACC)
            m_key = (weight != 0) & (e_down < C.WIDTH)
            turned = tl.load(key + i_seen * k_token + e_down * k_entry, mask=m_key, other=0.0)
            m_value = (weight_down != 0) & (f < C.VALUE_WIDTH)
            values = tl.load(value + i_token * v_token + f * v_entry, mask=m_value, other=0.0)
            scores = multiply(queries, turned, C.ACC, C.PRECISION)
            seen = tl.where(across <= down, scores * weight, 0.0)
            result += multiply(seen, values.to(C.ACC), C.ACC, C.PRECISION)
            added = weighted(values, weight_down, t.keys is not None, C.ACC)
            state += multiply(turned, added, C.ACC, C.PRECISION)
        p_out = t.out + ((i_batch * sizes.tokens + i_token) * sizes.heads + place.i_head) * C.VALUE_WIDTH + f
        tl.store(p_out, result * row, mask=m_token & (f < C.VALUE_WIDTH))


def attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, keys: Tensor | None, bounds: Tensor | None, form: str
) -> Tensor:
    """`backends.pytorch.attention.attend` for heads up to 256 wide: (B, N, H, F) in v's dtype."""
    batch, tokens, heads, width = q.shape
    value_width = v.shape[3]
    out = v.new_empty((batch, tokens, heads, value_width))
    if out.numel() == 0:
        return out
    constants, options = _constants(q, value_width, form)
    blocks = triton.cdiv(value_width, constants.COLUMNS)
    splits, split_tokens, states = 1, tokens, None
    if bounds is not None:
        splits, bounds = bounds.shape[0] - 1, bounds.to(torch.int64).contiguous()
    else:
        splits, split_tokens = _splits(tokens, batch * heads * blocks, width)
        if form == "full":
            states = _states(k, v, keys, constants, options).sum(2)
        elif splits > 1:
            states = _before(_states(k, v, keys, constants, options), form)
    matrix = width * value_width
    launch(
        attend_kernel,
        batch * heads * splits * blocks,
        t=Attend(q, k, v, rows, keys, bounds, states, out),
        strides=AttendStrides(
            q.stride(),
            k.stride(),
            v.stride(),
            _strides(rows),
            _strides(keys),
            (matrix, 0) if form == "full" else (matrix * splits, matrix),
        ),
        sizes=Sizes(heads, tokens, splits, split_tokens, blocks),
        C=constants,
        **options,
    )
    return out


def _states(k: Tensor, v: Tensor, keys: Tensor | None, constants: Constants, options: dict[str, int]) -> Tensor:
    """The sums over the keys of every split, (B, H, splits, E, F)."""
    batch, tokens, heads, width = k.shape
    blocks = triton.cdiv(v.shape[3], constants.COLUMNS)
    splits, split_tokens = _splits(tokens, batch * heads * blocks, width)
    states = v.new_empty((batch, heads, splits, width, v.shape[3]), dtype=compute_dtype(v))
    launch(
        state_kernel,
        batch * heads * splits * blocks,
        t=States(k, v, keys, states),
        strides=StatesStrides(k.stride(), v.stride(), _strides(keys)),
        sizes=Sizes(heads, tokens, splits, split_tokens, blocks),
        C=constants._replace(FORM="full"),
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
    """How many programs share a sequence, and how many tokens each has; by the batch, since many sequences fill a GPU.

    None has fewer than four times as many as a head is wide: the sums of splits stay a part of the tokens' memory.
    """
    least = max(256, 4 * int(triton.next_power_of_2(width)))
    splits = max(1, min(triton.cdiv(tokens, least), triton.cdiv(ENOUGH_PROGRAMS, programs)))
    split_tokens = triton.cdiv(triton.cdiv(tokens, splits), 64) * 64
    return triton.cdiv(tokens, split_tokens), split_tokens


def _constants(q: Tensor, value_width: int, form: str) -> tuple[Constants, dict[str, int]]:
    """What kernels are compiled for: the sum so far, a chunk's rows and its scores stay in registers together."""
    width, stored, dtype = q.shape[3], q.dtype, compute_dtype(q)
    block = max(rules.DOT_MINIMUM, int(triton.next_power_of_2(width)))
    # An operand of a float32 product is three TF32 parts, of which two are more than a half-precision one takes.
    size = block * {torch.float64: 4, torch.float32: 2}.get(stored, 1)
    # Before Hopper both operands of a product are in registers, not one.
    narrow = block > 64 or stored == torch.float64 or (size > 64 and architecture(q.device) < 90)
    constants = Constants(
        FORM=form,
        WIDTH=width,
        VALUE_WIDTH=value_width,
        BLOCK=block,
        COLUMNS=min(max(rules.DOT_MINIMUM, int(triton.next_power_of_2(value_width))), 32 if narrow else 64),
        CHUNK=64 if size <= 64 else 32 if size <= 128 else 16,
        ACC=triton_type(dtype),
        # Half-precision operands fit in TF32; what is summed between two products is rounded as they are.
        PRECISION="tf32" if stored in (torch.bfloat16, torch.float16) else rules.precision(dtype),
    )
    stages = 1 if block > 64 or stored == torch.float64 else 2
    return constants, {"num_warps": 4 if size <= 64 else 8, "num_stages": stages}
