"""Where a network's backward starts and ends: from predictions or Z_L to the last state, from the first one to z."""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.layers import INITIAL_GRAD, SYMMETRIC, row_tile
from memformer_kernels.backends.triton.tiles import inner, product, put


@triton.jit
def add_prediction_gradient(t, error, grad, output, strides, own, n, C: tl.constexpr):
    """Adds to a state's gradient, in its last column, what its predictions bring."""
    z_task, z_row, z_column = strides
    j = tl.arange(0, C.BLOCK)[None, None, :]
    errors = error + (tl.cast(output, tl.int64) * n.batch + own.i_task) * n.queries
    total = tl.zeros((C.TASKS, 1, C.BLOCK), C.ACC)
    for first in range(0, n.queries, C.QUERIES):
        i_query = first + tl.arange(0, C.QUERIES)[None, :, None]
        m_query = own.m_task & (i_query < n.queries)
        value = tl.load(errors + i_query, mask=m_query, other=0.0).to(C.ACC)
        i_row = n.tokens - n.queries + i_query
        if C.SPACE == "gram":
            p_query = t.z + own.i_task * z_task + i_row * z_row + j * z_column
            query = tl.load(p_query, mask=m_query & (j < n.width), other=0.0).to(C.ACC)
            total += inner(value, query, 1, keep_dims=True)
        else:
            p_last = grad + i_row * n.width + n.width - 1
            before = tl.load(p_last, mask=m_query, other=0.0)
            put(p_last, before - value, m_query)
    if C.SPACE == "gram":
        p_last = grad + j * n.width + n.width - 1
        m_last = own.m_task & (j < n.width)
        before = tl.load(p_last, mask=m_last, other=0.0)
        put(p_last, before - total, m_last)


@triton.jit
def put_last_gradient(t, z_out_grad, grad, strides, own, n, C: tl.constexpr):
    """Stores the gradient of X_L: from that of Z_L, or zero where predictions will add to it."""
    z_task, z_row, z_column = strides
    own_grad = z_out_grad + own.i_task * n.tokens * n.width
    for first in range(0, n.rows, C.ROWS):
        tile = row_tile(first, own.m_task, n, C)
        value = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
        if C.STACK and C.SPACE == "gram":
            value += product(
                (t.z + own.i_task * z_task + first * z_column, z_column, z_row),
                (own_grad, n.width, 1),
                (own.m_task, n.rows - first, n.tokens, n.width, n.tokens),
                C.ROWS,
                C.BLOCK,
                C,
            )
        elif C.STACK:
            value += tl.load(own_grad + tile.o_entry, mask=tile.m_entry, other=0.0).to(C.ACC)
        put(grad + tile.o_entry, value, tile.m_entry)


@triton.jit
def through_gram(t, z_out_grad, error, i_row, first, strides, memory, own, n, C: tl.constexpr):
    """The gradient of z's rows in Gram space: through G_0 for the context, and through Z_0 T_l."""
    z_task, z_row, z_column = strides
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    through = product(
        (t.z + own.i_task * z_task + first * z_row, z_row, z_column),
        (memory.squares + SYMMETRIC * memory.square, n.width, 1),
        (own.m_task, own.count - first, n.width, n.width, n.width),
        C.ROWS,
        C.BLOCK,
        C,
    )
    grad = tl.where(i_row < own.count, through, 0.0)
    if C.STACK:
        grad += product(
            (z_out_grad + (own.i_task * n.tokens + first) * n.width, n.width, 1),
            (memory.states + n.layers * memory.slot, 1, n.width),
            (own.m_task, n.tokens - first, n.width, n.width, n.width),
            C.ROWS,
            C.BLOCK,
            C,
        )
    else:
        i_query = i_row - (n.tokens - n.queries)
        m_query = own.m_task & (i_query >= 0) & (i_row < n.tokens)
        m_last = own.m_task & (i_column < n.width)
        for output in range(n.outputs):
            p_error = error + (tl.cast(output, tl.int64) * n.batch + own.i_task) * n.queries + i_query
            value = tl.load(p_error, mask=m_query, other=0.0).to(C.ACC)
            state = memory.states + (n.layers - n.outputs + output + 1) * memory.slot
            last = tl.load(state + i_column * n.width + n.width - 1, mask=m_last, other=0.0)
            grad -= tl.where(m_query, value * last, 0.0)
    return grad


@triton.jit
def store_token_gradient(t, z_grad, z_out_grad, error, strides, memory, own, n, C: tl.constexpr):
    """The gradient of z: that of X_0 on tokens, in Gram space what reaches it through G_0 and through Z_0 T_l."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    if C.SPACE == "gram":
        m_square = own.m_task & (i < n.width) & (i_column < n.width)
        initial = memory.squares + INITIAL_GRAD * memory.square
        both = tl.load(initial + i * n.width + i_column, mask=m_square, other=0.0)
        both += tl.load(initial + i_column * n.width + i, mask=m_square, other=0.0)
        p_symmetric = memory.squares + SYMMETRIC * memory.square + i * n.width + i_column
        put(p_symmetric, both / own.count.to(C.ACC), m_square)
    for first in range(0, n.tokens, C.ROWS):
        i_row = first + tl.arange(0, C.ROWS)[None, :, None]
        m_token = own.m_task & (i_row < n.tokens) & (i_column < n.width)
        if C.SPACE == "gram":
            grad = through_gram(t, z_out_grad, error, i_row, first, strides, memory, own, n, C)
        else:
            grad = tl.load(memory.grads + i_row * n.width + i_column, mask=m_token, other=0.0)
            grad = tl.where((i_row < own.count) | (i_row >= n.valid_from), grad, 0.0)
        tl.store(z_grad + (own.i_task * n.tokens + i_row) * n.width + i_column, grad, mask=m_token)


@triton.jit
def store_matrix_gradient(matrix_grad, memory, own, n, C: tl.constexpr):
    """The gradient of G_0, where that was given."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    m_square = own.m_task & (i < n.width) & (j < n.width)
    p_initial = memory.squares + INITIAL_GRAD * memory.square + i * n.width + j
    initial = tl.load(p_initial, mask=m_square, other=0.0)
    tl.store(matrix_grad + own.i_task * n.width * n.width + i * n.width + j, initial, mask=m_square)
