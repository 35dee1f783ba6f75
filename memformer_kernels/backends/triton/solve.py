"""Response-only networks in Gram space, and the first-order method itself: the state is a vector.

    g_l = b + H s_l;   r_{l,h} = A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum_h sum_{j<=l} gamma * r_{j,h}

A network's vectors are D = d + 1 long and end in the constant 1, so that b is the last column of the Gram matrix and a
prediction is -z . (s, 1). A program owns TASKS tasks at a time and keeps their matrices in registers for all layers;
the vectors of a layer go to its scratch, which the first-level cache holds. Per task it reads the context once (or the
matrix) and the queries; n D^2 / 2 + L (D^2 + R D^2 + L R D) multiply-adds.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.gram import gram
from memformer_kernels.backends.triton.launch import architecture, launch, scratch_of, triton_type
from memformer_kernels.backends.triton.tiles import inner, load_counts, product, wide

QUERIES_AT_ONCE = 8

WHOLE_MATRIX: tl.constexpr = tl.constexpr(32)
"""Widest block whose shared matrices are read whole, next to a task's own."""


class Tensors(NamedTuple):
    """z (B, N, D) of a network, or h in its place; matrix (B, D, D) or None, offset and start (B, d) or None.

    a (L, R, d, d); gamma, beta in full or None. For a quadratic, which has no tokens, h stands in for their pointer.
    """

    z: Tensor
    matrix: Tensor | None
    offset: Tensor | None
    start: Tensor | None
    lengths: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class Sizes(NamedTuple):
    """Tasks, tokens, longest context and layers."""

    batch: int
    tokens: int
    context: int
    layers: int


class Results(NamedTuple):
    """Queries that are predicted, and layers whose predictions or weights are results."""

    queries: int
    outputs: int


class Constants(NamedTuple):
    """NETWORK: not a quadratic. TOKENS: matrices come from tokens. TASKS: at a time. LANES: whose vectors are kept.

    Of the backward alone: LOSS: the error comes from targets. REREAD: a given matrix is read again. ROWS: tokens at a
    time. TILE: a side of a product over LANE_CHUNK tasks at a time.
    """

    WIDTH: int
    FEATURES: int
    NETWORK: bool
    TOKENS: bool
    RULE: int
    TASKS: int
    LANES: int
    BLOCK: int
    QUERIES: int
    CHUNK: int
    ACC: tl.dtype
    PRECISION: str
    LOSS: bool = False
    REREAD: bool = False
    ROWS: int = 0
    TILE: int = 0
    LANE_CHUNK: int = 0


class Slots(NamedTuple):
    """Where in a program's scratch, in vectors of all its tasks, each kind begins; registers (L, R) lie first.

    Residuals (L), states (L + 1), and of the backward gradients of registers (L, R) and of updates (L). A forward's
    scratch ends where `register_grads` begin.
    """

    residuals: Any
    states: Any
    register_grads: Any
    end: Any


@triton.jit
def slots_of(layers, kept):
    """The one layout of scratch, of kernels and, as a plain function, of launches."""
    residuals = layers * kept
    states = residuals + layers
    register_grads = layers * kept + 2 * layers + 1
    return Slots(residuals, states, register_grads, register_grads + layers * kept + layers)


@triton.jit
def gradients_of(first, layers, kept, slot):
    """Where gradients of registers begin in scratch from `first` on, and where those of updates, which follow them."""
    register_grads = first + slots_of(layers, kept).register_grads * slot
    return register_grads, register_grads + layers * kept * slot


class Tasks(NamedTuple):
    """A program's tasks (TASKS, 1): which, their places in scratch, which exist, and their context lengths.

    memory: of the program. vectors: a task's part of the first one. slot: numbers of one for all tasks.
    """

    i_task: Any
    i_lane: Any
    m_task: Any
    count: Any
    memory: Any
    vectors: Any
    slot: Any


@triton.jit
def own_tasks(t, i_task, i_lane, memory, sizes, C: tl.constexpr):
    """The tasks i_task, whose vectors are the i_lane-th of `memory`."""
    m_task = i_task < sizes.batch
    count = load_counts(t.lengths, i_task, sizes.context, m_task)[:, :, None]
    vectors = memory + i_lane * C.WIDTH + tl.arange(0, C.BLOCK)[None, :]
    return Tasks(i_task, i_lane, m_task, count, memory, vectors, tl.cast(C.LANES * C.WIDTH, tl.int64))


@triton.jit
def task_matrix(t, strides, own, context, C: tl.constexpr):
    """The mean context Gram matrix from tokens, or a given matrix, (TASKS, BLOCK, BLOCK)."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    k = tl.arange(0, C.BLOCK)[None, None, :]
    i_task = own.i_task[:, :, None]
    m_task = own.m_task[:, :, None]
    if C.TOKENS:
        z_task, z_row, z_column = strides
        tokens = t.z + i_task * z_task
        bounds = (m_task, C.WIDTH, own.count, C.WIDTH, context)
        total = product((tokens, z_column, z_row), (tokens, z_row, z_column), bounds, C.BLOCK, C.BLOCK, C)
        tile = total / own.count.to(C.ACC)
    else:
        p_entry = t.matrix + i_task * C.WIDTH * C.WIDTH + i * C.WIDTH + k
        tile = tl.load(p_entry, mask=m_task & (i < C.FEATURES) & (k < C.WIDTH), other=0.0)
    return tile


@triton.jit
def load_shared(a, index, C: tl.constexpr):
    """One head's matrix (1, BLOCK, BLOCK)."""
    row = tl.arange(0, C.BLOCK)[None, :, None]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    square = a + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES
    return tl.load(square + row * C.FEATURES + column, mask=(row < C.FEATURES) & (column < C.FEATURES), other=0.0)


@triton.jit
def load_weight(coefficient, index, mask, C: tl.constexpr):
    """One vector of a coefficient (1, BLOCK)."""
    i = tl.arange(0, C.BLOCK)[None, :]
    return tl.load(coefficient + tl.cast(index, tl.int64) * C.WIDTH + i, mask=mask, other=0.0)


@triton.jit
def times_vector(a, index, row_stride, column_stride, vectors, own, C: tl.constexpr):
    """One head's matrix, or its transpose, times stored vectors, a part of its columns at a time, (TASKS, BLOCK).

    The task's own matrix stays in registers meanwhile, and a second one of that size would not fit next to it.
    """
    PART: tl.constexpr = 16
    square = a + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES
    row = tl.arange(0, C.BLOCK)[None, :, None]
    total = tl.zeros((1, C.BLOCK), C.ACC)
    for first in range(0, C.FEATURES, PART):
        column = first + tl.arange(0, PART)
        part = tl.load(
            square + row * row_stride + column[None, None, :] * column_stride,
            mask=(row < C.FEATURES) & (column < C.FEATURES)[None, None, :],
            other=0.0,
        )
        m_vector = own.m_task & (column < C.FEATURES)[None, :]
        vector = tl.load(vectors + own.i_lane * C.WIDTH + column[None, :], mask=m_vector, other=0.0)
        total += inner(part, vector[:, None, :], 2)
    return total


@triton.jit
def first_state(t, own, C: tl.constexpr):
    """(0, 1) for a network, minus the first weights for a quadratic."""
    i = tl.arange(0, C.BLOCK)[None, :]
    state = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    if C.NETWORK:
        state += tl.where(i == C.FEATURES, 1.0, 0.0).to(C.ACC)
    if t.start is not None:
        state -= tl.load(t.start + own.i_task * C.WIDTH + i, mask=own.m_task & (i < C.WIDTH), other=0.0)
    return state


@triton.jit
def run_layers(t, tile, own, layers, kept, KEEP: tl.constexpr, C: tl.constexpr):
    """All layers from the first state; vectors go to scratch, with KEEP residuals and states too. The last state."""
    i = tl.arange(0, C.BLOCK)[None, :]
    m_vector = own.m_task & (i < C.WIDTH)
    m_feature = i < C.FEATURES
    slot = own.slot
    slots = slots_of(layers, kept)
    offset = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    if t.offset is not None:
        offset += tl.load(t.offset + own.i_task * C.WIDTH + i, mask=m_vector, other=0.0)
    state = first_state(t, own, C)
    for layer in range(layers):
        residual = tl.where(m_feature, offset + inner(tile, state[:, None, :], 2), 0.0)
        own_residual = own.memory + (slots.residuals + layer) * slot
        if KEEP or C.BLOCK > WHOLE_MATRIX:
            tl.store(own_residual + own.i_lane * C.WIDTH + i, residual, mask=m_vector)
            tl.debug_barrier()
            tl.store(own.vectors + (slots.states + layer) * slot, state, mask=m_vector)
        for head in range(kept):
            index = layer * kept + head
            if C.BLOCK <= WHOLE_MATRIX:
                register = inner(load_shared(t.a, index, C), residual[:, None, :], 2)
            else:
                register = times_vector(t.a, index, C.FEATURES, 1, own_residual, own, C)
            if t.beta is not None:
                decay = load_weight(t.beta, index, i < C.WIDTH, C)
                before = tl.load(own.vectors + (index - kept) * slot, mask=m_vector & (layer > 0), other=0.0)
                register += decay * before
            tl.store(own.vectors + index * slot, register, mask=m_vector)
            if C.RULE == 0:
                state += register
            else:
                i_own = index if C.RULE == 1 else (layer * layers + layer) * kept + head
                state += load_weight(t.gamma, i_own, m_feature, C) * register
            if C.RULE == 2:
                for past in range(layer):
                    weight = load_weight(t.gamma, (layer * layers + past) * kept + head, m_feature, C)
                    state += weight * tl.load(own.vectors + (past * kept + head) * slot, mask=m_vector, other=0.0)
        tl.debug_barrier()
    if KEEP:
        tl.store(own.vectors + (slots.states + layers) * slot, state, mask=m_vector)
    return state


@triton.jit
def predictions(rows, state, strides, i_query, queries, own, C: tl.constexpr):
    """Minus the response of the query tokens i_query (QUERIES,) at a state (TASKS, BLOCK)."""
    _, z_row, z_column = strides
    i = tl.arange(0, C.BLOCK)[None, None, :]
    m_token = own.m_task[:, :, None] & (i_query < queries)[None, :, None] & (i < C.WIDTH)
    tokens = tl.load(rows + i_query[None, :, None] * z_row + i * z_column, mask=m_token, other=0.0).to(C.ACC)
    return -inner(tokens, state[:, None, :], 2)


@triton.jit(do_not_specialize=["sizes", "kept", "results"])
def solve_kernel(t, out, scratch, strides, sizes, kept, results, scratch_size, C: tl.constexpr):
    """Predictions (outputs, B, queries) of a network, or the weights (outputs, B, d) of a quadratic.

    `outputs` is L for those after every layer, or 1 for the last. Tasks go to programs in blocks of TASKS.
    """
    z_strides = wide(strides)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    i_lane = tl.arange(0, C.TASKS)[:, None]
    i = tl.arange(0, C.BLOCK)[None, :]
    queries = results.queries
    for block in range(tl.program_id(0), tl.cdiv(sizes.batch, C.TASKS), tl.num_programs(0)):
        i_task = tl.cast(block, tl.int64) * C.TASKS + i_lane
        own = own_tasks(t, i_task, i_lane, memory, sizes, C)
        m_vector = own.m_task & (i < C.WIDTH)
        tile = task_matrix(t, z_strides, own, sizes.context, C)
        run_layers(t, tile, own, sizes.layers, kept, True, C)
        tl.debug_barrier()
        states = own.vectors + slots_of(sizes.layers, kept).states * own.slot
        for output in range(results.outputs):
            layer = sizes.layers - results.outputs + output + 1
            state = tl.load(states + layer * own.slot, mask=m_vector, other=0.0)
            o_output = tl.cast(output, tl.int64) * sizes.batch + i_task
            if C.NETWORK:
                rows = t.z + i_task[:, :, None] * z_strides[0] + (sizes.tokens - queries) * z_strides[1]
                for first in range(0, queries, C.QUERIES):
                    i_query = first + tl.arange(0, C.QUERIES)
                    values = predictions(rows, state, z_strides, i_query, queries, own, C)
                    m_query = own.m_task & (i_query < queries)[None, :]
                    tl.store(out + o_output * queries + i_query[None, :], values, mask=m_query)
            else:
                tl.store(out + o_output * C.WIDTH + i, -state, mask=m_vector)
        tl.debug_barrier()


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts, or h (B, d, d), b and start (B, d); a (L, R, d, d); coefficients in full.

    matrix: mean context Gram matrices (B, D, D), contiguous, which are not computed from z then.
    """

    a: Tensor
    rule: int
    gamma: Coefficient
    beta: Coefficient
    z: Tensor | None = None
    lengths: Tensor | None = None
    context: int = 0
    h: Tensor | None = None
    b: Tensor | None = None
    start: Tensor | None = None
    matrix: Tensor | None = None

    @property
    def tasks(self) -> Tensor:
        """What every task has of its own: z or h."""
        first = self.h if self.z is None else self.z
        assert first is not None
        return first

    @property
    def config(self) -> rules.Config:
        _, tokens, width = self.tasks.shape
        return rules.config(width, tokens, self.a.dtype, architecture(self.a.device))

    def task_matrix(self) -> Tensor | None:
        """The matrices that kernels are given: h, or Gram matrices that are given or that another kernel computes."""
        if self.z is None:
            return self.h
        if self.matrix is None and rules.gram_apart(self.z.shape[2]):
            total = gram(self.z, self.lengths, self.context)
            return total.div_(self.context if self.lengths is None else self.lengths[:, None, None])
        return self.matrix

    def arguments(self, queries: int, outputs: int) -> dict[str, Any]:
        """What both kernels are told."""
        batch, tokens, width = self.tasks.shape
        layers, kept, features, _ = self.a.shape
        config, matrix = self.config, self.task_matrix()
        gamma, beta = self.gamma.values, self.beta.values
        return {
            "t": Tensors(self.tasks, matrix, self.b, self.start, self.lengths, self.a, gamma, beta),
            "strides": (0, 0, 0) if self.z is None else self.z.stride(),
            "sizes": Sizes(batch, tokens, self.context, layers),
            "kept": kept,
            "results": Results(queries, outputs),
            "C": Constants(
                WIDTH=width,
                FEATURES=features,
                NETWORK=self.z is not None,
                TOKENS=matrix is None,
                RULE=self.rule,
                TASKS=config.tasks,
                LANES=config.tasks,
                BLOCK=config.block,
                QUERIES=QUERIES_AT_ONCE,
                CHUNK=config.chunk,
                ACC=triton_type(self.a.dtype),
                PRECISION=rules.precision(self.a.dtype),
            ),
            **config.options,
        }


def solve(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries) of a network, or weights (outputs, B, d) of a quadratic."""
    arguments = recurrence.arguments(queries, outputs)
    a, constants, batch = recurrence.a, arguments["C"], recurrence.tasks.shape[0]
    out = a.new_empty((outputs, batch, constants.WIDTH if recurrence.z is None else queries))
    size = slots_of.fn(*a.shape[:2]).register_grads * constants.LANES * constants.WIDTH
    programs, scratch = scratch_of(a, triton.cdiv(batch, constants.TASKS), size, arguments["num_warps"])
    if out.numel():
        launch(solve_kernel, programs, out=out, scratch=scratch, scratch_size=size, **arguments)
    return out
