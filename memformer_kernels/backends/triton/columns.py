"""Response-only networks on tokens, for tiny tasks: features X stay in registers, only the response column s moves.

    g_l = X^T s_l / n over the context;   r_{l,h} = X A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum gamma * r_j
    backward, with u_l the gradient of s_{l+1}:   r'_l = sum_{l'>=l} gamma_{l',l} * u_{l'} + beta_{l+1} * r'_{l+1}
    v' = X^T r'_l;   A' = v' g^T;   g' = A^T v';   u_{l-1} = u_l + X g' / n;   X' = s g'^T / n + r' (A g)^T

A program owns TASKS tasks at a time for all layers: it reads their tokens once, N D numbers each, and makes 2 L N D
multiply-adds forward and twice as many backward. Columns and vectors of a layer go to its scratch, which the caches
hold. Backward it owns LANES consecutive tasks and adds up parameter gradients in its own partial sum.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.launch import launch, scratch_of, triton_type
from memformer_kernels.backends.triton.sums import Partials
from memformer_kernels.backends.triton.tiles import add_to, inner, load_counts, wide


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
def add_to_weight(into, index, left, right, i_row, tokens, TOKENS: tl.constexpr):
    """Adds left * right to a coefficient's gradient, summed over tasks and, without a token axis, over tokens."""
    total = inner(left, right, 0, keep_dims=True)
    if TOKENS:
        add_to(into + tl.cast(index, tl.int64) * tokens + i_row, total, i_row < tokens)
    else:
        add_to(into + index, tl.sum(tl.sum(total, 1), 0), index >= 0)


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


@triton.jit
def register_gradient(t, grad, register, layer, head, own, sizes, gammas, betas, C: tl.constexpr):
    """r'_l, and what its register brings to the gradients of gamma and beta."""
    layers = sizes.layers
    kept = sizes.kept
    tokens = sizes.tokens
    i_row = own.i_row
    index = layer * kept + head
    slots = slots_of(layers, kept)
    updates = own.columns + slots.updates * own.slot
    register_grads = own.columns + slots.register_grads * own.slot
    if C.RULE == 0:
        register_grad = grad
    else:
        i_weight = index if C.RULE == 1 else (layer * layers + layer) * kept + head
        register_grad = grad * load_weight(t.gamma, i_weight, i_row, tokens, C.GAMMA_TOKENS)
        add_to_weight(gammas, i_weight, register, grad, i_row, tokens, C.GAMMA_TOKENS)
    if C.RULE == 2:
        for later in range(layer + 1, layers):
            i_weight = (later * layers + layer) * kept + head
            update = tl.load(updates + later * own.slot, mask=own.m_row, other=0.0)
            register_grad += update * load_weight(t.gamma, i_weight, i_row, tokens, C.GAMMA_TOKENS)
            add_to_weight(gammas, i_weight, register, update, i_row, tokens, C.GAMMA_TOKENS)
    if t.beta is not None:
        if layer < layers - 1:
            carried = tl.load(register_grads + head * own.slot, mask=own.m_row, other=0.0)
            register_grad += carried * load_weight(t.beta, index + kept, i_row, tokens, C.BETA_TOKENS)
            add_to_weight(betas, index + kept, register, carried, i_row, tokens, C.BETA_TOKENS)
        tl.store(register_grads + head * own.slot, register_grad, mask=own.m_row)
    return register_grad


@triton.jit
def run_layers_back(t, x, error, own, sizes, partial, NEED_Z: tl.constexpr, C: tl.constexpr):
    """All layers back: gradients of features, where NEED_Z, and of responses; those of parameters join `partial`."""
    layers = sizes.layers
    kept = sizes.kept
    weights = tl.cast(layers * kept, tl.int64)
    gamma_rows = sizes.tokens if C.GAMMA_TOKENS else 1
    gammas = partial + weights * C.FEATURES * C.FEATURES
    betas = gammas
    if C.RULE == 1:
        betas = gammas + weights * gamma_rows
    if C.RULE == 2:
        betas = gammas + layers * weights * gamma_rows
    i = tl.arange(0, C.BLOCK)[None, :]
    row = tl.arange(0, C.BLOCK)[None, :, None]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    first = sizes.tokens - sizes.queries
    m_query = own.m_row & (own.i_row >= first)
    registers = own.columns + slots_of(layers, kept).registers * own.slot
    updates = own.columns + slots_of(layers, kept).updates * own.slot
    grad = tl.zeros((C.TASKS, C.ROWS), C.ACC)
    x_grad = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
    for back in range(layers):
        layer = layers - 1 - back
        if back < sizes.outputs:
            output = tl.cast(sizes.outputs - 1 - back, tl.int64)
            o_error = (output * sizes.batch + own.i_task) * sizes.queries + own.i_row - first
            grad -= tl.load(error + o_error, mask=m_query, other=0.0).to(C.ACC)
        tl.store(updates + layer * own.slot, grad, mask=own.m_row)
        g = tl.load(own.vectors + layer * own.vector, mask=own.m_task & (i < C.FEATURES), other=0.0)
        g_grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
        for head in range(kept):
            index = layer * kept + head
            register = tl.load(registers + index * own.slot, mask=own.m_row, other=0.0)
            register_grad = register_gradient(t, grad, register, layer, head, own, sizes, gammas, betas, C)
            a_tile = shared_matrix(t.a, index, C)
            v_grad = inner(x, register_grad[:, :, None], 1)
            outer = inner(v_grad[:, :, None], g[:, None, :], 0, keep_dims=True)
            p_square = partial + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES + (row * C.FEATURES + column)
            add_to(p_square, outer, (row < C.FEATURES) & (column < C.FEATURES))
            g_grad += inner(a_tile, v_grad[:, :, None], 1)
            if NEED_Z:
                v = inner(a_tile, g[:, None, :], 2)
                x_grad += register_grad[:, :, None] * v[:, None, :]
        g_grad = g_grad / own.count.to(C.ACC)
        if NEED_Z:
            state = tl.load(own.columns + layer * own.slot, mask=own.m_row & own.m_context, other=0.0)
            x_grad += state[:, :, None] * g_grad[:, None, :]
        grad += tl.where(own.m_context, inner(x, g_grad[:, None, :], 2), 0.0)
        tl.debug_barrier()
    return x_grad, grad


@triton.jit(do_not_specialize=["sizes", "predicted"])
def columns_backward_kernel(
    t, error, target, z_grad, partials, scratch, strides, sizes, scratch_size, partial_size, predicted, C: tl.constexpr
):
    """Gradients from those of the predictions, `error` (outputs, B, queries), or of the squared errors to `target`.

    A partial sum holds the gradients of a, gamma, beta and, for the loss, the sum of squares; `error` (1, B, queries)
    then receives 2 (prediction - target) / predicted. z_grad (B, N, D) is written where it is given.
    """
    z_strides = wide(strides)
    lane = tl.arange(0, C.TASKS)[:, None]
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    first = sizes.tokens - sizes.queries
    for chunk in range(tl.program_id(0), tl.cdiv(sizes.batch, C.LANES), tl.num_programs(0)):
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        first_task = tl.cast(chunk, tl.int64) * C.LANES
        squares = tl.zeros((C.TASKS, 1), C.ACC)
        for step in range(tl.cdiv(tl.minimum(sizes.batch - first_task, C.LANES).to(tl.int32), C.TASKS)):
            i_task = first_task + step * C.TASKS + lane
            own = own_tasks(t, i_task, memory, slots_of(sizes.layers, sizes.kept).end, sizes, C)
            x, s = load_tokens(t.z, z_strides, own, sizes, C)
            s = run_layers(t, x, s, own, sizes, C)
            if C.LOSS:
                m_query = own.m_row & (own.i_row >= first)
                o_error = i_task * sizes.queries + own.i_row - first
                wanted = tl.load(target + o_error, mask=m_query, other=0.0).to(C.ACC)
                difference = tl.where(m_query, -s - wanted, 0.0)
                squares += inner(difference, difference, 1, keep_dims=True)
                tl.store(error + o_error, 2 * difference / tl.cast(predicted, C.ACC), mask=m_query)
                tl.debug_barrier()
            x_grad, grad = run_layers_back(t, x, error, own, sizes, partial, z_grad is not None, C)
            if z_grad is not None:
                m_read = own.m_context | (own.i_row >= sizes.valid_from)
                p_row = z_grad + (i_task * sizes.tokens + own.i_row) * (C.FEATURES + 1)
                i_column = tl.arange(0, C.BLOCK)[None, None, :]
                m_feature = own.m_row[:, :, None] & (i_column < C.FEATURES)
                tl.store(p_row[:, :, None] + i_column, tl.where(m_read[:, :, None], x_grad, 0.0), mask=m_feature)
                tl.store(p_row + C.FEATURES, tl.where(m_read, grad, 0.0), mask=own.m_row)
            tl.debug_barrier()
        if C.LOSS:
            tl.store(partial + partial_size - 1, tl.sum(tl.sum(squares, 1), 0))


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


class Gradients(NamedTuple):
    """Of z, a, gamma and beta, in their arguments' shapes; the sum of squared errors."""

    z: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


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


def predictions_backward(
    recurrence: Recurrence,
    error: Tensor | None,
    target: Tensor | None,
    queries: int,
    outputs: int,
    need_z: bool,
    z_dtype: torch.dtype,
) -> tuple[Gradients, Tensor]:
    """Gradients from those of the predictions, `error`, or of the mean squared error to `target`.

    Returns the gradient of the predictions too, which for a loss is computed here.
    """
    z, a, gamma, beta = recurrence.z, recurrence.a, recurrence.gamma, recurrence.beta
    batch = z.shape[0]
    if error is None:
        error = a.new_empty((1, batch, queries))
    z_grad = z.new_empty(z.shape, dtype=z_dtype) if need_z else None
    partials = Partials(a, batch, recurrence.config.lanes, [a.numel(), gamma.numbers, beta.numbers, 1])
    size = recurrence.scratch_size(backward=True)
    programs, scratch = scratch_of(a, partials.chunks, size)
    if batch:
        launch(
            columns_backward_kernel,
            programs,
            error=error,
            target=target,
            z_grad=z_grad,
            partials=partials.values,
            scratch=scratch,
            scratch_size=size,
            partial_size=partials.size,
            predicted=max(error.numel(), 1),
            **recurrence.arguments(queries, outputs, target is not None),
        )
    a_grad, gamma_grad, beta_grad, squares = partials.totals()
    gradients = Gradients(
        z_grad, a_grad.view(a.shape), gamma.gradient(gamma_grad), beta.gradient(beta_grad), squares[0]
    )
    return gradients, error
