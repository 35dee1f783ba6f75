"""Any structure, on tokens or in Gram space: the state is a matrix X, the tokens Z_l or the transform T_l.

    W_l = sum_h Q_h G_l P_h^T;   R_l = X_l W_l + beta * R_{l-1};   X_{l+1} = X_l + sum_{j<=l} gamma_{l,j} * R_j
    on tokens  X_0 = Z, G_l = X_l^T X_l / n over the context;   in Gram space  X_0 = 1, G_l = X_l^T G_0 X_l

A program owns TASKS tasks at a time for all layers. State, registers and D-by-D intermediates live in its scratch,
which the caches hold: tokens are read from memory once and written once. Per task and layer, M D^2 (2 + R) + 2 H D^3
multiply-adds, with M = N tokens or M = D.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.coefficients import Entries, load_coefficient
from memformer_kernels.backends.triton.tiles import load_counts, product, put

# D-by-D intermediates of a task, as slots of its scratch; W_h or its transpose takes the slots from MIXED on.
INITIAL: tl.constexpr = tl.constexpr(0)
LIFTED: tl.constexpr = tl.constexpr(1)
GRAM: tl.constexpr = tl.constexpr(2)
HALF: tl.constexpr = tl.constexpr(3)
PROJECTED: tl.constexpr = tl.constexpr(4)
GRAM_GRAD: tl.constexpr = tl.constexpr(5)
SYMMETRIC: tl.constexpr = tl.constexpr(6)
MIXED_GRAD: tl.constexpr = tl.constexpr(7)
MIXED_GRAD_TURNED: tl.constexpr = tl.constexpr(8)
INITIAL_GRAD: tl.constexpr = tl.constexpr(9)
MIXED: tl.constexpr = tl.constexpr(10)


class Tensors(NamedTuple):
    """z (B, N, D); matrix (B, D, D), lengths (B,), gamma and beta in full or None; q, p dense.

    past: registers (B, R, N, D), each where its call has it, in slots as `in_slots` has them; or None.
    """

    z: Tensor
    matrix: Tensor | None
    lengths: Tensor | None
    past: tuple[Tensor, ...] | None
    q: Tensor
    p: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class Shape(NamedTuple):
    """All sizes of a call, as device functions read them.

    Tasks, tokens, longest context, rows M of a state, width; layers, heads, registers a layer, registers from before
    the first layer; queries, layers that predict, and the first row that is not padding.
    """

    batch: Any
    tokens: Any
    context: Any
    rows: Any
    width: Any
    layers: Any
    heads: Any
    kept: Any
    depth: Any
    queries: Any
    outputs: Any
    valid_from: Any


class Constants(NamedTuple):
    """SPACE: "gram" or "token". STACK: Z_L is asked for, not predictions. RULE: of gamma. TASKS, ROWS: at a time.

    PAST: slots of registers from before the first layer. Of the forward alone: KEEP: all states. Of the backward: LOSS:
    the error comes from targets. P_GRAD: p is an argument.
    """

    SPACE: str
    STACK: bool
    RULE: int
    GAMMA_TOKENS: bool
    BETA_TOKENS: bool
    PAST: int
    TASKS: int
    BLOCK: int
    ROWS: int
    QUERIES: int
    CHUNK: int
    ACC: tl.dtype
    PRECISION: str
    KEEP: bool = False
    LOSS: bool = False
    P_GRAD: bool = False


class Slots(NamedTuple):
    """Where in a program's scratch, in states of all its tasks, each kind begins; states lie first.

    Gradients of states where those have room of their own, registers, and at `end` D-by-D slots.
    """

    grads: Any
    registers: Any
    end: Any


@triton.jit
def slots_of(states, grads, registers):
    """The one layout of scratch with so many of each, of kernels and, as a plain function, of launches."""
    return Slots(states, states + grads, states + grads + registers)


class Memory(NamedTuple):
    """A program's scratch: where each task's part of each kind begins, numbers of a state and of a D-by-D slot.

    grads: of states; on tokens the gradient of a state takes its place, and so does that of a register everywhere.
    state_slot, register_slot: from one layer's to the next, 0 where each layer's takes the place of the one before.
    """

    states: Any
    grads: Any
    registers: Any
    squares: Any
    slot: Any
    square: Any
    state_slot: Any
    register_slot: Any


class Tasks(NamedTuple):
    """A program's tasks (TASKS, 1, 1): which, which exist, their context lengths, and where past registers have them.

    past_slot: numbers of a past register.
    """

    i_task: Any
    m_task: Any
    count: Any
    o_past: Any
    past_slot: Any


class RowTile(NamedTuple):
    """Rows of a tile, its offsets within a state, which entries exist, and the same of a matrix that tasks share."""

    i_row: Any
    i_column: Any
    o_entry: Any
    m_entry: Any
    entries: Any


@triton.jit
def shape_of(batch, tokens, context, width, layers, heads, kept, depth, queries, outputs, C: tl.constexpr):
    """All sizes of a call; they come to a kernel one by one, since it is compiled for some of them alone."""
    rows = width if C.SPACE == "gram" else tokens
    valid_from = 0 if C.STACK else tokens - queries
    return Shape(batch, tokens, context, rows, width, layers, heads, kept, depth, queries, outputs, valid_from)


@triton.jit
def own_tasks(t, i_task, n):
    """The tasks i_task."""
    m_task = i_task < n.batch
    count = load_counts(t.lengths, i_task, n.context, m_task)
    past_slot = tl.cast(n.batch, tl.int64) * n.kept * n.rows * n.width
    return Tasks(i_task, m_task, count, i_task * n.kept * n.rows * n.width, past_slot)


@triton.jit
def row_tile(first, m_task, n, C: tl.constexpr):
    """The rows from `first` on."""
    i_row = first + tl.arange(0, C.ROWS)[None, :, None]
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    o_row = i_row * n.width
    m_shared = (i_row < n.rows) & (i_column < n.width)
    entries = Entries(o_row, i_column, m_shared, i_column < n.width)
    return RowTile(i_row, i_column, o_row + i_column, m_task & (i_row < n.rows) & (i_column < n.width), entries)


@triton.jit
def put_square(i_slot, left, right, memory, own, n, C: tl.constexpr):
    """Stores the product of two D-by-D matrices in a slot."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    total = product(left, right, (own.m_task, n.width, n.width, n.width, n.width), C.BLOCK, C.BLOCK, C)
    p_entry = memory.squares + i_slot * memory.square + i * n.width + j
    put(p_entry, total, own.m_task & (i < n.width) & (j < n.width))


@triton.jit
def put_context_gram(i_slot, tokens, row_stride, column_stride, memory, own, n, C: tl.constexpr):
    """Stores the mean context Gram matrix of tokens in a slot."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    total = product(
        (tokens, column_stride, row_stride),
        (tokens, row_stride, column_stride),
        (own.m_task, n.width, own.count, n.width, n.context),
        C.BLOCK,
        C.BLOCK,
        C,
    )
    p_entry = memory.squares + i_slot * memory.square + i * n.width + j
    put(p_entry, total / own.count.to(C.ACC), own.m_task & (i < n.width) & (j < n.width))


@triton.jit
def put_gram(state, memory, own, n, C: tl.constexpr):
    """Stores a state's Gram matrix, and in Gram space G_0 X, which the backward reads again."""
    if C.SPACE == "gram":
        initial = memory.squares + INITIAL * memory.square
        lifted = memory.squares + LIFTED * memory.square
        put_square(LIFTED, (initial, n.width, 1), (state, n.width, 1), memory, own, n, C)
        put_square(GRAM, (state, 1, n.width), (lifted, n.width, 1), memory, own, n, C)
    else:
        put_context_gram(GRAM, state, n.width, 1, memory, own, n, C)


@triton.jit
def put_mixed(first, second, memory, own, n, C: tl.constexpr):
    """Stores sum_h first_h G second_h^T for every register: W from (Q, P), its transpose from (P, Q)."""
    square = tl.cast(n.width * n.width, tl.int64)
    together = n.heads // n.kept
    half = memory.squares + HALF * memory.square
    gram = memory.squares + GRAM * memory.square
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    for register in range(n.kept):
        total = tl.zeros((C.TASKS, C.BLOCK, C.BLOCK), C.ACC)
        for head in range(register * together, register * together + together):
            put_square(HALF, (first + head * square, n.width, 1), (gram, n.width, 1), memory, own, n, C)
            total += product(
                (half, n.width, 1),
                (second + head * square, 1, n.width),
                (own.m_task, n.width, n.width, n.width, n.width),
                C.BLOCK,
                C.BLOCK,
                C,
            )
        p_entry = memory.squares + (MIXED + register) * memory.square + i * n.width + j
        put(p_entry, total, own.m_task & (i < n.width) & (j < n.width))


@triton.jit
def load_past(past, register, o_entry, m_entry, own, n, ACC: tl.constexpr):
    """Entries of a register from before the first layer, which has the tokens' dtype."""
    p_register = past + own.o_past + register * n.rows * n.width
    return tl.load(p_register + o_entry, mask=m_entry, other=0.0).to(ACC)


@triton.jit
def load_gamma(t, index, tile, n, C: tl.constexpr):
    """One entry of gamma, at a tile's entries or columns."""
    return load_coefficient(t.gamma, index, n.rows, n.width, tile.entries, C.GAMMA_TOKENS)


@triton.jit
def load_beta(t, index, tile, n, C: tl.constexpr):
    """One entry of beta, at a tile's entries or columns."""
    return load_coefficient(t.beta, index, n.rows, n.width, tile.entries, C.BETA_TOKENS)


@triton.jit
def new_register(t, state, first, layer, register, tile, memory, own, n, C: tl.constexpr):
    """A layer's register at a tile, stored."""
    fresh = product(
        (state + first * n.width, n.width, 1),
        (memory.squares + (MIXED + register) * memory.square, n.width, 1),
        (own.m_task, n.rows - first, n.width, n.width, n.width),
        C.ROWS,
        C.BLOCK,
        C,
    )
    if C.SPACE == "token":
        fresh = tl.where((tile.i_row < own.count) | (tile.i_row >= n.valid_from), fresh, 0.0)
    p_register = memory.registers + layer * memory.register_slot + register * memory.slot + tile.o_entry
    if t.beta is not None:
        decay = load_beta(t, layer * n.kept + register, tile, n, C)
        before = tl.load(p_register - memory.register_slot, mask=tile.m_entry & (layer > 0), other=0.0)
        if C.PAST:
            m_first = tile.m_entry & (layer == 0)
            before += load_past(t.past[C.PAST - 1], register, tile.o_entry, m_first, own, n, C.ACC)
        fresh += decay * before
    tl.store(p_register, fresh, mask=tile.m_entry)
    return fresh


@triton.jit
def run_layers(t, memory, own, n, C: tl.constexpr):
    """All layers from the first state; states go to scratch, each to a slot of its own or all to one.

    Rows that are neither context nor at or past `valid_from` are padding, whose registers are zero.
    """
    shared = tl.zeros((C.TASKS, 1, 1), tl.int32)
    total = n.layers + n.depth
    for layer in range(n.layers):
        state = memory.states + layer * memory.state_slot
        put_gram(state, memory, own, n, C)
        matrices = tl.cast(layer * n.heads, tl.int64) * n.width * n.width
        put_mixed(t.q + shared + matrices, t.p + shared + matrices, memory, own, n, C)
        for first in range(0, n.rows, C.ROWS):
            tile = row_tile(first, own.m_task, n, C)
            moved = tl.load(state + tile.o_entry, mask=tile.m_entry, other=0.0)
            for register in range(n.kept):
                fresh = new_register(t, state, first, layer, register, tile, memory, own, n, C)
                if C.RULE == 0:
                    moved += fresh
                else:
                    i_own = layer if C.RULE == 1 else layer * total + n.depth + layer
                    moved += fresh * load_gamma(t, i_own * n.kept + register, tile, n, C)
                if C.RULE == 2:
                    for earlier in range(layer):
                        weight = load_gamma(t, (layer * total + n.depth + earlier) * n.kept + register, tile, n, C)
                        p_earlier = memory.registers + earlier * memory.register_slot + register * memory.slot
                        moved += weight * tl.load(p_earlier + tile.o_entry, mask=tile.m_entry, other=0.0)
                    if C.PAST:
                        for slot in tl.static_range(C.PAST):
                            earlier = slot + n.depth - C.PAST
                            if earlier >= 0:
                                weight = load_gamma(t, (layer * total + earlier) * n.kept + register, tile, n, C)
                                before = load_past(t.past[slot], register, tile.o_entry, tile.m_entry, own, n, C.ACC)
                                moved += weight * before
            put(state + memory.state_slot + tile.o_entry, moved, tile.m_entry)
