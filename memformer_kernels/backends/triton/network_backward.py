"""The backward of `network`, and the fused loss: forward, error and backward of a task in one launch.

A program owns chunks of LANES tasks, TASKS at a time. It runs the layers again, keeping states and registers in its
scratch, then walks them back. With U_l the gradient of X_{l+1}:

    R'_{l} = sum_{l'>=l} gamma_{l',l} * U_{l'} + beta_{l+1} * R'_{l+1};   W' = X^T R'
    Q_h' = W' P_h G;   P_h' = W'^T Q_h G;   G' = sum_h Q_h^T W' P_h
    U_{l-1} = U_l + R' W^T + (1/n) X (G' + G'^T) on tokens, or + G_0 X (G' + G'^T) in Gram space, where G_0' += X G' X^T

Parameter gradients are added up task by task in the chunk's own partial sum.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.layer_gradients import (
    add_matrix_gradients,
    put_register_gradients,
    put_state_gradient,
)
from memformer_kernels.backends.triton.layers import INITIAL_GRAD, put_gram, put_mixed, run_layers
from memformer_kernels.backends.triton.network import put_first_state, read_queries
from memformer_kernels.backends.triton.state_gradients import (
    add_prediction_gradient,
    put_last_gradient,
    store_token_gradient,
)
from memformer_kernels.backends.triton.tiles import inner, load_counts, put, wide


@triton.jit(
    do_not_specialize=[
        "batch",
        "tokens",
        "context",
        "rows",
        "layers",
        "heads",
        "kept",
        "depth",
        "queries",
        "outputs",
        "valid_from",
        "predicted",
    ]
)
def network_backward_kernel(
    z,
    matrix,
    lengths,
    past,
    q,
    p,
    gamma,
    beta,
    error,
    target,
    z_out_grad,
    register_out_grad,
    z_grad,
    matrix_grad,
    past_grad,
    partials,
    scratch,
    z_task,
    z_row,
    z_column,
    past_slot,
    batch,
    tokens,
    context,
    rows,
    width,
    layers,
    heads,
    kept,
    depth,
    queries,
    outputs,
    valid_from,
    scratch_size,
    partial_size,
    predicted,
    SPACE: tl.constexpr,
    STACK: tl.constexpr,
    LOSS: tl.constexpr,
    P_GRAD: tl.constexpr,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    PAST: tl.constexpr,
    TASKS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients from that of Z_L (and of the last register), from those of predictions, or of the squared errors.

    A chunk's partial sum holds the gradients of q, of p where P_GRAD, of gamma and beta and, for the loss, the sum of
    squares. matrix_grad (B, D, D) is the gradient of G_0 where that was given. For the loss `error` (1, B, queries)
    receives 2 (prediction - target) / predicted. Scratch: states (L + 1), gradients (L + 1), registers (L, R), register
    gradients (R), D-by-D slots.
    """
    strides = wide((z_task, z_row, z_column))
    sizes = (rows, width, layers, heads, kept, depth, context)
    BETA: tl.constexpr = beta is not None
    lane = tl.arange(0, TASKS)[:, None, None]
    tall = tl.cast(TASKS * rows * width, tl.int64)
    size = tl.cast(TASKS * width * width, tl.int64)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    states = memory + lane * rows * width
    grads = states + (layers + 1) * tall
    registers = grads + (layers + 1) * tall
    register_grads = registers + layers * kept * tall
    slots = memory + (2 * layers + 2 + layers * kept + kept) * tall
    squares = slots + lane * width * width
    shared = tl.zeros((TASKS, 1, 1), tl.int32)
    i = tl.arange(0, BLOCK)[None, :, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    parameters = (q + shared, p + shared, gamma, beta)
    past_slot = tl.cast(past_slot, tl.int64)
    for chunk in range(tl.program_id(0), tl.cdiv(batch, LANES), tl.num_programs(0)):
        first_task = tl.cast(chunk, tl.int64) * LANES
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        lanes_live = tl.minimum(batch - first_task, LANES).to(tl.int32)
        squared = tl.zeros((TASKS, 1), ACC)
        for step in range(tl.cdiv(lanes_live, TASKS)):
            task = first_task + step * TASKS + lane
            live = task < batch
            count = load_counts(lengths, task, context, live)
            put_first_state(
                z,
                matrix,
                states,
                squares,
                task,
                strides,
                sizes,
                count,
                valid_from,
                live,
                SPACE,
                TASKS,
                BLOCK,
                ROWS,
                CHUNK,
                ACC,
                PRECISION,
            )
            own_past = past + task * kept * rows * width
            own_past_grad = past_grad + task * kept * rows * width
            run_layers(
                states,
                tall,
                registers,
                squares,
                (own_past, past_slot),
                parameters,
                sizes,
                count,
                valid_from,
                live,
                SPACE,
                RULE,
                GAMMA_TOKENS,
                BETA,
                BETA_TOKENS,
                PAST,
                TASKS,
                BLOCK,
                ROWS,
                CHUNK,
                ACC,
                PRECISION,
            )
            if LOSS:
                for first in range(0, queries, QUERIES):
                    asked = first + tl.arange(0, QUERIES)
                    mask = live & (asked < queries)[None, None, :]
                    values = read_queries(
                        z,
                        states + layers * tall,
                        task,
                        asked,
                        strides,
                        tokens,
                        queries,
                        width,
                        live,
                        SPACE,
                        BLOCK,
                        ACC,
                    )
                    at = task * queries + asked[None, None, :]
                    wanted = tl.load(target + at, mask=mask, other=0.0).to(ACC)
                    missed = tl.where(mask, values[:, None, :] - wanted, 0.0)
                    squared += inner(missed, missed, 2)
                    put(error + at, 2 * missed / tl.cast(predicted, ACC), mask)
            put_last_gradient(
                z,
                z_out_grad,
                grads + layers * tall,
                task,
                strides,
                tokens,
                rows,
                width,
                live,
                SPACE,
                STACK,
                TASKS,
                BLOCK,
                ROWS,
                CHUNK,
                ACC,
                PRECISION,
            )
            if SPACE == "gram":
                empty = tl.zeros((TASKS, BLOCK, BLOCK), ACC)
                put(
                    squares + INITIAL_GRAD * size + i * width + column,
                    empty,
                    live & (i < width) & (column < width),
                )
            for back in range(layers):
                layer = layers - 1 - back
                state = states + layer * tall
                grad = grads + (layer + 1) * tall
                if not STACK and back < outputs:
                    add_prediction_gradient(
                        z,
                        error,
                        grad,
                        outputs - 1 - back,
                        task,
                        strides,
                        batch,
                        tokens,
                        queries,
                        rows,
                        width,
                        live,
                        SPACE,
                        TASKS,
                        BLOCK,
                        QUERIES,
                        ACC,
                    )
                put_gram(squares, state, count, context, live, width, SPACE, TASKS, BLOCK, CHUNK, ACC, PRECISION)
                matrices = tl.cast(layer * heads, tl.int64) * width * width
                # W^T from (P, Q), since what the state's gradient is multiplied by is W transposed.
                put_mixed(
                    squares,
                    p + shared + matrices,
                    q + shared + matrices,
                    heads,
                    kept,
                    live,
                    width,
                    TASKS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
                put_register_gradients(
                    partial,
                    layer,
                    grads,
                    registers,
                    register_grads,
                    register_out_grad,
                    (own_past, own_past_grad, past_slot),
                    gamma,
                    beta,
                    task,
                    sizes,
                    live,
                    P_GRAD,
                    RULE,
                    GAMMA_TOKENS,
                    BETA,
                    BETA_TOKENS,
                    PAST,
                    TASKS,
                    BLOCK,
                    ROWS,
                    ACC,
                )
                add_matrix_gradients(
                    partial,
                    layer,
                    state,
                    register_grads,
                    squares,
                    q + shared + matrices,
                    p + shared + matrices,
                    sizes,
                    count,
                    live,
                    SPACE,
                    P_GRAD,
                    (z_grad is not None) or (matrix_grad is not None),
                    TASKS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
                put_state_gradient(
                    state,
                    grad,
                    grads + layer * tall,
                    register_grads,
                    squares,
                    sizes,
                    count,
                    live,
                    SPACE,
                    TASKS,
                    BLOCK,
                    ROWS,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
            if z_grad is not None:
                store_token_gradient(
                    z,
                    z_grad,
                    z_out_grad,
                    error,
                    states,
                    grads,
                    squares,
                    task,
                    strides,
                    sizes,
                    count,
                    valid_from,
                    (batch, tokens, queries, outputs),
                    live,
                    SPACE,
                    STACK,
                    TASKS,
                    BLOCK,
                    ROWS,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
            if matrix_grad is not None:
                square = live & (i < width) & (column < width)
                initial = tl.load(squares + INITIAL_GRAD * size + i * width + column, mask=square, other=0.0)
                tl.store(matrix_grad + task * width * width + i * width + column, initial, mask=square)
            tl.debug_barrier()
        if LOSS:
            tl.store(partial + partial_size - 1, tl.sum(tl.sum(squared, 1), 0))
