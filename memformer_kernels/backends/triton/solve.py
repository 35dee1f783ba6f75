"""Response-only networks in Gram space, and the first-order method itself: the state is a vector.

    g_l = b + H s_l;   r_{l,h} = A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum_h sum_{j<=l} gamma * r_{j,h}

A network's vectors are D = d + 1 long and end in the constant 1, so that b is the last column of the Gram matrix and a
prediction is -z . (s, 1). A program owns TASKS tasks at a time and keeps their matrices in registers for all layers;
the vectors of a layer go to its scratch, which the first-level cache holds. Per task it reads the context once (or the
matrix) and the queries; n D^2 / 2 + L (D^2 + R D^2 + L R D) multiply-adds.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.tiles import inner, load_counts, product, wide

WHOLE_MATRIX: tl.constexpr = tl.constexpr(32)
"""Widest block whose shared matrices are read whole, beside a task's own."""


@triton.jit
def task_matrix(
    z,
    matrix,
    task,
    count,
    context,
    strides,
    width,
    features,
    live,
    TOKENS: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The mean context Gram matrix from tokens, or a given matrix, (TASKS, BLOCK, BLOCK)."""
    i = tl.arange(0, BLOCK)[None, :, None]
    k = tl.arange(0, BLOCK)[None, None, :]
    if TOKENS:
        z_task, z_row, z_column = strides
        tokens = z + task * z_task
        bounds = (live, width, count, width, context)
        total = product(
            (tokens, z_column, z_row),
            (tokens, z_row, z_column),
            bounds,
            TASKS,
            BLOCK,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        tile = total / count.to(ACC)
    else:
        at = matrix + task * width * width + i * width + k
        tile = tl.load(at, mask=live & (i < features) & (k < width), other=0.0)
    return tile


@triton.jit
def times_vector(
    matrix, row_stride, column_stride, vectors, features, lane, width, live, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """A shared matrix times the stored vectors of `lane` (TASKS, 1), a part of its columns at a time, (TASKS, BLOCK).

    The task's own matrix stays in registers meanwhile, and a second one of that size would not fit beside it.
    """
    PART: tl.constexpr = 16
    row = tl.arange(0, BLOCK)[None, :, None]
    total = tl.zeros((1, BLOCK), ACC)
    for first in range(0, features, PART):
        column = first + tl.arange(0, PART)
        part = tl.load(
            matrix + row * row_stride + column[None, None, :] * column_stride,
            mask=(row < features) & (column < features)[None, None, :],
            other=0.0,
        )
        vector = tl.load(vectors + lane * width + column[None, :], mask=live & (column < features)[None, :], other=0.0)
        total += inner(part, vector[:, None, :], 2)
    return total


@triton.jit
def run_layers(
    tile,
    offset,
    state,
    parameters,
    memory,
    lane,
    sizes,
    live,
    RULE: tl.constexpr,
    BETA: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """All layers from `state` (TASKS, BLOCK); vectors go to the slots of `memory`, (lanes, width) each.

    Slots: registers (L, R), then, where they are kept, residuals (L) and states (L + 1).
    """
    a, gamma, beta = parameters
    layers, kept, width, features, lanes = sizes
    i = tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, BLOCK)[None, :, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    own = memory + lane * width + i
    slot = tl.cast(lanes * width, tl.int64)
    mask = live & (i < width)
    for layer in range(layers):
        residual = tl.where(i < features, offset + inner(tile, state[:, None, :], 2), 0.0)
        own_residual = memory + (layers * kept + layer) * slot
        if KEEP or BLOCK > WHOLE_MATRIX:
            tl.store(own_residual + lane * width + i, residual, mask=mask)
            tl.debug_barrier()
            tl.store(own + (layers * kept + layers + layer) * slot, state, mask=mask)
        for head in range(kept):
            index = layer * kept + head
            square = a + tl.cast(index, tl.int64) * features * features
            if BLOCK <= WHOLE_MATRIX:
                a_tile = tl.load(
                    square + row * features + column, mask=(row < features) & (column < features), other=0.0
                )
                register = inner(a_tile, residual[:, None, :], 2)
            else:
                register = times_vector(square, features, 1, own_residual, features, lane, width, live, BLOCK, ACC)
            if BETA:
                decay = tl.load(beta + tl.cast(index, tl.int64) * width + i, mask=i < width, other=0.0)
                before = tl.load(own + (index - kept) * slot, mask=mask & (layer > 0), other=0.0)
                register += decay * before
            tl.store(own + index * slot, register, mask=mask)
            if RULE == 0:
                state += register
            else:
                at = index if RULE == 1 else (layer * layers + layer) * kept + head
                state += tl.load(gamma + tl.cast(at, tl.int64) * width + i, mask=i < features, other=0.0) * register
            if RULE == 2:
                for past in range(layer):
                    at = (layer * layers + past) * kept + head
                    weight = tl.load(gamma + tl.cast(at, tl.int64) * width + i, mask=i < features, other=0.0)
                    state += weight * tl.load(own + (past * kept + head) * slot, mask=mask, other=0.0)
        tl.debug_barrier()
    if KEEP:
        tl.store(own + (layers * kept + 2 * layers) * slot, state, mask=mask)
    return state


@triton.jit
def first_state(
    start,
    task,
    width,
    features,
    live,
    NETWORK: tl.constexpr,
    START: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """(0, 1) for a network, minus the first weights for a quadratic."""
    i = tl.arange(0, BLOCK)[None, :]
    state = tl.zeros((TASKS, BLOCK), ACC)
    if NETWORK:
        state += tl.where(i == features, 1.0, 0.0).to(ACC)
    if START:
        state -= tl.load(start + task * width + i, mask=live & (i < width), other=0.0)
    return state


@triton.jit
def predictions(rows, state, strides, q, queries, width, live, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Minus the response of the query tokens q (QUERIES,) at a state (TASKS, BLOCK), and those tokens as read."""
    _, z_row, z_column = strides
    i = tl.arange(0, BLOCK)[None, None, :]
    mask = live[:, :, None] & (q < queries)[None, :, None] & (i < width)
    tokens = tl.load(rows + q[None, :, None] * z_row + i * z_column, mask=mask, other=0.0).to(ACC)
    return -inner(tokens, state[:, None, :], 2), tokens


@triton.jit(do_not_specialize=["batch", "tokens", "context", "layers", "kept", "queries", "outputs"])
def solve_kernel(
    z,
    matrix,
    offset,
    start,
    lengths,
    a,
    gamma,
    beta,
    out,
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
    NETWORK: tl.constexpr,
    TOKENS: tl.constexpr,
    RULE: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Predictions (outputs, B, queries) of a network, or the weights (outputs, B, d) of a quadratic.

    `outputs` is L for those after every layer, or 1 for the last. Tasks go to programs in blocks of TASKS.
    """
    strides = wide((z_task, z_row, z_column))
    sizes = (layers, kept, width, features, TASKS)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    lane = tl.arange(0, TASKS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    slot = tl.cast(TASKS * width, tl.int64)
    for block in range(tl.program_id(0), tl.cdiv(batch, TASKS), tl.num_programs(0)):
        task = tl.cast(block, tl.int64) * TASKS + lane
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
        run_layers(
            tile, shift, state, (a, gamma, beta), memory, lane, sizes, live, RULE, beta is not None, True, BLOCK, ACC
        )
        tl.debug_barrier()
        states = memory + lane * width + i + (layers * kept + layers) * slot
        for output in range(outputs):
            layer = layers - outputs + output + 1
            state = tl.load(states + layer * slot, mask=live & (i < width), other=0.0)
            if NETWORK:
                rows = z + task[:, :, None] * strides[0] + (tokens - queries) * strides[1]
                for first in range(0, queries, QUERIES):
                    q = first + tl.arange(0, QUERIES)
                    values, _ = predictions(rows, state, strides, q, queries, width, live, BLOCK, ACC)
                    at = out + (tl.cast(output, tl.int64) * batch + task) * queries + q[None, :]
                    tl.store(at, values, mask=live & (q < queries)[None, :])
            else:
                tl.store(out + (tl.cast(output, tl.int64) * batch + task) * width + i, -state, mask=live & (i < width))
        tl.debug_barrier()
