"""The backward of `solve`, and the fused loss: forward, error and backward of a task in one launch.

A program owns chunks of LANES tasks, TASKS at a time. For each it runs the layers again, keeping residuals, registers
and states, then walks them back:

    dr_{l,h} = sum_{l'>=l} gamma_{l',l,h} * ds_{l'+1} + beta_{l+1,h} * dr_{l+1,h};   dg_l = sum_h A_{l,h}^T dr_{l,h}
    ds_l = ds_{l+1} + H dg_l;   dH = sum_l dg_l s_l^T

Parameter gradients are sums over tasks of outer and elementwise products of these vectors. They are made from the
scratch after a chunk's last task, one product per layer and chunk, and written as the chunk's own partial sum.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.solve import (
    WHOLE_MATRIX,
    first_state,
    predictions,
    run_layers,
    task_matrix,
    times_vector,
)
from memformer_kernels.backends.triton.tiles import inner, load_counts, product, put, wide


@triton.jit
def layer_gradients(
    tile,
    outer,
    parameters,
    memory,
    lane,
    sizes,
    live,
    RULE: tl.constexpr,
    BETA: tl.constexpr,
    MATRIX: tl.constexpr,
    NETWORK: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradients of H (TASKS, BLOCK, BLOCK), b and s_0 (TASKS, BLOCK); those of the vectors go to `memory`."""
    a, gamma, beta = parameters
    layers, kept, width, features, lanes = sizes
    error, outputs, rows, strides, task, batch, queries = outer
    i = tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, BLOCK)[None, :, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    own = memory + lane * width + i
    slot = tl.cast(lanes * width, tl.int64)
    mask = live & (i < width)
    states = own + (layers * kept + layers) * slot
    register_grads = own + (layers * kept + 2 * layers + 1) * slot
    update_grads = register_grads + layers * kept * slot
    grad = tl.zeros((TASKS, BLOCK), ACC)
    offset_grad = tl.zeros((TASKS, BLOCK), ACC)
    matrix_grad = tl.zeros((TASKS, BLOCK, BLOCK), ACC)
    for step in range(layers):
        layer = layers - 1 - step
        if step < outputs:
            output = tl.cast(outputs - 1 - step, tl.int64)
            if NETWORK:
                for first in range(0, queries, QUERIES):
                    q = first + tl.arange(0, QUERIES)
                    asked = (q < queries)[None, :]
                    at = error + (output * batch + task) * queries + q[None, :]
                    value = tl.load(at, mask=live & asked, other=0.0).to(ACC)
                    _, z_row, z_column = strides
                    tokens = tl.load(
                        rows + q[None, :, None] * z_row + column * z_column,
                        mask=live[:, :, None] & asked[:, :, None] & (column < features),
                        other=0.0,
                    ).to(ACC)
                    grad -= inner(value[:, :, None], tokens, 1)
            else:
                grad -= tl.load(error + (output * batch + task) * width + i, mask=mask, other=0.0)
        tl.store(update_grads + layer * slot, grad, mask=mask)
        residual_grad = tl.zeros((TASKS, BLOCK), ACC)
        for head in range(kept):
            index = layer * kept + head
            if RULE == 0:
                register_grad = grad
            else:
                at = index if RULE == 1 else (layer * layers + layer) * kept + head
                register_grad = tl.load(gamma + tl.cast(at, tl.int64) * width + i, mask=i < features, other=0.0) * grad
            if RULE == 2:
                for later in range(layer + 1, layers):
                    at = (later * layers + layer) * kept + head
                    weight = tl.load(gamma + tl.cast(at, tl.int64) * width + i, mask=i < features, other=0.0)
                    register_grad += weight * tl.load(update_grads + later * slot, mask=mask, other=0.0)
            if BETA:
                later_mask = mask & (step > 0)
                decay = tl.load(
                    beta + tl.cast(index + kept, tl.int64) * width + i, mask=(i < features) & (step > 0), other=0.0
                )
                register_grad += decay * tl.load(register_grads + (index + kept) * slot, mask=later_mask, other=0.0)
            tl.store(register_grads + index * slot, register_grad, mask=mask)
            square = a + tl.cast(index, tl.int64) * features * features
            if BLOCK <= WHOLE_MATRIX:
                a_tile = tl.load(
                    square + row * features + column, mask=(row < features) & (column < features), other=0.0
                )
                residual_grad += inner(a_tile, register_grad[:, :, None], 1)
            else:
                tl.debug_barrier()
                vectors = memory + (layers * kept + 2 * layers + 1 + index) * slot
                residual_grad += times_vector(square, 1, features, vectors, features, lane, width, live, BLOCK, ACC)
        if MATRIX:
            state = tl.load(states + layer * slot, mask=mask, other=0.0)
            matrix_grad += residual_grad[:, :, None] * state[:, None, :]
            offset_grad += residual_grad
        grad += tl.where(i < features, inner(tile, residual_grad[:, :, None], 1), 0.0)
        tl.debug_barrier()
    return matrix_grad, offset_grad, grad


@triton.jit
def token_gradients(
    z,
    z_grad,
    matrix_grad,
    memory,
    scratch_tile,
    outer,
    lane,
    task,
    count,
    sizes,
    strides,
    tokens,
    live,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of a task's tokens: through the Gram matrix for the context, and directly for the queries."""
    layers, kept, width, _, lanes = sizes
    error, outputs, _, _, _, batch, queries = outer
    z_task, z_row, z_column = strides
    slot = tl.cast(lanes * width, tl.int64)
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    inside = live & (i < width) & (j < width)
    square = scratch_tile + tl.arange(0, TASKS)[:, None, None] * width * width
    put(square + i * width + j, matrix_grad / count.to(ACC), inside)
    turned = tl.load(square + j * width + i, mask=inside, other=0.0)
    put(square + i * width + j, matrix_grad / count.to(ACC) + turned, inside)
    states = memory + (lane * width)[:, :, None] + j + (layers * kept + layers) * slot
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)[None, :, None]
        context_rows = tl.minimum(count - first, ROWS)
        bounds = (live, context_rows, width, width, width)
        grad = product(
            (z + task * z_task + first * z_row, z_row, z_column),
            (square, width, 1),
            bounds,
            TASKS,
            ROWS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        grad = tl.where(row < count, grad, 0.0)
        query = row - (tokens - queries)
        if first + ROWS > tokens - queries:
            for output in range(outputs):
                asked = live & (query >= 0) & (row < tokens)
                at = error + (tl.cast(output, tl.int64) * batch + task) * queries + query
                value = tl.load(at, mask=asked, other=0.0).to(ACC)
                at_state = states + (layers - outputs + output + 1) * slot
                state = tl.load(at_state, mask=live & (j < width), other=0.0)
                grad -= tl.where(query >= 0, value * state, 0.0)
        tl.store(z_grad + (task * tokens + row) * width + j, grad, mask=live & (row < tokens) & (j < width))


@triton.jit
def chunk_gradients(
    partial,
    memory,
    lanes_live,
    sizes,
    RULE: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    LANE_CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A chunk's share of the gradients of a (L, R, d, d), gamma and beta (their canonical shapes), in this order."""
    layers, kept, width, features, lanes = sizes
    slot = tl.cast(lanes * width, tl.int64)
    residuals = memory + layers * kept * slot
    register_grads = memory + (layers * kept + 2 * layers + 1) * slot
    update_grads = register_grads + layers * kept * slot
    i = tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, TILE)[None, :, None]
    column = tl.arange(0, TILE)[None, None, :]
    for index in range(layers * kept):
        total = product(
            (register_grads + index * slot, 1, width),
            (residuals + (index // kept) * slot, width, 1),
            (lanes_live > 0, features, lanes_live, features, lanes_live),
            1,
            TILE,
            TILE,
            LANE_CHUNK,
            ACC,
            PRECISION,
        )
        at = partial + tl.cast(index, tl.int64) * features * features + row * features + column
        tl.store(at, total, mask=(row < features) & (column < features))
    weights = tl.cast(layers * kept, tl.int64)
    gammas = partial + weights * features * features
    betas = gammas
    if RULE == 1:
        betas = gammas + weights * width
    if RULE == 2:
        betas = gammas + layers * weights * width
    lane = tl.arange(0, LANE_CHUNK)[:, None]
    if RULE != 0:
        for layer in range(layers):
            first = layer if RULE == 1 else 0
            for past in range(first, layer + 1):
                for head in range(kept):
                    total = tl.zeros((1, BLOCK), ACC)
                    for start in range(0, lanes_live, LANE_CHUNK):
                        mask = (start + lane < lanes_live) & (i < features)
                        at = (start + lane) * width + i
                        register = tl.load(memory + (past * kept + head) * slot + at, mask=mask, other=0.0)
                        update = tl.load(update_grads + layer * slot + at, mask=mask, other=0.0)
                        total += inner(register, update, 0, keep_dims=True)
                    entry = layer if RULE == 1 else layer * layers + past
                    tl.store(gammas + tl.cast(entry * kept + head, tl.int64) * width + i, total, mask=i < features)
    if BETA:
        for index in range(kept, layers * kept):
            total = tl.zeros((1, BLOCK), ACC)
            for start in range(0, lanes_live, LANE_CHUNK):
                mask = (start + lane < lanes_live) & (i < features)
                at = (start + lane) * width + i
                before = tl.load(memory + (index - kept) * slot + at, mask=mask, other=0.0)
                total += inner(before, tl.load(register_grads + index * slot + at, mask=mask, other=0.0), 0, True)
            tl.store(betas + tl.cast(index, tl.int64) * width + i, total, mask=i < features)


# One register a layer is compiled for itself: its loops over registers, and what they keep in registers, go.
@triton.jit(do_not_specialize=["batch", "tokens", "context", "layers", "queries", "outputs", "predicted"])
def solve_backward_kernel(
    z,
    matrix,
    offset,
    start,
    lengths,
    a,
    gamma,
    beta,
    error,
    target,
    z_grad,
    matrix_grad,
    offset_grad,
    start_grad,
    partials,
    scratch,
    z_task,
    z_row,
    z_column,
    batch,
    tokens,
    context,
    width: tl.constexpr,
    features: tl.constexpr,
    layers,
    kept,
    queries,
    outputs,
    scratch_size,
    partial_size,
    predicted,
    NETWORK: tl.constexpr,
    TOKENS: tl.constexpr,
    LOSS: tl.constexpr,
    RULE: tl.constexpr,
    TASKS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    LANE_CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    REREAD: tl.constexpr,
):
    """Gradients from those of the outputs, `error`; or, for the loss, the squared errors too, from the targets.

    A chunk's partial sum holds the gradients of a, gamma and beta and, for the loss, the sum of squares. For the loss
    `error` (1, B, queries) receives 2 (prediction - target) / predicted. z_grad, matrix_grad, offset_grad and
    start_grad are made where they are given. With REREAD a given matrix is read once more for the way back.
    """
    strides = wide((z_task, z_row, z_column))
    sizes = (layers, kept, width, features, LANES)
    parameters = (a, gamma, beta)
    BETA: tl.constexpr = beta is not None
    MATRIX: tl.constexpr = (z_grad is not None) or (matrix_grad is not None)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    scratch_tile = memory + (2 * layers * kept + 3 * layers + 1) * tl.cast(LANES * width, tl.int64)
    i = tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, BLOCK)[None, :, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    for chunk in range(tl.program_id(0), tl.cdiv(batch, LANES), tl.num_programs(0)):
        first_task = tl.cast(chunk, tl.int64) * LANES
        lanes_live = tl.minimum(batch - first_task, LANES).to(tl.int32)
        squares = tl.zeros((TASKS, 1), ACC)
        for step in range(tl.cdiv(lanes_live, TASKS)):
            lane = step * TASKS + tl.arange(0, TASKS)[:, None]
            task = first_task + lane
            live = task < batch
            count = load_counts(lengths, task, context, live)[:, :, None]
            tile = task_matrix(
                z,
                matrix,
                task[:, :, None],
                count,
                context,
                strides,
                width,
                features,
                live[:, :, None],
                TOKENS,
                TASKS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            shift = tl.zeros((TASKS, BLOCK), ACC)
            if offset is not None:
                shift += tl.load(offset + task * width + i, mask=live & (i < width), other=0.0)
            state = first_state(start, task, width, features, live, NETWORK, start is not None, TASKS, BLOCK, ACC)
            state = run_layers(tile, shift, state, parameters, memory, lane, sizes, live, RULE, BETA, True, BLOCK, ACC)
            rows = z
            if NETWORK:
                rows = z + task[:, :, None] * strides[0] + (tokens - queries) * strides[1]
            if LOSS:
                for first in range(0, queries, QUERIES):
                    q = first + tl.arange(0, QUERIES)
                    mask = live & (q < queries)[None, :]
                    values, _ = predictions(rows, state, strides, q, queries, width, live, BLOCK, ACC)
                    at = task * queries + q[None, :]
                    missed = tl.where(mask, values - tl.load(target + at, mask=mask, other=0.0).to(ACC), 0.0)
                    squares += inner(missed, missed, 1, keep_dims=True)
                    tl.store(error + at, 2 * missed / tl.cast(predicted, ACC), mask=mask)
            tl.debug_barrier()
            if REREAD and not TOKENS:
                tile = task_matrix(
                    z,
                    matrix,
                    task[:, :, None],
                    count,
                    context,
                    strides,
                    width,
                    features,
                    live[:, :, None],
                    TOKENS,
                    TASKS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
            outer = (error, outputs, rows, strides, task, batch, queries)
            grad_matrix, grad_offset, grad = layer_gradients(
                tile,
                outer,
                parameters,
                memory,
                lane,
                sizes,
                live,
                RULE,
                BETA,
                MATRIX,
                NETWORK,
                TASKS,
                BLOCK,
                QUERIES,
                ACC,
            )
            if z_grad is not None:
                token_gradients(
                    z,
                    z_grad,
                    grad_matrix,
                    memory,
                    scratch_tile,
                    (error, outputs, rows, strides, task, batch, queries),
                    lane,
                    task[:, :, None],
                    count,
                    sizes,
                    strides,
                    tokens,
                    live[:, :, None],
                    TASKS,
                    BLOCK,
                    ROWS,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
            mask = live & (i < features)
            if matrix_grad is not None:
                at = matrix_grad + task[:, :, None] * width * width + row * width + column
                tl.store(at, grad_matrix, mask=live[:, :, None] & (row < width) & (column < width))
            if offset_grad is not None:
                tl.store(offset_grad + task * width + i, grad_offset, mask=mask)
            if start_grad is not None:
                tl.store(start_grad + task * width + i, -grad, mask=mask)
        tl.debug_barrier()
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        chunk_gradients(partial, memory, lanes_live, sizes, RULE, BETA, BLOCK, TILE, LANE_CHUNK, ACC, PRECISION)
        if LOSS:
            tl.store(partial + partial_size - 1, tl.sum(tl.sum(squares, 1), 0))
        tl.debug_barrier()
