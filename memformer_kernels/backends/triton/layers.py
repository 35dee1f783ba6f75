"""Any structure, on tokens or in Gram space: the state is a matrix X, the tokens Z_l or the transform T_l.

    W_l = sum_h Q_h G_l P_h^T;   R_l = X_l W_l + beta * R_{l-1};   X_{l+1} = X_l + sum_{j<=l} gamma_{l,j} * R_j
    on tokens  X_0 = Z, G_l = X_l^T X_l / n over the context;   in Gram space  X_0 = 1, G_l = X_l^T G_0 X_l

A program owns TASKS tasks at a time for all layers. State, registers and D-by-D intermediates live in its scratch,
which the caches hold: tokens are read from memory once and written once. Per task and layer, M D^2 (2 + R) + 2 H D^3
multiply-adds, with M = N tokens or M = D.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.tiles import product, put

# D-by-D intermediates of a task, as slots of its scratch; W_h or its transpose takes the slots from MIXED on.
INITIAL: tl.constexpr = tl.constexpr(0)
LIFTED: tl.constexpr = tl.constexpr(1)
GRAM: tl.constexpr = tl.constexpr(2)
HALF: tl.constexpr = tl.constexpr(3)
PROJECTED: tl.constexpr = tl.constexpr(4)
GRAM_GRAD: tl.constexpr = tl.constexpr(5)
SYMMETRIC: tl.constexpr = tl.constexpr(6)
MIXED_GRAD: tl.constexpr = tl.constexpr(7)
MIXED_GRAD_TURNED: tl.constexpr = tl.constexpr(8)
INITIAL_GRAD: tl.constexpr = tl.constexpr(9)
MIXED: tl.constexpr = tl.constexpr(10)


@triton.jit
def put_square(
    into,
    left,
    right,
    live,
    width,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the product of two D-by-D matrices."""
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    total = product(left, right, (live, width, width, width, width), TASKS, BLOCK, BLOCK, CHUNK, ACC, PRECISION)
    put(into + i * width + j, total, live & (i < width) & (j < width))


@triton.jit
def put_context_gram(
    into,
    tokens,
    row_stride,
    column_stride,
    count,
    longest,
    live,
    width,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the mean context Gram matrix."""
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    total = product(
        (tokens, column_stride, row_stride),
        (tokens, row_stride, column_stride),
        (live, width, count, width, longest),
        TASKS,
        BLOCK,
        BLOCK,
        CHUNK,
        ACC,
        PRECISION,
    )
    put(into + i * width + j, total / count.to(ACC), live & (i < width) & (j < width))


@triton.jit
def put_gram(
    squares,
    state,
    count,
    context,
    live,
    width,
    SPACE: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores a state's Gram matrix, and in Gram space G_0 X, which the backward reads again."""
    size = tl.cast(TASKS * width * width, tl.int64)
    if SPACE == "gram":
        put_square(
            squares + LIFTED * size,
            (squares + INITIAL * size, width, 1),
            (state, width, 1),
            live,
            width,
            TASKS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        put_square(
            squares + GRAM * size,
            (state, 1, width),
            (squares + LIFTED * size, width, 1),
            live,
            width,
            TASKS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
    else:
        put_context_gram(
            squares + GRAM * size,
            state,
            width,
            1,
            count,
            context,
            live,
            width,
            TASKS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )


@triton.jit
def put_mixed(
    squares,
    first,
    second,
    heads,
    kept,
    live,
    width,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores sum_h first_h G second_h^T for every register: W from (Q, P), its transpose from (P, Q)."""
    size = tl.cast(TASKS * width * width, tl.int64)
    square = tl.cast(width * width, tl.int64)
    together = heads // kept
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    for register in range(kept):
        total = tl.zeros((TASKS, BLOCK, BLOCK), ACC)
        for head in range(register * together, register * together + together):
            put_square(
                squares + HALF * size,
                (first + head * square, width, 1),
                (squares + GRAM * size, width, 1),
                live,
                width,
                TASKS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            total += product(
                (squares + HALF * size, width, 1),
                (second + head * square, 1, width),
                (live, width, width, width, width),
                TASKS,
                BLOCK,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
        put(squares + (MIXED + register) * size + i * width + j, total, live & (i < width) & (j < width))


@triton.jit
def load_coefficient(coefficient, index, rows, width, row, column, TOKENS: tl.constexpr):
    """One (rows or 1, width) entry of a coefficient, (1, ROWS or 1, BLOCK)."""
    if TOKENS:
        own = coefficient + tl.cast(index, tl.int64) * rows * width
        values = tl.load(own + row * width + column, mask=(row < rows) & (column < width), other=0.0)
    else:
        own = coefficient + tl.cast(index, tl.int64) * width
        values = tl.load(own + column, mask=column < width, other=0.0)
    return values


@triton.jit
def load_past(past, which, register, rows, width, entry, mask, ACC: tl.constexpr):
    """Entries of a register from before the first layer, which has the tokens' dtype."""
    pointer, slot = past
    own = pointer + which * slot + register * rows * width
    return tl.load(own + entry, mask=mask, other=0.0).to(ACC)


@triton.jit
def run_layers(
    states,
    state_slot,
    registers,
    squares,
    past,
    parameters,
    sizes,
    count,
    valid_from,
    live,
    SPACE: tl.constexpr,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    PAST: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All layers from the state in `states`; state l goes to its slot l, or all to one where `state_slot` is 0.

    past: (pointer, slot) of registers from before the first layer. Rows that are neither context nor at or past
    `valid_from` are padding, whose registers are zero.
    """
    q, p, gamma, beta = parameters
    rows, width, layers, heads, kept, depth, context = sizes
    tall = tl.cast(TASKS * rows * width, tl.int64)
    size = tl.cast(TASKS * width * width, tl.int64)
    column = tl.arange(0, BLOCK)[None, None, :]
    for layer in range(layers):
        state = states + layer * state_slot
        put_gram(squares, state, count, context, live, width, SPACE, TASKS, BLOCK, CHUNK, ACC, PRECISION)
        matrices = tl.cast(layer * heads, tl.int64) * width * width
        put_mixed(squares, q + matrices, p + matrices, heads, kept, live, width, TASKS, BLOCK, CHUNK, ACC, PRECISION)
        for first in range(0, rows, ROWS):
            row = first + tl.arange(0, ROWS)[None, :, None]
            mask = live & (row < rows) & (column < width)
            entry = row * width + column
            moved = tl.load(state + entry, mask=mask, other=0.0)
            for register in range(kept):
                fresh = product(
                    (state + first * width, width, 1),
                    (squares + (MIXED + register) * size, width, 1),
                    (live, rows - first, width, width, width),
                    TASKS,
                    ROWS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
                if SPACE == "token":
                    fresh = tl.where((row < count) | (row >= valid_from), fresh, 0.0)
                own = registers + (layer * kept + register) * tall + entry
                if BETA:
                    decay = load_coefficient(beta, layer * kept + register, rows, width, row, column, BETA_TOKENS)
                    before = tl.load(own - kept * tall, mask=mask & (layer > 0), other=0.0)
                    if PAST:
                        before += load_past(past, depth - 1, register, rows, width, entry, mask & (layer == 0), ACC)
                    fresh += decay * before
                tl.store(own, fresh, mask=mask)
                total = layers + depth
                if RULE == 0:
                    moved += fresh
                else:
                    index = layer if RULE == 1 else layer * total + depth + layer
                    moved += fresh * load_coefficient(
                        gamma, index * kept + register, rows, width, row, column, GAMMA_TOKENS
                    )
                if RULE == 2:
                    for earlier in range(layer):
                        index = (layer * total + depth + earlier) * kept + register
                        weight = load_coefficient(gamma, index, rows, width, row, column, GAMMA_TOKENS)
                        at = registers + (earlier * kept + register) * tall + entry
                        moved += weight * tl.load(at, mask=mask, other=0.0)
                    if PAST:
                        for earlier in range(depth):
                            index = (layer * total + earlier) * kept + register
                            weight = load_coefficient(gamma, index, rows, width, row, column, GAMMA_TOKENS)
                            moved += weight * load_past(past, earlier, register, rows, width, entry, mask, ACC)
            put(state + state_slot + entry, moved, mask)
