"""The backward of `network`, and the fused loss: forward, error and backward of a task in one launch.

A program owns chunks of tasks, TASKS at a time. It runs the layers again, keeping states and registers in its
scratch, then walks them back. With U_l the gradient of X_{l+1}:

    R'_{l} = sum_{l'>=l} gamma_{l',l} * U_{l'} + beta_{l+1} * R'_{l+1};   W' = X^T R'
    Q_h' = W' P_h G;   P_h' = W'^T Q_h G;   G' = sum_h Q_h^T W' P_h
    U_{l-1} = U_l + R' W^T + (1/n) X (G' + G'^T) on tokens, or + G_0 X (G' + G'^T) in Gram space, where G_0' += X G' X^T

Parameter gradients are added up task by task in the chunk's own partial sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.launch import launch, scratch_of, tasks_a_sum
from memformer_kernels.backends.triton.layer_gradients import (
    add_matrix_gradients,
    put_register_gradients,
    put_state_gradient,
)
from memformer_kernels.backends.triton.layers import (
    INITIAL_GRAD,
    Memory,
    own_tasks,
    put_gram,
    put_mixed,
    run_layers,
    shape_of,
    slots_of,
)
from memformer_kernels.backends.triton.network import Recurrence, put_first_state, read_queries
from memformer_kernels.backends.triton.state_gradients import (
    add_prediction_gradient,
    put_last_gradient,
    store_matrix_gradient,
    store_token_gradient,
)
from memformer_kernels.backends.triton.sums import (
    STEPS_A_SUM,
    Partials,
    move_sum,
    own_row,
    running_numbers,
    sums_apart,
)
from memformer_kernels.backends.triton.tiles import inner, put, wide


class Given(NamedTuple):
    """Gradients of predictions, `error`, or the targets that it is made of; of Z_L (B, N, D), in whose place z stands
    for predictions, and of the last register or None.
    """

    error: Tensor
    target: Tensor | None
    tokens: Tensor
    register: Tensor | None


class Space(NamedTuple):
    """Where programs work: partial sums of parameter gradients, and scratch."""

    partials: Tensor
    scratch: Tensor


class TaskGradients(NamedTuple):
    """Gradients of z (B, N, D), of G_0 (B, D, D) where that is given, and of past registers; None where not needed."""

    z: Tensor | None
    matrix: Tensor | None
    past: Tensor | None


@triton.jit
def put_error(squared, t, given, strides, predicted, memory, own, n, C: tl.constexpr):
    """Stores the gradient of the mean squared error of the last state's predictions; squared plus their squares."""
    for first in range(0, n.queries, C.QUERIES):
        i_query = first + tl.arange(0, C.QUERIES)
        m_query = own.m_task & (i_query < n.queries)[None, None, :]
        values = read_queries(t, memory.states + n.layers * memory.slot, i_query, strides, own, n, C)
        o_query = own.i_task * n.queries + i_query[None, None, :]
        wanted = tl.load(given.target + o_query, mask=m_query, other=0.0).to(C.ACC)
        difference = tl.where(m_query, values[:, None, :] - wanted, 0.0)
        squared += inner(difference, difference, 2)
        put(given.error + o_query, 2 * difference / tl.cast(predicted, C.ACC), m_query)
    return squared


@triton.jit
def run_layers_back(t, given, grads, partial, strides, memory, own, n, C: tl.constexpr):
    """All layers back: gradients of the states stay in scratch, those of parameters join `partial`."""
    shared = tl.zeros((C.TASKS, 1, 1), tl.int32)
    NEED_INITIAL: tl.constexpr = (grads.z is not None) or (grads.matrix is not None)
    past_grad = grads.past + own.i_task * n.kept * n.rows * n.width if grads.past is not None else None
    for back in range(n.layers):
        layer = n.layers - 1 - back
        state = memory.states + layer * memory.slot
        grad = memory.grads + (layer + 1) * memory.slot
        if not C.STACK and back < n.outputs:
            add_prediction_gradient(t, given.error, grad, n.outputs - 1 - back, strides, own, n, C)
        put_gram(state, memory, own, n, C)
        matrices = tl.cast(layer * n.heads, tl.int64) * n.width * n.width
        q = t.q + shared + matrices
        p = t.p + shared + matrices
        # W^T from (P, Q), since what the state's gradient is multiplied by is W transposed.
        put_mixed(p, q, memory, own, n, C)
        put_register_gradients(t, given.register, past_grad, partial, layer, memory, own, n, C)
        add_matrix_gradients(partial, layer, state, q, p, NEED_INITIAL, memory, own, n, C)
        put_state_gradient(layer, state, memory, own, n, C)


@triton.jit(
    do_not_specialize=[
        "batch",
        "tokens",
        "context",
        "layers",
        "heads",
        "kept",
        "depth",
        "queries",
        "outputs",
        "chunk_tasks",
        "predicted",
    ]
)
def network_backward_kernel(
    t,
    given,
    grads,
    space,
    strides,
    batch,
    tokens,
    context,
    width,
    layers,
    heads,
    kept,
    depth,
    queries,
    outputs,
    scratch_size,
    partial_size,
    chunk_tasks,
    predicted,
    C: tl.constexpr,
):
    """Gradients from that of Z_L (and of the last register), from those of predictions, or of the squared errors.

    A chunk's partial sum, zero at first, receives the gradients of q, of p where P_GRAD, of gamma and beta and, for the
    loss, the sum of squares of its chunk_tasks tasks. For the loss `error` (1, B, queries) receives
    2 (prediction - target) / predicted. Scratch: states (L + 1), in Gram space their gradients (L + 1), registers
    (L, R), D-by-D slots.
    """
    z_strides = wide(strides)
    n = shape_of(batch, tokens, context, width, layers, heads, kept, depth, queries, outputs, C)
    lane = tl.arange(0, C.TASKS)[:, None, None]
    slot = tl.cast(C.TASKS * n.rows * width, tl.int64)
    square = tl.cast(C.TASKS * width * width, tl.int64)
    program = space.scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    slots = slots_of(n.layers + 1, n.layers + 1 if C.SPACE == "gram" else 0, n.layers * n.kept)
    states = program + lane * n.rows * width
    squares = program + slots.end * slot + lane * width * width
    grads_of_states = states + slots.grads * slot if C.SPACE == "gram" else states
    registers = states + slots.registers * slot
    memory = Memory(states, grads_of_states, registers, squares, slot, square, slot, n.kept * slot)
    i = tl.arange(0, C.BLOCK)[None, :, None]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    chunks = tl.cdiv(batch, chunk_tasks)
    apart = sums_apart(chunk_tasks, C.TASKS)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        partial = space.partials + tl.cast(chunk, tl.int64) * partial_size
        running = space.partials + own_row(chunk, chunks, apart) * partial_size
        first_task = tl.cast(chunk, tl.int64) * chunk_tasks
        in_chunk = tl.minimum(batch - first_task, chunk_tasks).to(tl.int32)
        for begin in range(0, in_chunk, C.TASKS * STEPS_A_SUM):
            squared = tl.zeros((C.TASKS, 1), C.ACC)
            for step in range(begin, tl.minimum(in_chunk, begin + C.TASKS * STEPS_A_SUM), C.TASKS):
                own = own_tasks(t, first_task + step + lane, n)
                put_first_state(t, z_strides, memory, own, n, C)
                run_layers(t, memory, own, n, C)
                if C.LOSS:
                    squared = put_error(squared, t, given, z_strides, predicted, memory, own, n, C)
                put_last_gradient(t, given.tokens, memory.grads + n.layers * slot, z_strides, own, n, C)
                if C.SPACE == "gram":
                    empty = tl.zeros((C.TASKS, C.BLOCK, C.BLOCK), C.ACC)
                    p_initial = squares + INITIAL_GRAD * square + i * width + column
                    put(p_initial, empty, own.m_task & (i < width) & (column < width))
                run_layers_back(t, given, grads, running, z_strides, memory, own, n, C)
                if grads.z is not None:
                    store_token_gradient(t, grads.z, given.tokens, given.error, z_strides, memory, own, n, C)
                if grads.matrix is not None:
                    store_matrix_gradient(grads.matrix, memory, own, n, C)
                tl.debug_barrier()
            if C.LOSS:
                tl.store(running + partial_size - 1, tl.sum(tl.sum(squared, 1), 0))
            if apart:
                move_sum(running, partial, partial_size)


class Gradients(NamedTuple):
    """Of z, matrix, past, dense q and p, gamma and beta (in their arguments' shapes); the sum of squared errors."""

    z: Tensor | None
    matrix: Tensor | None
    past: Tensor | None
    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


def tokens_backward(
    recurrence: Recurrence, grad: Tensor, register_grad: Tensor | None, need_z: bool, need_past: bool = False
) -> Gradients:
    """Gradients from that of Z_L, and for a single layer from that of its register; that of z has z's dtype."""
    out_grads = grad, register_grad
    return _backward(recurrence, 0, 1, need_z, recurrence.z.dtype, out_grads=out_grads, need_past=need_past)[0]


def predictions_backward(recurrence: Recurrence, error: Tensor, need_z: bool) -> Gradients:
    """Gradients from those of the predictions (outputs, B, queries)."""
    outputs, _, queries = error.shape
    return _backward(recurrence, queries, outputs, need_z, recurrence.z.dtype, error=error)[0]


def squared_errors(recurrence: Recurrence, target: Tensor, need_z: bool) -> tuple[Gradients, Tensor]:
    """Gradients of the mean squared error to target (B, queries), and that of the predictions, (1, B, queries)."""
    return _backward(recurrence, target.shape[1], 1, need_z, recurrence.q.dtype, target=target)


def _backward(
    recurrence: Recurrence,
    queries: int,
    outputs: int,
    need_z: bool,
    z_dtype: torch.dtype,
    error: Tensor | None = None,
    target: Tensor | None = None,
    out_grads: tuple[Tensor, Tensor | None] | None = None,
    need_past: bool = False,
) -> tuple[Gradients, Tensor]:
    z, q, past, gamma, beta = recurrence.z, recurrence.q, recurrence.past, recurrence.gamma, recurrence.beta
    batch, layers, config = z.shape[0], q.shape[0], recurrence.config
    if error is None:
        error = q.new_empty((1, batch, queries))
    z_grad = z.new_empty(z.shape, dtype=z_dtype) if need_z and recurrence.matrix is None else None
    matrix_grad = torch.empty_like(recurrence.matrix) if need_z and recurrence.matrix is not None else None
    past_grad = past[0].new_empty((len(past), *past[0].shape)) if need_past and past else None
    p_numbers = q.numel() if recurrence.p_grad else 0
    sizes = [q.numel(), p_numbers, gamma.numbers, beta.numbers, 1]
    chunk_tasks = tasks_a_sum(q, batch, config.tasks, config.warps, numbers=sum(sizes))
    apart = layers + 1 if recurrence.space == "gram" else 0
    size = recurrence.scratch_size(layers + 1, apart, layers * recurrence.kept)
    running = running_numbers(sizes, chunk_tasks, config.tasks)
    programs, scratch = scratch_of(q, triton.cdiv(batch, chunk_tasks), size, config.warps, running)
    partials = Partials(q, batch, chunk_tasks, sizes, programs if running else 0)
    arguments = recurrence.arguments(queries, outputs, stack=out_grads is not None)
    arguments["C"] = arguments["C"]._replace(LOSS=target is not None, P_GRAD=recurrence.p_grad)
    if batch:
        launch(
            network_backward_kernel,
            programs,
            given=Given(error, target, *(out_grads or (z, None))),
            grads=TaskGradients(z_grad, matrix_grad, past_grad),
            space=Space(partials.values, scratch),
            scratch_size=size,
            partial_size=partials.size,
            chunk_tasks=chunk_tasks,
            predicted=max(error.numel(), 1),
            **arguments,
        )
    q_grad, p_grad, gamma_grad, beta_grad, squares = partials.totals()
    return Gradients(
        z_grad,
        matrix_grad,
        past_grad,
        q_grad.view(q.shape),
        p_grad.view(q.shape) if recurrence.p_grad else None,
        gamma.gradient(gamma_grad),
        beta.gradient(beta_grad),
        squares[0],
    ), error
