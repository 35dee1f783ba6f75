"""Response-only networks on tokens, for tiny tasks: features X stay in registers, only the response column s moves.

    g_l = X^T s_l / n over the context;   r_{l,h} = X A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum gamma * r_j

A program owns TASKS tasks at a time for all layers: it reads their tokens once, N D numbers each, and makes 2 L N D
multiply-adds. Columns and vectors of a layer go to its scratch, which the caches hold.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.launch import launch, scratch_of, triton_type
from memformer_kernels.backends.triton.tiles import inner, load_counts, wide


class Tensors(NamedTuple):
    """z (B, N, D), lengths (B,) or None, a (L, R, d, d), and coefficients (.., N or 1, 1) of the responses or None."""

    z: Tensor
    lengths: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class Sizes(NamedTuple):
    """Tasks, tokens, longest context, layers, registers a layer, queries, layers that predict, first query."""

    batch: int
    tokens: int
    context: int
    layers: int
    kept: int
    queries: int
    outputs: int
    valid_from: int


class Constants(NamedTuple):
    """RULE: of gamma. TASKS: at a time. LANES: tasks of a partial sum. LOSS: the error comes from targets."""

    FEATURES: int
    LOSS: bool
    RULE: int
    GAMMA_TOKENS: bool
    BETA_TOKENS: bool
    TASKS: int
    LANES: int
    ROWS: int
    BLOCK: int
    ACC: tl.dtype


class Slots(NamedTuple):
    """Where in a program's scratch, in columns (TASKS, N), each kind of them begins, after the states s_0, ..., s_L.

    Vectors g_l (TASKS, d) follow: forward at `updates`, backward at `end`.
    """

    registers: Any
    updates: Any
    register_grads: Any
    end: Any


@triton.jit
def slots_of(layers, kept):
    """The one layout of scratch, of kernels and, as a plain function, of launches."""
    registers = layers + 1
    updates = registers + layers * kept
    register_grads = updates + layers
    return Slots(registers, updates, register_grads, register_grads + kept)


class Tasks(NamedTuple):
    """A program's tasks: which, whether they exist, their context lengths, rows, and which rows exist and are context.

    columns, vectors: in scratch. slot, vector: numbers of one.
    """

    i_task: Any
    m_task: Any
    count: Any
    i_row: Any
    m_row: Any
    m_context: Any
    columns: Any
    vectors: Any
    slot: Any
    vector: Any


@triton.jit
def own_tasks(t, i_task, memory, first_vector, sizes, C: tl.constexpr):
    """The tasks i_task (TASKS, 1), whose columns begin in `memory` and vectors after `first_vector` columns."""
    lane = tl.arange(0, C.TASKS)[:, None]
    i_row = tl.arange(0, C.ROWS)[None, :]
    i = tl.arange(0, C.BLOCK)[None, :]
    slot = tl.cast(C.TASKS * sizes.tokens, tl.int64)
    columns = memory + lane * sizes.tokens + i_row
    vectors = memory + first_vector * slot + lane * C.FEATURES + i
    m_task = i_task < sizes.batch
    count = load_counts(t.lengths, i_task, sizes.context, m_task)
    vector = tl.cast(C.TASKS * C.FEATURES, tl.int64)
    m_row = m_task & (i_row < sizes.tokens)
    return Tasks(i_task, m_task, count, i_row, m_row, i_row < count, columns, vectors, slot, vector)


@triton.jit
def load_tokens(z, strides, own, sizes, C: tl.constexpr):
    """Features (TASKS, ROWS, BLOCK) and responses (TASKS, ROWS); padding is zero by selection."""
    z_task, z_row, z_column = strides
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    m_read = own.m_row & (own.m_context | (own.i_row >= sizes.valid_from))
    p_row = z + own.i_task * z_task + own.i_row * z_row
    m_feature = m_read[:, :, None] & (i_column < C.FEATURES)
    x = tl.load(p_row[:, :, None] + i_column * z_column, mask=m_feature, other=0.0).to(C.ACC)
    return x, tl.load(p_row + C.FEATURES * z_column, mask=m_read, other=0.0).to(C.ACC)


@triton.jit
def load_weight(coefficient, index, i_row, tokens, TOKENS: tl.constexpr):
    """One entry of a coefficient's response column, (1, ROWS) or a scalar."""
    if TOKENS:
        p_weight = coefficient + tl.cast(index, tl.int64) * tokens + i_row
        values = tl.load(p_weight, mask=i_row < tokens, other=0.0)
    else:
        values = tl.load(coefficient + index)
    return values


@triton.jit
def shared_matrix(a, index, C: tl.constexpr):
    """One head's matrix (1, BLOCK, BLOCK)."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    p_entry = a + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES + i * C.FEATURES + j
    return tl.load(p_entry, mask=(i < C.FEATURES) & (j < C.FEATURES), other=0.0)


@triton.jit
def run_layers(t, x, s, own, sizes, C: tl.constexpr):
    """All layers from responses s: states, registers and vectors go to scratch. Returns the last responses."""
    layers = sizes.layers
    kept = sizes.kept
    tokens = sizes.tokens
    i_row = own.i_row
    slot = own.slot
    m_vector = own.m_task & (tl.arange(0, C.BLOCK)[None, :] < C.FEATURES)
    registers = own.columns + slots_of(layers, kept).registers * slot
    tl.store(own.columns, s, mask=own.m_row)
    for layer in range(layers):
        g = inner(x, tl.where(own.m_context, s, 0.0)[:, :, None], 1) / own.count.to(C.ACC)
        tl.store(own.vectors + layer * own.vector, g, mask=m_vector)
        for head in range(kept):
            index = layer * kept + head
            v = inner(shared_matrix(t.a, index, C), g[:, None, :], 2)
            register = inner(x, v[:, None, :], 2)
            if t.beta is not None:
                before = tl.load(registers + (index - kept) * slot, mask=own.m_row & (layer > 0), other=0.0)
                register += load_weight(t.beta, index, i_row, tokens, C.BETA_TOKENS) * before
            tl.store(registers + index * slot, register, mask=own.m_row)
            if C.RULE == 0:
                s += register
            else:
                i_own = index if C.RULE == 1 else (layer * layers + layer) * kept + head
                s += load_weight(t.gamma, i_own, i_row, tokens, C.GAMMA_TOKENS) * register
            if C.RULE == 2:
                for past in range(layer):
                    i_past = (layer * layers + past) * kept + head
                    earlier = tl.load(registers + (past * kept + head) * slot, mask=own.m_row, other=0.0)
                    s += load_weight(t.gamma, i_past, i_row, tokens, C.GAMMA_TOKENS) * earlier
        tl.store(own.columns + (layer + 1) * slot, s, mask=own.m_row)
        tl.debug_barrier()
    return s


@triton.jit(do_not_specialize=["sizes"])
def columns_kernel(t, out, scratch, strides, sizes, scratch_size, C: tl.constexpr):
    """Minus the responses (outputs, B, queries) of the last tokens, after every layer where `outputs` is L."""
    z_strides = wide(strides)
    lane = tl.arange(0, C.TASKS)[:, None]
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    for block in range(tl.program_id(0), tl.cdiv(sizes.batch, C.TASKS), tl.num_programs(0)):
        i_task = tl.cast(block, tl.int64) * C.TASKS + lane
        own = own_tasks(t, i_task, memory, slots_of(sizes.layers, sizes.kept).updates, sizes, C)
        x, s = load_tokens(t.z, z_strides, own, sizes, C)
        run_layers(t, x, s, own, sizes, C)
        first = sizes.tokens - sizes.queries
        m_query = own.m_task & (own.i_row >= first) & (own.i_row < sizes.tokens)
        for output in range(sizes.outputs):
            p_state = own.columns + (sizes.layers - sizes.outputs + output + 1) * own.slot
            values = tl.load(p_state, mask=m_query, other=0.0)
            o_out = (tl.cast(output, tl.int64) * sizes.batch + i_task) * sizes.queries + own.i_row - first
            tl.store(out + o_out, -values, mask=m_query)
        tl.debug_barrier()


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts, a (L, R, d, d), and coefficients in full with one column, the response's."""

    z: Tensor
    lengths: Tensor | None
    context: int
    a: Tensor
    rule: int
    gamma: Coefficient
    beta: Coefficient
    config: rules.Config

    def scratch_size(self, backward: bool) -> int:
        """Numbers of a program's scratch."""
        layers, kept, features, _ = self.a.shape
        slots = slots_of.fn(layers, kept)
        columns = slots.end if backward else slots.updates
        return self.config.tasks * int(columns * self.z.shape[1] + layers * features)

    def arguments(self, queries: int, outputs: int, loss: bool) -> dict[str, Any]:
        """What both kernels are told."""
        batch, tokens, _ = self.z.shape
        layers, kept, features, _ = self.a.shape
        config = self.config
        return {
            "t": Tensors(self.z, self.lengths, self.a, self.gamma.values, self.beta.values),
            "strides": self.z.stride(),
            "sizes": Sizes(batch, tokens, self.context, layers, kept, queries, outputs, tokens - queries),
            "C": Constants(
                FEATURES=features,
                LOSS=loss,
                RULE=self.rule,
                GAMMA_TOKENS=self.gamma.has_tokens,
                BETA_TOKENS=self.beta.has_tokens,
                TASKS=config.tasks,
                LANES=config.lanes,
                ROWS=config.rows,
                BLOCK=config.block,
                ACC=triton_type(self.a.dtype),
            ),
            **config.options,
        }


def predictions(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries), after every layer where `outputs` is L."""
    a, batch = recurrence.a, recurrence.z.shape[0]
    out = a.new_empty((outputs, batch, queries))
    size = recurrence.scratch_size(backward=False)
    programs, scratch = scratch_of(a, triton.cdiv(batch, recurrence.config.tasks), size)
    if out.numel():
        shared = recurrence.arguments(queries, outputs, loss=False)
        launch(columns_kernel, programs, out=out, scratch=scratch, scratch_size=size, **shared)
    return out
