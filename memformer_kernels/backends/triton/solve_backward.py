"""The backward of `solve`, and the fused loss: forward, error and backward of a task in one launch.

A program owns chunks of tasks, LANES of them together and TASKS at a time. For each it runs the layers again, keeping
residuals, registers and states, then walks them back:

    dr_{l,h} = sum_{l'>=l} gamma_{l',l,h} * ds_{l'+1} + beta_{l+1,h} * dr_{l+1,h};   dg_l = sum_h A_{l,h}^T dr_{l,h}
    ds_l = ds_{l+1} + H dg_l;   dH = sum_l dg_l s_l^T

Parameter gradients are sums over tasks of outer and elementwise products of these vectors. They are summed from the
scratch after every LANES tasks, one product per layer, and added to the chunk's own partial sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.launch import launch, scratch_of, tasks_a_sum
from memformer_kernels.backends.triton.matrices import (
    outer_product,
    store_matrices,
    task_matrix,
    times_own_back,
    times_shared,
    zero_matrices,
)
from memformer_kernels.backends.triton.solve import (
    Recurrence,
    Results,
    Sizes,
    gradients_of,
    load_weight,
    own_tasks,
    predictions,
    run_layers,
    slots_of,
    sums_tokens,
)
from memformer_kernels.backends.triton.sums import TOGETHER, Partials
from memformer_kernels.backends.triton.tiles import add_to, chunked_product, inner, product, put, wide


class TaskGradients(NamedTuple):
    """Gradients of what a task has of its own, each (B, ..) as that is, or None where it is not needed."""

    z: Tensor | None
    matrix: Tensor | None
    offset: Tensor | None
    start: Tensor | None


@triton.jit
def with_output(grad, error, output, rows, strides, own, sizes, results, C: tl.constexpr):
    """A state's gradient (TASKS, BLOCK) and what its layer's predictions or weights bring to it."""
    i = tl.arange(0, C.BLOCK)[None, :]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    queries = results.queries
    if C.NETWORK:
        _, z_row, z_column = strides
        for first in range(0, queries, C.QUERIES):
            i_query = first + tl.arange(0, C.QUERIES)
            m_query = (i_query < queries)[None, :]
            p_error = error + (output * sizes.batch + own.i_task) * queries + i_query[None, :]
            value = tl.load(p_error, mask=own.m_task & m_query, other=0.0).to(C.ACC)
            tokens = tl.load(
                rows + i_query[None, :, None] * z_row + column * z_column,
                mask=own.m_task[:, :, None] & m_query[:, :, None] & (column < C.FEATURES),
                other=0.0,
            ).to(C.ACC)
            grad -= inner(value[:, :, None], tokens, 1)
    else:
        p_error = error + (output * sizes.batch + own.i_task) * C.WIDTH + i
        grad -= tl.load(p_error, mask=own.m_task & (i < C.WIDTH), other=0.0)
    return grad


@triton.jit
def register_gradient(t, grad, layer, has_later, head, own, layers, kept, C: tl.constexpr):
    """dr of one register of a layer, whose update has the gradient `grad`."""
    m_feature = tl.arange(0, C.BLOCK)[None, :] < C.FEATURES
    m_vector = own.m_task & (tl.arange(0, C.BLOCK)[None, :] < C.WIDTH)
    register_grads, update_grads = gradients_of(own.vectors, layers, kept, own.slot)
    index = layer * kept + head
    if C.RULE == 0:
        register_grad = grad
    else:
        i_own = index if C.RULE == 1 else (layer * layers + layer) * kept + head
        register_grad = load_weight(t.gamma, i_own, m_feature, C) * grad
    if C.RULE == 2:
        for later in range(layer + 1, layers):
            weight = load_weight(t.gamma, (later * layers + layer) * kept + head, m_feature, C)
            register_grad += weight * tl.load(update_grads + later * own.slot, mask=m_vector, other=0.0)
    if t.beta is not None:
        decay = load_weight(t.beta, index + kept, m_feature & has_later, C)
        p_later = register_grads + (index + kept) * own.slot
        register_grad += decay * tl.load(p_later, mask=m_vector & has_later, other=0.0)
    return register_grad


@triton.jit
def run_layers_back(
    t,
    tile,
    error,
    rows,
    strides,
    own,
    sizes,
    kept,
    results,
    MATRIX: tl.constexpr,
    OFFSET: tl.constexpr,
    C: tl.constexpr,
):
    """Gradients of H, as `task_matrix` has it, b and s_0 (TASKS, BLOCK); those of the vectors go to scratch.

    MATRIX, OFFSET: whether those of H and of b are wanted; else they are zero.
    """
    layers = sizes.layers
    i = tl.arange(0, C.BLOCK)[None, :]
    m_vector = own.m_task & (i < C.WIDTH)
    slots = slots_of(layers, kept)
    states = own.vectors + slots.states * own.slot
    register_grads, update_grads = gradients_of(own.vectors, layers, kept, own.slot)
    grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    offset_grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    matrix_grad = zero_matrices(C)
    for step in range(layers):
        layer = layers - 1 - step
        if step < results.outputs:
            output = tl.cast(results.outputs - 1 - step, tl.int64)
            grad = with_output(grad, error, output, rows, strides, own, sizes, results, C)
        tl.store(update_grads + layer * own.slot, grad, mask=m_vector)
        residual_grad = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
        for head in range(kept):
            index = layer * kept + head
            register_grad = register_gradient(t, grad, layer, step > 0, head, own, layers, kept, C)
            tl.store(register_grads + index * own.slot, register_grad, mask=m_vector)
            residual_grad += times_shared(t.a, index, register_grad, C)
        if MATRIX:
            state = tl.load(states + layer * own.slot, mask=m_vector, other=0.0)
            matrix_grad += outer_product(residual_grad, state, C)
        if OFFSET:
            offset_grad += residual_grad
        grad += tl.where(i < C.FEATURES, times_own_back(t, tile, residual_grad, own, C), 0.0)
        tl.debug_barrier()
    return matrix_grad, offset_grad, grad


@triton.jit
def store_token_gradients(t, z_grad, matrix_grad, error, square, strides, own, sizes, kept, results, C: tl.constexpr):
    """Gradient of a task's tokens: through the Gram matrix for the context, and directly for the queries.

    square: scratch for a matrix of every task.
    """
    z_task, z_row, z_column = strides
    layers = sizes.layers
    tokens = sizes.tokens
    queries = results.queries
    i_task = own.i_task[:, :, None]
    m_task = own.m_task[:, :, None]
    count = own.count
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    m_square = m_task & (i < C.WIDTH) & (j < C.WIDTH)
    square += tl.arange(0, C.TASKS)[:, None, None] * C.WIDTH * C.WIDTH
    put(square + i * C.WIDTH + j, matrix_grad / count.to(C.ACC), m_square)
    turned = tl.load(square + j * C.WIDTH + i, mask=m_square, other=0.0)
    put(square + i * C.WIDTH + j, matrix_grad / count.to(C.ACC) + turned, m_square)
    states = own.memory + (own.i_lane * C.WIDTH)[:, :, None] + j + slots_of(layers, kept).states * own.slot
    for first in range(0, tokens, C.ROWS):
        i_row = first + tl.arange(0, C.ROWS)[None, :, None]
        grad = product(
            (t.z + i_task * z_task + first * z_row, z_row, z_column),
            (square, C.WIDTH, 1),
            (m_task, tl.minimum(count - first, C.ROWS), C.WIDTH, C.WIDTH, C.WIDTH),
            C.ROWS,
            C.BLOCK,
            C,
        )
        grad = tl.where(i_row < count, grad, 0.0)
        i_query = i_row - (tokens - queries)
        if first + C.ROWS > tokens - queries:
            for output in range(results.outputs):
                m_query = m_task & (i_query >= 0) & (i_row < tokens)
                p_error = error + (tl.cast(output, tl.int64) * sizes.batch + i_task) * queries + i_query
                value = tl.load(p_error, mask=m_query, other=0.0).to(C.ACC)
                p_state = states + (layers - results.outputs + output + 1) * own.slot
                state = tl.load(p_state, mask=m_task & (j < C.WIDTH), other=0.0)
                grad -= tl.where(i_query >= 0, value * state, 0.0)
        m_token = m_task & (i_row < tokens) & (j < C.WIDTH)
        tl.store(z_grad + (i_task * tokens + i_row) * C.WIDTH + j, grad, mask=m_token)


@triton.jit
def summed_products(left, right, lanes_live, C: tl.constexpr):
    """The sum over a chunk's tasks of two stored vectors, entry by entry, (1, BLOCK)."""
    i = tl.arange(0, C.BLOCK)[None, :]
    total = tl.zeros((1, C.BLOCK), C.ACC)
    if C.BLOCK >= 64:
        # A few wide vectors: all threads add up all of them, eight on their way at a time, and wait for no others.
        for start in range(0, C.LANES, TOGETHER):
            for step in tl.static_range(TOGETHER):
                mask = (start + step < lanes_live) & (i < C.FEATURES)
                o_entry = (start + step) * C.WIDTH + i
                first = tl.load(left + o_entry, mask=mask, other=0.0)
                total += first * tl.load(right + o_entry, mask=mask, other=0.0)
    else:
        lane = tl.arange(0, C.LANES)[:, None]
        mask = (lane < lanes_live) & (i < C.FEATURES)
        first = tl.load(left + lane * C.WIDTH + i, mask=mask, other=0.0)
        total += inner(first, tl.load(right + lane * C.WIDTH + i, mask=mask, other=0.0), 0, keep_dims=True)
    return total


@triton.jit
def add_lane_gradients(partial, memory, lanes_live, layers, kept, BETA: tl.constexpr, C: tl.constexpr):
    """Adds what LANES tasks bring to the gradients of a (L, R, d, d), gamma and beta (their canonical shapes)."""
    slot = tl.cast(C.LANES * C.WIDTH, tl.int64)
    slots = slots_of(layers, kept)
    residuals = memory + slots.residuals * slot
    register_grads, update_grads = gradients_of(memory, layers, kept, slot)
    i = tl.arange(0, C.BLOCK)[None, :]
    row = tl.arange(0, C.TILE)[None, :, None]
    column = tl.arange(0, C.TILE)[None, None, :]
    for index in range(layers * kept):
        total = chunked_product(
            (register_grads + index * slot, 1, C.WIDTH),
            (residuals + (index // kept) * slot, C.WIDTH, 1),
            (lanes_live > 0, C.FEATURES, lanes_live, C.FEATURES, lanes_live),
            1,
            C.TILE,
            C.TILE,
            C.LANES,
            C.ACC,
            C.PRECISION,
        )
        p_square = partial + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES + row * C.FEATURES + column
        add_to(p_square, total, (row < C.FEATURES) & (column < C.FEATURES))
    weights = tl.cast(layers * kept, tl.int64)
    gammas = partial + weights * C.FEATURES * C.FEATURES
    betas = gammas
    if C.RULE == 1:
        betas = gammas + weights * C.WIDTH
    if C.RULE == 2:
        betas = gammas + layers * weights * C.WIDTH
    if C.RULE != 0:
        for layer in range(layers):
            first = layer if C.RULE == 1 else 0
            for past in range(first, layer + 1):
                for head in range(kept):
                    register = memory + (past * kept + head) * slot
                    total = summed_products(register, update_grads + layer * slot, lanes_live, C)
                    entry = layer if C.RULE == 1 else layer * layers + past
                    p_gamma = gammas + tl.cast(entry * kept + head, tl.int64) * C.WIDTH + i
                    add_to(p_gamma, total, i < C.FEATURES)
    if BETA:
        for index in range(kept, layers * kept):
            total = summed_products(memory + (index - kept) * slot, register_grads + index * slot, lanes_live, C)
            add_to(betas + tl.cast(index, tl.int64) * C.WIDTH + i, total, i < C.FEATURES)


@triton.jit
def put_error(squares, error, target, state, rows, strides, predicted, own, results, C: tl.constexpr):
    """Stores the gradient of the mean squared error of predictions from a state; squares plus their squares."""
    queries = results.queries
    for first in range(0, queries, C.QUERIES):
        i_query = first + tl.arange(0, C.QUERIES)
        m_query = own.m_task & (i_query < queries)[None, :]
        values = predictions(rows, state, strides, i_query, queries, own, C)
        o_query = own.i_task * queries + i_query[None, :]
        wanted = tl.load(target + o_query, mask=m_query, other=0.0).to(C.ACC)
        difference = tl.where(m_query, values - wanted, 0.0)
        squares += inner(difference, difference, 1, keep_dims=True)
        tl.store(error + o_query, 2 * difference / tl.cast(predicted, C.ACC), mask=m_query)
    return squares


@triton.jit
def store_task_gradients(grads, matrix_grad, offset_grad, grad, own, C: tl.constexpr):
    """Gradients of what a task is given: of its matrix, its offset and its first weights."""
    i = tl.arange(0, C.BLOCK)[None, :]
    m_vector = own.m_task & (i < C.FEATURES)
    if grads.matrix is not None:
        store_matrices(grads.matrix, matrix_grad, own, C)
        first = grads.matrix + own.i_task * C.SIDE * C.SIDE
        if C.SIDE > C.WIDTH:
            # Of the column that the last row also is; b is read from the row.
            tl.store(first + i * C.SIDE + C.FEATURES, tl.zeros_like(offset_grad), mask=m_vector)
            last = tl.where(i < C.FEATURES, offset_grad, 0.0)
            tl.store(first + C.FEATURES * C.SIDE + i, last, mask=m_vector)
            tl.store(first + C.SIDE * C.SIDE - 1, tl.zeros((C.TASKS, 1), C.ACC), mask=own.m_task)
    if grads.offset is not None:
        tl.store(grads.offset + own.i_task * C.WIDTH + i, offset_grad, mask=m_vector)
    if grads.start is not None:
        tl.store(grads.start + own.i_task * C.WIDTH + i, -grad, mask=m_vector)


# One register a layer is compiled for itself: its loops over registers, and what they keep in registers, go.
@triton.jit(
    do_not_specialize=["batch", "tokens", "context", "layers", "queries", "outputs", "chunk_tasks", "predicted"]
)
def solve_backward_kernel(
    t,
    error,
    target,
    grads,
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
    """Gradients from those of the outputs, `error`; or, for the loss, the squared errors too, from the targets.

    A chunk's partial sum, zero at first, receives the gradients of a, gamma and beta and, for the loss, the sum of
    squares of its chunk_tasks tasks. For the loss `error` (1, B, queries) receives 2 (prediction - target) / predicted.
    """
    z_strides = wide(strides)
    sizes = Sizes(batch, tokens, context, layers)
    results = Results(queries, outputs)
    MATRIX: tl.constexpr = (grads.z is not None) or (grads.matrix is not None)
    OFFSET: tl.constexpr = MATRIX or (grads.offset is not None)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    square = memory + slots_of(layers, kept).end * tl.cast(C.LANES * C.WIDTH, tl.int64)
    for chunk in range(tl.program_id(0), tl.cdiv(batch, chunk_tasks), tl.num_programs(0)):
        first_task = tl.cast(chunk, tl.int64) * chunk_tasks
        in_chunk = tl.minimum(batch - first_task, chunk_tasks).to(tl.int32)
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        for first in range(0, in_chunk, C.LANES):
            lanes_live = tl.minimum(in_chunk - first, C.LANES)
            squares = tl.zeros((C.TASKS, 1), C.ACC)
            for step in range(tl.cdiv(lanes_live, C.TASKS)):
                i_lane = step * C.TASKS + tl.arange(0, C.TASKS)[:, None]
                own = own_tasks(t, first_task + first + i_lane, i_lane, memory, sizes, C)
                tile = task_matrix(t, z_strides, own, context, C) if C.HELD else None
                state = run_layers(t, tile, own, layers, kept, True, C)
                rows = t.z
                if C.NETWORK:
                    o_query = (tokens - queries) * z_strides[1]
                    rows = t.z + own.i_task[:, :, None] * z_strides[0] + o_query
                if C.LOSS:
                    squares = put_error(squares, error, target, state, rows, z_strides, predicted, own, results, C)
                tl.debug_barrier()
                matrix_grad, offset_grad, grad = run_layers_back(
                    t, tile, error, rows, z_strides, own, sizes, kept, results, MATRIX, OFFSET, C
                )
                if grads.z is not None:
                    store_token_gradients(
                        t, grads.z, matrix_grad, error, square, z_strides, own, sizes, kept, results, C
                    )
                store_task_gradients(grads, matrix_grad, offset_grad, grad, own, C)
            tl.debug_barrier()
            add_lane_gradients(partial, memory, lanes_live, layers, kept, t.beta is not None, C)
            if C.LOSS:
                add_to(partial + partial_size - 1 + tl.arange(0, 1), tl.sum(squares, 0), True)
            tl.debug_barrier()


class Gradients(NamedTuple):
    """Of z and matrix, or h, b and start; of a, gamma, beta in their arguments' shapes; the sum of squared errors."""

    z: Tensor | None
    matrix: Tensor | None
    h: Tensor | None
    b: Tensor | None
    start: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


class TaskNeeds(NamedTuple):
    """Which gradients of what a task has of its own are wanted.

    tasks: of the tokens, or of the matrices that were given for them; of h. b and start: of a quadratic.
    """

    tasks: bool
    b: bool = False
    start: bool = False


def solve_backward(
    recurrence: Recurrence,
    error: Tensor | None,
    target: Tensor | None,
    queries: int,
    outputs: int,
    needs: TaskNeeds,
    z_dtype: torch.dtype,
) -> tuple[Gradients, Tensor]:
    """Gradients from those of the results, `error`; or of the mean squared error to `target`, with its sum of squares.

    Returns the gradient of the predictions too, which for a loss is computed here. That of z is made by the programs
    that sum tokens themselves, and by no others.
    """
    a, z, gamma, beta = recurrence.a, recurrence.z, recurrence.gamma, recurrence.beta
    given = z is None or recurrence.matrix is not None
    assert not needs.tasks or given or sums_tokens(z, None)
    batch, _, side = recurrence.tasks.shape
    width = recurrence.width
    if error is None:
        error = a.new_empty((1, batch, queries))
    grads = TaskGradients(
        z=None if z is None or given or not needs.tasks else z.new_empty(z.shape, dtype=z_dtype),
        matrix=a.new_empty((batch, side, side)) if given and needs.tasks else None,
        offset=a.new_empty((batch, side)) if needs.b else None,
        start=a.new_empty((batch, side)) if needs.start else None,
    )
    config = recurrence.config(gradients=needs.tasks)
    sizes = [a.numel(), gamma.numbers, beta.numbers, 1]
    chunk_tasks = tasks_a_sum(a, batch, config.tasks, config.warps, numbers=sum(sizes))
    partials = Partials(a, batch, chunk_tasks, sizes)
    size = slots_of.fn(*a.shape[:2]).end * config.lanes * width
    size += config.tasks * width * width if grads.z is not None else 0
    programs, scratch = scratch_of(a, partials.chunks, size, config.warps)
    arguments = recurrence.arguments(queries, outputs, config)
    arguments["C"] = arguments["C"]._replace(
        LANES=config.lanes,
        LOSS=target is not None,
        ROWS=config.rows,
        TILE=config.tile,
    )
    if batch:
        launch(
            solve_backward_kernel,
            programs,
            error=error,
            target=target,
            grads=grads,
            partials=partials.values,
            scratch=scratch,
            scratch_size=size,
            partial_size=partials.size,
            chunk_tasks=chunk_tasks,
            predicted=max(error.numel(), 1),
            **arguments,
        )
    a_grad, gamma_grad, beta_grad, squares = partials.totals()
    return Gradients(
        grads.z,
        None if z is None else grads.matrix,
        grads.matrix if z is None else None,
        grads.offset,
        grads.start,
        a_grad.view(a.shape),
        gamma.gradient(gamma_grad),
        beta.gradient(beta_grad),
        squares[0],
    ), error
