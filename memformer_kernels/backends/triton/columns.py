"""Response-only networks on tokens: features X stay, only the response column s moves.

    g_l = X^T s_l / n over the context;   r_{l,h} = X A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum gamma * r_j

A program owns TASKS tasks at a time for all layers and makes 2 L N D multiply-adds each. Tokens of tiny tasks are read
once and kept in registers; others pass through them in tiles of ROWS, once a layer, from the caches where those hold a
task. Columns and vectors of a layer go to the program's scratch, which the caches hold.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.launch import architecture, launch, scratch_of, strides_of, triton_type
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

    batch: Any
    tokens: Any
    context: Any
    layers: Any
    kept: Any
    queries: Any
    outputs: Any
    valid_from: Any


class Constants(NamedTuple):
    """RULE: of gamma. TASKS, ROWS: at a time. WHOLE: ROWS are all of a task, and kept. LOSS: from targets.

    LINE: rows at a time of columns alone.
    """

    FEATURES: int
    LOSS: bool
    RULE: int
    GAMMA_TOKENS: bool
    BETA_TOKENS: bool
    TASKS: int
    ROWS: int
    BLOCK: int
    WHOLE: bool
    LINE: int
    ACC: tl.dtype


class Slots(NamedTuple):
    """Where in a program's scratch each kind begins: columns (TASKS, N), then vectors (TASKS, d).

    Columns: states s_0, ..., s_L, registers (L, R); of the backward gradients of states (L) and of registers (L, R).
    Vectors, counted from `vectors` on: sums g_l (L) and products A g_l (L, R); of the backward gradients of sums (L).
    """

    registers: Any
    updates: Any
    register_grads: Any
    vectors: Any
    products: Any
    sum_grads: Any
    end: Any


@triton.jit
def slots_of(layers, kept, BACKWARD: tl.constexpr):
    """The one layout of scratch, of kernels and, as a plain function, of launches."""
    registers = layers + 1
    updates = registers + layers * kept
    register_grads = updates + layers if BACKWARD else updates
    vectors = register_grads + layers * kept if BACKWARD else updates
    products = layers
    sum_grads = products + layers * kept
    return Slots(
        registers, updates, register_grads, vectors, products, sum_grads, sum_grads + layers if BACKWARD else sum_grads
    )


class Tasks(NamedTuple):
    """A program's tasks: which, whether they exist, their context lengths, and where their scratch is.

    columns, vectors: in scratch. slot, vector: numbers of one.
    """

    i_task: Any
    m_task: Any
    count: Any
    columns: Any
    vectors: Any
    m_vector: Any
    slot: Any
    vector: Any


class Rows(NamedTuple):
    """Some of the tasks' rows: which, where in a column, which exist, which are context and which are not padding."""

    i_row: Any
    p_row: Any
    m_row: Any
    m_context: Any
    m_read: Any


@triton.jit
def own_tasks(t, i_task, memory, first_vector, sizes, C: tl.constexpr):
    """The tasks i_task (TASKS, 1), whose columns begin in `memory` and vectors after `first_vector` columns."""
    lane = tl.arange(0, C.TASKS)[:, None]
    i = tl.arange(0, C.BLOCK)[None, :]
    slot = tl.cast(C.TASKS * sizes.tokens, tl.int64)
    columns = memory + lane * sizes.tokens
    vectors = memory + first_vector * slot + lane * C.FEATURES + i
    m_task = i_task < sizes.batch
    count = load_counts(t.lengths, i_task, sizes.context, m_task)
    vector = tl.cast(C.TASKS * C.FEATURES, tl.int64)
    return Tasks(i_task, m_task, count, columns, vectors, m_task & (i < C.FEATURES), slot, vector)


@triton.jit
def rows_from(first, own, sizes, ROWS: tl.constexpr):
    """The tasks' rows from `first` on."""
    i_row = first + tl.arange(0, ROWS)[None, :]
    m_row = own.m_task & (i_row < sizes.tokens)
    m_context = m_row & (i_row < own.count)
    return Rows(i_row, own.columns + i_row, m_row, m_context, m_context | (m_row & (i_row >= sizes.valid_from)))


@triton.jit
def load_features(z, strides, rows, own, C: tl.constexpr):
    """Features (TASKS, ROWS, BLOCK) of rows; padding is zero by selection."""
    z_task, z_row, z_column = strides
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    p_row = z + own.i_task * z_task + rows.i_row * z_row
    m_feature = rows.m_read[:, :, None] & (i_column < C.FEATURES)
    return tl.load(p_row[:, :, None] + i_column * z_column, mask=m_feature, other=0.0).to(C.ACC)


@triton.jit
def whole_features(z, strides, own, sizes, C: tl.constexpr):
    """All features, where a program's registers hold them, or nothing."""
    return load_features(z, strides, rows_from(0, own, sizes, C.ROWS), own, C) if C.WHOLE else 0


@triton.jit
def features(whole, z, strides, rows, own, C: tl.constexpr):
    """Features of rows: what registers hold, or loaded."""
    return whole if C.WHOLE else load_features(z, strides, rows, own, C)


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
def first_responses(t, whole, strides, own, sizes, C: tl.constexpr):
    """Stores the responses s_0; what their features bring to g_0, (TASKS, ROWS, BLOCK), to be summed over its rows."""
    z_task, z_row, z_column = strides
    brought = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
    for first in range(0, sizes.tokens, C.ROWS):
        rows = rows_from(first, own, sizes, C.ROWS)
        p_response = t.z + own.i_task * z_task + rows.i_row * z_row + C.FEATURES * z_column
        s = tl.load(p_response, mask=rows.m_read, other=0.0).to(C.ACC)
        tl.store(rows.p_row, s, mask=rows.m_row)
        x = features(whole, t.z, strides, rows, own, C)
        brought += x * tl.where(rows.m_context, s, 0.0)[:, :, None]
    return brought


@triton.jit
def next_responses(t, x, layer, rows, own, sizes, slots, C: tl.constexpr):
    """s_{l+1} at some rows, from s_l and the layer's registers, which are stored."""
    layers = sizes.layers
    kept = sizes.kept
    registers = rows.p_row + slots.registers * own.slot
    s = tl.load(rows.p_row + layer * own.slot, mask=rows.m_row, other=0.0)
    for head in range(kept):
        index = layer * kept + head
        v = tl.load(own.vectors + (slots.products + index) * own.vector, mask=own.m_vector, other=0.0)
        register = inner(x, v[:, None, :], 2)
        if t.beta is not None:
            before = tl.load(registers + (index - kept) * own.slot, mask=rows.m_row & (layer > 0), other=0.0)
            register += load_weight(t.beta, index, rows.i_row, sizes.tokens, C.BETA_TOKENS) * before
        tl.store(registers + index * own.slot, register, mask=rows.m_row)
        if C.RULE == 0:
            s += register
        else:
            i_own = index if C.RULE == 1 else (layer * layers + layer) * kept + head
            s += load_weight(t.gamma, i_own, rows.i_row, sizes.tokens, C.GAMMA_TOKENS) * register
        if C.RULE == 2:
            for past in range(layer):
                i_past = (layer * layers + past) * kept + head
                earlier = tl.load(registers + (past * kept + head) * own.slot, mask=rows.m_row, other=0.0)
                s += load_weight(t.gamma, i_past, rows.i_row, sizes.tokens, C.GAMMA_TOKENS) * earlier
    tl.store(rows.p_row + (layer + 1) * own.slot, s, mask=rows.m_row)
    return s


@triton.jit
def run_layers(t, whole, strides, own, sizes, slots, C: tl.constexpr):
    """All layers: states, registers and vectors go to scratch. A layer passes over the tokens once.

    What g_{l+1} needs of s_{l+1} is summed while that is made.
    """
    kept = sizes.kept
    brought = first_responses(t, whole, strides, own, sizes, C)
    for layer in range(sizes.layers):
        g = tl.sum(brought, 1) / own.count.to(C.ACC)
        tl.store(own.vectors + layer * own.vector, g, mask=own.m_vector)
        for head in range(kept):
            index = layer * kept + head
            v = inner(shared_matrix(t.a, index, C), g[:, None, :], 2)
            tl.store(own.vectors + (slots.products + index) * own.vector, v, mask=own.m_vector)
        tl.debug_barrier()
        brought = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
        for first in range(0, sizes.tokens, C.ROWS):
            rows = rows_from(first, own, sizes, C.ROWS)
            x = features(whole, t.z, strides, rows, own, C)
            s = next_responses(t, x, layer, rows, own, sizes, slots, C)
            brought += x * tl.where(rows.m_context, s, 0.0)[:, :, None]
        tl.debug_barrier()


@triton.jit
def sizes_of(batch, tokens, context, layers, kept, queries, outputs):
    """All sizes of a call; they come to a kernel one by one, since Triton compiles for what it finds in tuples."""
    return Sizes(batch, tokens, context, layers, kept, queries, outputs, tokens - queries)


@triton.jit(do_not_specialize=["batch", "tokens", "context", "layers", "kept", "queries", "outputs"])
def columns_kernel(
    t,
    out,
    scratch,
    strides,
    batch,
    tokens,
    context,
    layers,
    kept,
    queries,
    outputs,
    scratch_size,
    C: tl.constexpr,
):
    """Minus the responses (outputs, B, queries) of the last tokens, after every layer where `outputs` is L."""
    sizes = sizes_of(batch, tokens, context, layers, kept, queries, outputs)
    z_strides = wide(strides)
    lane = tl.arange(0, C.TASKS)[:, None]
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    slots = slots_of(sizes.layers, sizes.kept, False)
    for block in range(tl.program_id(0), tl.cdiv(sizes.batch, C.TASKS), tl.num_programs(0)):
        i_task = tl.cast(block, tl.int64) * C.TASKS + lane
        own = own_tasks(t, i_task, memory, slots.vectors, sizes, C)
        whole = whole_features(t.z, z_strides, own, sizes, C)
        run_layers(t, whole, z_strides, own, sizes, slots, C)
        begin = sizes.tokens - sizes.queries
        for first in range(begin, sizes.tokens, C.LINE):
            rows = rows_from(first, own, sizes, C.LINE)
            for output in range(sizes.outputs):
                p_state = rows.p_row + (sizes.layers - sizes.outputs + output + 1) * own.slot
                values = tl.load(p_state, mask=rows.m_row, other=0.0)
                o_out = (tl.cast(output, tl.int64) * sizes.batch + i_task) * sizes.queries + rows.i_row - begin
                tl.store(out + o_out, -values, mask=rows.m_row)
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
        slots = slots_of.fn(layers, kept, backward)
        return self.config.tasks * int(slots.vectors * self.z.shape[1] + slots.end * features)

    def arguments(self, queries: int, outputs: int, loss: bool) -> dict[str, Any]:
        """What both kernels are told."""
        batch, tokens, _ = self.z.shape
        layers, kept, features, _ = self.a.shape
        config = self.config
        return {
            "t": Tensors(self.z, self.lengths, self.a, self.gamma.values, self.beta.values),
            "strides": strides_of(self.z),
            "batch": batch,
            "tokens": tokens,
            "context": self.context,
            "layers": layers,
            "kept": kept,
            "queries": queries,
            "outputs": outputs,
            "C": Constants(
                FEATURES=features,
                LOSS=loss,
                RULE=self.rule,
                GAMMA_TOKENS=self.gamma.has_tokens,
                BETA_TOKENS=self.beta.has_tokens,
                TASKS=config.tasks,
                ROWS=config.rows,
                BLOCK=config.block,
                WHOLE=rules.keeps_features(tokens, config.rows, architecture(self.a.device)),
                LINE=rules.line(tokens),
                ACC=triton_type(self.a.dtype),
            ),
            **config.options,
        }


def predictions(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries), after every layer where `outputs` is L."""
    a, batch = recurrence.a, recurrence.z.shape[0]
    out = a.new_empty((outputs, batch, queries))
    size = recurrence.scratch_size(backward=False)
    config = recurrence.config
    programs, scratch = scratch_of(a, triton.cdiv(batch, config.tasks), size, config.warps)
    if out.numel():
        shared = recurrence.arguments(queries, outputs, loss=False)
        launch(columns_kernel, programs, out=out, scratch=scratch, scratch_size=size, **shared)
    return out
