"""The backward of `columns`, and the fused loss: forward, error and backward of a task in one launch.

With u_l the gradient of s_{l+1}:

    r'_l = sum_{l'>=l} gamma_{l',l} * u_{l'} + beta_{l+1} * r'_{l+1};   v' = X^T r'_l;   A' = v' g^T;   g' = A^T v'
    u_{l-1} = u_l + X g' / n;   X' = s g'^T / n + r' (A g)^T

A program owns LANES consecutive tasks, TASKS at a time, with 4 L N D multiply-adds each after the forward's, and adds
up parameter gradients in its own partial sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.columns import (
    Recurrence,
    load_tokens,
    load_weight,
    own_tasks,
    run_layers,
    shared_matrix,
    slots_of,
)
from memformer_kernels.backends.triton.launch import launch, scratch_of
from memformer_kernels.backends.triton.sums import Partials
from memformer_kernels.backends.triton.tiles import add_to, inner, wide


@triton.jit
def add_to_weight(into, index, left, right, i_row, tokens, TOKENS: tl.constexpr):
    """Adds left * right to a coefficient's gradient, summed over tasks and, without a token axis, over tokens."""
    total = inner(left, right, 0, keep_dims=True)
    if TOKENS:
        add_to(into + tl.cast(index, tl.int64) * tokens + i_row, total, i_row < tokens)
    else:
        add_to(into + index, tl.sum(tl.sum(total, 1), 0), index >= 0)


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
