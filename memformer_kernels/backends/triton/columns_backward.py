"""The backward of `columns`, and the fused loss: forward, error and backward of a task in one launch.

With u_l the gradient of s_{l+1}:

    r'_l = sum_{l'>=l} gamma_{l',l} * u_{l'} + beta_{l+1} * r'_{l+1};   v' = X^T r'_l;   A' = v' g^T;   g' = A^T v'
    u_{l-1} = u_l + X g' / n;   X' = s g'^T / n + r' (A g)^T

A program owns chunks of consecutive tasks, TASKS at a time, with 4 L N D multiply-adds each after the forward's, and
adds up parameter gradients in the chunk's own partial sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.columns import (
    Recurrence,
    features,
    load_weight,
    own_tasks,
    rows_from,
    run_layers,
    shared_matrix,
    sizes_of,
    slots_of,
    whole_features,
)
from memformer_kernels.backends.triton.launch import launch, scratch_of, tasks_a_sum
from memformer_kernels.backends.triton.sums import STEPS_A_SUM, Partials, move_sum, own_row, running_numbers, sums_apart
from memformer_kernels.backends.triton.tiles import add_to, inner, wide


@triton.jit
def add_to_weight(into, index, left, right, own, sizes, TOKENS: tl.constexpr, C: tl.constexpr):
    """Adds products of two columns to a coefficient's gradient: sums over tasks and, without a token axis, tokens."""
    brought = tl.zeros((C.TASKS, C.LINE), C.ACC)
    for first in range(0, sizes.tokens, C.LINE):
        rows = rows_from(first, own, sizes, C.LINE)
        a = tl.load(left + rows.i_row, mask=rows.m_row, other=0.0)
        b = tl.load(right + rows.i_row, mask=rows.m_row, other=0.0)
        if TOKENS:
            p_weight = into + tl.cast(index, tl.int64) * sizes.tokens + rows.i_row
            add_to(p_weight, inner(a, b, 0, keep_dims=True), rows.i_row < sizes.tokens)
        else:
            brought += a * b
    if not TOKENS:
        add_to(into + index, tl.sum(tl.sum(brought, 1), 0), index >= 0)


@triton.jit
def add_coefficient_gradients(t, own, sizes, slots, partial, C: tl.constexpr):
    """What every register brings to the gradients of gamma, and of the beta that carries it on."""
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
    registers = own.columns + slots.registers * own.slot
    updates = own.columns + slots.updates * own.slot
    register_grads = own.columns + slots.register_grads * own.slot
    for layer in range(layers):
        for head in range(kept):
            index = layer * kept + head
            register = registers + index * own.slot
            if C.RULE == 1:
                add_to_weight(gammas, index, register, updates + layer * own.slot, own, sizes, C.GAMMA_TOKENS, C)
            if C.RULE == 2:
                for later in range(layer, layers):
                    i_weight = (later * layers + layer) * kept + head
                    update = updates + later * own.slot
                    add_to_weight(gammas, i_weight, register, update, own, sizes, C.GAMMA_TOKENS, C)
    if t.beta is not None:
        for index in range(kept, layers * kept):
            register = registers + (index - kept) * own.slot
            carried = register_grads + index * own.slot
            add_to_weight(betas, index, register, carried, own, sizes, C.BETA_TOKENS, C)


@triton.jit
def response_gradient(error, x, layer, sum_grad, rows, own, sizes, slots, C: tl.constexpr):
    """The gradient of s_{l+1} at some rows: that of s_{l+2}, what its sum brings, and what its predictions bring."""
    back = sizes.layers - 1 - layer
    p_update = rows.p_row + (slots.updates + layer) * own.slot
    grad = tl.load(p_update + own.slot, mask=rows.m_row & (back > 0), other=0.0)
    grad += tl.where(rows.m_context, inner(x, sum_grad[:, None, :], 2), 0.0)
    first = sizes.tokens - sizes.queries
    m_query = rows.m_row & (rows.i_row >= first) & (back < sizes.outputs)
    output = tl.cast(sizes.outputs - 1 - back, tl.int64)
    o_error = (output * sizes.batch + own.i_task) * sizes.queries + rows.i_row - first
    return grad - tl.load(error + o_error, mask=m_query, other=0.0).to(C.ACC)


@triton.jit
def register_gradient(t, grad, layer, head, rows, own, sizes, slots, C: tl.constexpr):
    """r'_l at some rows, stored."""
    layers = sizes.layers
    kept = sizes.kept
    index = layer * kept + head
    updates = rows.p_row + slots.updates * own.slot
    register_grads = rows.p_row + slots.register_grads * own.slot
    if C.RULE == 0:
        register_grad = grad
    else:
        i_weight = index if C.RULE == 1 else (layer * layers + layer) * kept + head
        register_grad = grad * load_weight(t.gamma, i_weight, rows.i_row, sizes.tokens, C.GAMMA_TOKENS)
    if C.RULE == 2:
        for later in range(layer + 1, layers):
            i_weight = (later * layers + layer) * kept + head
            update = tl.load(updates + later * own.slot, mask=rows.m_row, other=0.0)
            register_grad += update * load_weight(t.gamma, i_weight, rows.i_row, sizes.tokens, C.GAMMA_TOKENS)
    if t.beta is not None:
        m_later = rows.m_row & (layer < layers - 1)
        i_later = tl.minimum(layer + 1, layers - 1) * kept + head
        carried = tl.load(register_grads + i_later * own.slot, mask=m_later, other=0.0)
        register_grad += carried * load_weight(t.beta, i_later, rows.i_row, sizes.tokens, C.BETA_TOKENS)
    tl.store(register_grads + index * own.slot, register_grad, mask=rows.m_row)
    return register_grad


@triton.jit
def run_layers_back(t, whole, error, strides, own, sizes, slots, partial, C: tl.constexpr):
    """All layers back: gradients of states, registers and sums go to scratch, those of `a` join `partial`.

    A layer passes over the tokens once for each of its registers. Returns the gradient of the first sum.
    """
    kept = sizes.kept
    row = tl.arange(0, C.BLOCK)[None, :, None]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    sum_grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    for back in range(sizes.layers):
        layer = sizes.layers - 1 - back
        g = tl.load(own.vectors + layer * own.vector, mask=own.m_vector, other=0.0)
        next_sum_grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
        for head in range(kept):
            index = layer * kept + head
            brought = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
            for first in range(0, sizes.tokens, C.ROWS):
                rows = rows_from(first, own, sizes, C.ROWS)
                x = features(whole, t.z, strides, rows, own, C)
                p_update = rows.p_row + (slots.updates + layer) * own.slot
                if head == 0:
                    grad = response_gradient(error, x, layer, sum_grad, rows, own, sizes, slots, C)
                    tl.store(p_update, grad, mask=rows.m_row)
                else:
                    grad = tl.load(p_update, mask=rows.m_row, other=0.0)
                register_grad = register_gradient(t, grad, layer, head, rows, own, sizes, slots, C)
                brought += x * register_grad[:, :, None]
            v_grad = tl.sum(brought, 1)
            outer = inner(v_grad[:, :, None], g[:, None, :], 0, keep_dims=True)
            p_square = partial + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES + (row * C.FEATURES + column)
            add_to(p_square, outer, (row < C.FEATURES) & (column < C.FEATURES))
            next_sum_grad += inner(shared_matrix(t.a, index, C), v_grad[:, :, None], 1)
        sum_grad = next_sum_grad / own.count.to(C.ACC)
        tl.store(own.vectors + (slots.sum_grads + layer) * own.vector, sum_grad, mask=own.m_vector)
        tl.debug_barrier()
    return sum_grad


@triton.jit
def store_token_gradients(t, whole, z_grad, sum_grad, strides, own, sizes, slots, C: tl.constexpr):
    """Gradients of features, which every layer reads, and of responses, exactly zero where padding is."""
    kept = sizes.kept
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    for first in range(0, sizes.tokens, C.ROWS):
        rows = rows_from(first, own, sizes, C.ROWS)
        x = features(whole, t.z, strides, rows, own, C)
        register_grads = rows.p_row + slots.register_grads * own.slot
        x_grad = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
        for layer in range(sizes.layers):
            s = tl.load(rows.p_row + layer * own.slot, mask=rows.m_context, other=0.0)
            p_sum_grad = own.vectors + (slots.sum_grads + layer) * own.vector
            x_grad += s[:, :, None] * tl.load(p_sum_grad, mask=own.m_vector, other=0.0)[:, None, :]
            for head in range(kept):
                index = layer * kept + head
                v = tl.load(own.vectors + (slots.products + index) * own.vector, mask=own.m_vector, other=0.0)
                register_grad = tl.load(register_grads + index * own.slot, mask=rows.m_row, other=0.0)
                x_grad += register_grad[:, :, None] * v[:, None, :]
        grad = tl.load(rows.p_row + slots.updates * own.slot, mask=rows.m_row, other=0.0)
        grad += tl.where(rows.m_context, inner(x, sum_grad[:, None, :], 2), 0.0)
        p_token = z_grad + (own.i_task * sizes.tokens + rows.i_row) * (C.FEATURES + 1)
        m_feature = rows.m_row[:, :, None] & (i_column < C.FEATURES)
        tl.store(p_token[:, :, None] + i_column, tl.where(rows.m_read[:, :, None], x_grad, 0.0), mask=m_feature)
        tl.store(p_token + C.FEATURES, tl.where(rows.m_read, grad, 0.0), mask=rows.m_row)


@triton.jit
def put_error(squares, error, target, predicted, own, sizes, C: tl.constexpr):
    """Stores the gradient of the mean squared error of the last responses' predictions; squares plus their squares."""
    begin = sizes.tokens - sizes.queries
    for first in range(begin, sizes.tokens, C.LINE):
        rows = rows_from(first, own, sizes, C.LINE)
        s = tl.load(rows.p_row + sizes.layers * own.slot, mask=rows.m_row, other=0.0)
        o_error = own.i_task * sizes.queries + rows.i_row - begin
        wanted = tl.load(target + o_error, mask=rows.m_row, other=0.0).to(C.ACC)
        difference = tl.where(rows.m_row, -s - wanted, 0.0)
        squares += inner(difference, difference, 1, keep_dims=True)
        tl.store(error + o_error, 2 * difference / tl.cast(predicted, C.ACC), mask=rows.m_row)
    tl.debug_barrier()
    return squares


@triton.jit(
    do_not_specialize=[
        "batch",
        "tokens",
        "context",
        "layers",
        "kept",
        "queries",
        "outputs",
        "chunk_tasks",
        "predicted",
    ]
)
def columns_backward_kernel(
    t,
    error,
    target,
    z_grad,
    partials,
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
    partial_size,
    chunk_tasks,
    predicted,
    C: tl.constexpr,
):
    """Gradients from those of the predictions, `error` (outputs, B, queries), or of the squared errors to `target`.

    A chunk's partial sum, zero at first, receives the gradients of a, gamma, beta and, for the loss, the sum of squares
    of its chunk_tasks tasks; `error` (1, B, queries) then receives 2 (prediction - target) / predicted. z_grad
    (B, N, D) is written where it is given.
    """
    sizes = sizes_of(batch, tokens, context, layers, kept, queries, outputs)
    z_strides = wide(strides)
    lane = tl.arange(0, C.TASKS)[:, None]
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    slots = slots_of(layers, kept, True)
    chunks = tl.cdiv(batch, chunk_tasks)
    apart = sums_apart(chunk_tasks, C.TASKS)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        running = partials + own_row(chunk, chunks, apart) * partial_size
        first_task = tl.cast(chunk, tl.int64) * chunk_tasks
        in_chunk = tl.minimum(batch - first_task, chunk_tasks).to(tl.int32)
        for begin in range(0, in_chunk, C.TASKS * STEPS_A_SUM):
            squares = tl.zeros((C.TASKS, 1), C.ACC)
            for step in range(begin, tl.minimum(in_chunk, begin + C.TASKS * STEPS_A_SUM), C.TASKS):
                own = own_tasks(t, first_task + step + lane, memory, slots.vectors, sizes, C)
                whole = whole_features(t.z, z_strides, own, sizes, C)
                run_layers(t, whole, z_strides, own, sizes, slots, C)
                if C.LOSS:
                    squares = put_error(squares, error, target, predicted, own, sizes, C)
                sum_grad = run_layers_back(t, whole, error, z_strides, own, sizes, slots, running, C)
                add_coefficient_gradients(t, own, sizes, slots, running, C)
                if z_grad is not None:
                    store_token_gradients(t, whole, z_grad, sum_grad, z_strides, own, sizes, slots, C)
                tl.debug_barrier()
            if C.LOSS:
                tl.store(running + partial_size - 1, tl.sum(tl.sum(squares, 1), 0))
            if apart:
                move_sum(running, partial, partial_size)


class Gradients(NamedTuple):
    """Of z, a, gamma and beta, in their arguments' shapes; the sum of squared errors."""

    z: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


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
    config = recurrence.config
    sizes = [a.numel(), gamma.numbers, beta.numbers, 1]
    chunk_tasks = tasks_a_sum(a, batch, config.tasks, config.warps, numbers=sum(sizes))
    size = recurrence.scratch_size(backward=True)
    running = running_numbers(sizes, chunk_tasks, config.tasks)
    programs, scratch = scratch_of(a, triton.cdiv(batch, chunk_tasks), size, config.warps, running)
    partials = Partials(a, batch, chunk_tasks, sizes, programs if running else 0)
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
            chunk_tasks=chunk_tasks,
            predicted=max(error.numel(), 1),
            **recurrence.arguments(queries, outputs, target is not None),
        )
    a_grad, gamma_grad, beta_grad, squares = partials.totals()
    gradients = Gradients(
        z_grad, a_grad.view(a.shape), gamma.gradient(gamma_grad), beta.gradient(beta_grad), squares[0]
    )
    return gradients, error
