"""Where a network's backward starts and ends: from predictions or Z_L to the last state, from the first one to z."""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.layers import INITIAL_GRAD, SYMMETRIC
from memformer_kernels.backends.triton.tiles import inner, product, put


@triton.jit
def add_prediction_gradient(
    z,
    error,
    grad,
    output,
    task,
    strides,
    batch,
    tokens,
    queries,
    rows,
    width,
    live,
    SPACE: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Adds to a state's gradient, in its last column, what its predictions bring."""
    z_task, z_row, z_column = strides
    j = tl.arange(0, BLOCK)[None, None, :]
    from_errors = error + (tl.cast(output, tl.int64) * batch + task) * queries
    total = tl.zeros((TASKS, 1, BLOCK), ACC)
    for first in range(0, queries, QUERIES):
        asked = first + tl.arange(0, QUERIES)[None, :, None]
        mask = live & (asked < queries)
        value = tl.load(from_errors + asked, mask=mask, other=0.0).to(ACC)
        row = tokens - queries + asked
        if SPACE == "gram":
            at = z + task * z_task + row * z_row + j * z_column
            query = tl.load(at, mask=mask & (j < width), other=0.0).to(ACC)
            total += inner(value, query, 1, keep_dims=True)
        else:
            at = grad + row * width + width - 1
            before = tl.load(at, mask=mask, other=0.0)
            put(at, before - value, mask)
    if SPACE == "gram":
        at = grad + j * width + width - 1
        mask = live & (j < width)
        before = tl.load(at, mask=mask, other=0.0)
        put(at, before - total, mask)


@triton.jit
def put_last_gradient(
    z,
    z_out_grad,
    grad,
    task,
    strides,
    tokens,
    rows,
    width,
    live,
    SPACE: tl.constexpr,
    STACK: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the gradient of X_L: from that of Z_L, or zero where predictions will add to it."""
    z_task, z_row, z_column = strides
    column = tl.arange(0, BLOCK)[None, None, :]
    own_grad = z_out_grad + task * tokens * width
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[None, :, None]
        mask = live & (row < rows) & (column < width)
        value = tl.zeros((TASKS, ROWS, BLOCK), ACC)
        if STACK and SPACE == "gram":
            value += product(
                (z + task * z_task + first * z_column, z_column, z_row),
                (own_grad, width, 1),
                (live, rows - first, tokens, width, tokens),
                TASKS,
                ROWS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
        elif STACK:
            value += tl.load(own_grad + row * width + column, mask=mask, other=0.0).to(ACC)
        put(grad + row * width + column, value, mask)


@triton.jit
def store_token_gradient(
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
    outer,
    live,
    SPACE: tl.constexpr,
    STACK: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of z: that of X_0 on tokens; in Gram space, through G_0 for the context and through Z_0 T_l."""
    z_task, z_row, z_column = strides
    _, width, layers, _, _, _, _ = sizes
    batch, tokens, queries, outputs = outer
    rows = tokens if SPACE == "token" else width
    tall = tl.cast(TASKS * rows * width, tl.int64)
    size = tl.cast(TASKS * width * width, tl.int64)
    i = tl.arange(0, BLOCK)[None, :, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    if SPACE == "gram":
        square = live & (i < width) & (column < width)
        initial = squares + INITIAL_GRAD * size
        both = tl.load(initial + i * width + column, mask=square, other=0.0)
        both += tl.load(initial + column * width + i, mask=square, other=0.0)
        put(squares + SYMMETRIC * size + i * width + column, both / count.to(ACC), square)
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)[None, :, None]
        mask = live & (row < tokens) & (column < width)
        if SPACE == "gram":
            through = product(
                (z + task * z_task + first * z_row, z_row, z_column),
                (squares + SYMMETRIC * size, width, 1),
                (live, count - first, width, width, width),
                TASKS,
                ROWS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            grad = tl.where(row < count, through, 0.0)
            if STACK:
                grad += product(
                    (z_out_grad + (task * tokens + first) * width, width, 1),
                    (states + layers * tall, 1, width),
                    (live, tokens - first, width, width, width),
                    TASKS,
                    ROWS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
            else:
                query = row - (tokens - queries)
                asked = live & (query >= 0) & (row < tokens)
                for output in range(outputs):
                    at = error + (tl.cast(output, tl.int64) * batch + task) * queries + query
                    value = tl.load(at, mask=asked, other=0.0).to(ACC)
                    state = states + (layers - outputs + output + 1) * tall
                    last = tl.load(state + column * width + width - 1, mask=live & (column < width), other=0.0)
                    grad -= tl.where(asked, value * last, 0.0)
        else:
            grad = tl.load(grads + row * width + column, mask=mask, other=0.0)
            grad = tl.where((row < count) | (row >= valid_from), grad, 0.0)
        tl.store(z_grad + (task * tokens + row) * width + column, grad, mask=mask)
