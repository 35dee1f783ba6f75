"""One layer's backward: the gradients of its registers, of its matrices and of its state, in a program's scratch."""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.layers import (
    GRAM,
    GRAM_GRAD,
    HALF,
    INITIAL_GRAD,
    LIFTED,
    MIXED,
    MIXED_GRAD,
    MIXED_GRAD_TURNED,
    PROJECTED,
    SYMMETRIC,
    load_coefficient,
    load_past,
    put_square,
)
from memformer_kernels.backends.triton.tiles import add_to, inner, product, put


@triton.jit
def add_coefficient_gradient(into, index, left, right, rows, width, row, column, TOKENS: tl.constexpr):
    """Adds left * right, summed over tasks and, where the coefficient has no token axis, over tokens."""
    summed = inner(left, right, 0, keep_dims=True)
    if TOKENS:
        own = into + tl.cast(index, tl.int64) * rows * width
        add_to(own + row * width + column, summed, (row < rows) & (column < width))
    else:
        own = into + tl.cast(index, tl.int64) * width
        add_to(own + column, tl.sum(summed, 1, keep_dims=True), column < width)


@triton.jit
def put_register_gradients(
    partial,
    layer,
    grads,
    registers,
    register_grads,
    register_out_grad,
    past,
    gamma,
    beta,
    task,
    sizes,
    live,
    P_GRAD: tl.constexpr,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    PAST: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Stores R'_l over R'_{l+1}, and adds the gradients of gamma and beta that this layer's registers bring.

    Registers from before the first layer belong to a call of one layer: their gradients are stored with it.
    """
    rows, width, layers, heads, kept, depth, _ = sizes
    past_pointer, past_grad, past_slot = past
    tall = tl.cast(TASKS * rows * width, tl.int64)
    total = layers + depth
    column = tl.arange(0, BLOCK)[None, None, :]
    gammas = partial + tl.cast(layers * heads, tl.int64) * width * width * (2 if P_GRAD else 1)
    gamma_rows = rows if GAMMA_TOKENS else 1
    betas = gammas
    if RULE == 1:
        betas = gammas + tl.cast(layers * kept, tl.int64) * gamma_rows * width
    if RULE == 2:
        betas = gammas + tl.cast(layers * total * kept, tl.int64) * gamma_rows * width
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[None, :, None]
        mask = live & (row < rows) & (column < width)
        entry = row * width + column
        update = tl.load(grads + (layer + 1) * tall + entry, mask=mask, other=0.0)
        for register in range(kept):
            made = tl.load(registers + (layer * kept + register) * tall + entry, mask=mask, other=0.0)
            grad = tl.zeros((TASKS, ROWS, BLOCK), ACC)
            if RULE == 0:
                grad += update
            else:
                index = layer if RULE == 1 else layer * total + depth + layer
                index = index * kept + register
                grad += update * load_coefficient(gamma, index, rows, width, row, column, GAMMA_TOKENS)
                add_coefficient_gradient(gammas, index, made, update, rows, width, row, column, GAMMA_TOKENS)
            if RULE == 2:
                for later in range(layer + 1, layers):
                    index = (later * total + depth + layer) * kept + register
                    from_later = tl.load(grads + (later + 1) * tall + entry, mask=mask, other=0.0)
                    grad += from_later * load_coefficient(gamma, index, rows, width, row, column, GAMMA_TOKENS)
                    add_coefficient_gradient(gammas, index, made, from_later, rows, width, row, column, GAMMA_TOKENS)
            slot = register_grads + register * tall + entry
            if BETA:
                # At the last layer there is no later register, and the slot still holds another task's gradient.
                following = mask & (layer < layers - 1)
                carried = tl.load(slot, mask=following, other=0.0)
                index = tl.minimum(layer + 1, layers - 1) * kept + register
                grad += carried * load_coefficient(beta, index, rows, width, row, column, BETA_TOKENS)
                if layer < layers - 1:
                    add_coefficient_gradient(betas, index, made, carried, rows, width, row, column, BETA_TOKENS)
            if register_out_grad is not None:
                asked = register_out_grad + (task * kept + register) * rows * width + entry
                grad += tl.load(asked, mask=mask, other=0.0).to(ACC)
            put(slot, grad, mask)
            if PAST:
                for earlier in range(depth):
                    before = load_past((past_pointer, past_slot), earlier, register, rows, width, entry, mask, ACC)
                    before_grad = tl.zeros((TASKS, ROWS, BLOCK), ACC)
                    if RULE == 2:
                        index = earlier * kept + register
                        before_grad += update * load_coefficient(gamma, index, rows, width, row, column, GAMMA_TOKENS)
                        add_coefficient_gradient(gammas, index, before, update, rows, width, row, column, GAMMA_TOKENS)
                    if BETA:
                        decay = load_coefficient(beta, register, rows, width, row, column, BETA_TOKENS)
                        before_grad += tl.where(earlier == depth - 1, grad * decay, 0.0)
                        last = tl.where(earlier == depth - 1, before, 0.0)
                        add_coefficient_gradient(betas, register, last, grad, rows, width, row, column, BETA_TOKENS)
                    own_grad = past_grad + earlier * past_slot + register * rows * width
                    tl.store(own_grad + entry, before_grad, mask=mask)


@triton.jit
def add_matrix_gradients(
    partial,
    layer,
    state,
    register_grads,
    squares,
    q,
    p,
    sizes,
    count,
    live,
    SPACE: tl.constexpr,
    P_GRAD: tl.constexpr,
    INITIAL: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the gradients of q, p and, where asked for, G_0; stores G' + G'^T, on tokens divided by n."""
    rows, width, layers, heads, kept, _, _ = sizes
    tall = tl.cast(TASKS * rows * width, tl.int64)
    size = tl.cast(TASKS * width * width, tl.int64)
    matrix_size = tl.cast(width * width, tl.int64)
    together = heads // kept
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    entry = i * width + j
    square = (i < width) & (j < width)
    mask = live & square
    bounds = (live, width, rows, width, rows)
    narrow = (live, width, width, width, width)
    gram = squares + GRAM * size
    gram_grad = tl.zeros((TASKS, BLOCK, BLOCK), ACC)
    for register in range(kept):
        own = register_grads + register * tall
        mixed_grad = product((state, 1, width), (own, width, 1), bounds, TASKS, BLOCK, BLOCK, CHUNK, ACC, PRECISION)
        put(squares + MIXED_GRAD * size + entry, mixed_grad, mask)
        if P_GRAD:
            turned = product((own, 1, width), (state, width, 1), bounds, TASKS, BLOCK, BLOCK, CHUNK, ACC, PRECISION)
            put(squares + MIXED_GRAD_TURNED * size + entry, turned, mask)
        for head in range(register * together, register * together + together):
            matrix = head * matrix_size
            place = partial + (layer * heads + head) * matrix_size + entry
            put_square(
                squares + PROJECTED * size,
                (squares + MIXED_GRAD * size, width, 1),
                (p + matrix, width, 1),
                live,
                width,
                TASKS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            q_grad = product(
                (squares + PROJECTED * size, width, 1),
                (gram, width, 1),
                narrow,
                TASKS,
                BLOCK,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            add_to(place, tl.sum(q_grad, 0, keep_dims=True), square)
            gram_grad += product(
                (q + matrix, 1, width),
                (squares + PROJECTED * size, width, 1),
                narrow,
                TASKS,
                BLOCK,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
            if P_GRAD:
                put_square(
                    squares + HALF * size,
                    (q + matrix, width, 1),
                    (gram, width, 1),
                    live,
                    width,
                    TASKS,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
                p_grad = product(
                    (squares + MIXED_GRAD_TURNED * size, width, 1),
                    (squares + HALF * size, width, 1),
                    narrow,
                    TASKS,
                    BLOCK,
                    BLOCK,
                    CHUNK,
                    ACC,
                    PRECISION,
                )
                add_to(place + layers * heads * matrix_size, tl.sum(p_grad, 0, keep_dims=True), square)
    put(squares + GRAM_GRAD * size + entry, gram_grad, mask)
    both = gram_grad + tl.load(squares + GRAM_GRAD * size + j * width + i, mask=mask, other=0.0)
    if SPACE == "token":
        both = both / count.to(ACC)
    put(squares + SYMMETRIC * size + entry, both, mask)
    if SPACE == "gram" and INITIAL:
        put_square(
            squares + HALF * size,
            (state, width, 1),
            (squares + GRAM_GRAD * size, width, 1),
            live,
            width,
            TASKS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        initial_grad = product(
            (squares + HALF * size, width, 1),
            (state, 1, width),
            narrow,
            TASKS,
            BLOCK,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        add_to(squares + INITIAL_GRAD * size + entry, initial_grad, mask)


@triton.jit
def put_state_gradient(
    state,
    grad,
    into,
    register_grads,
    squares,
    sizes,
    count,
    live,
    SPACE: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the gradient of X_l: that of X_{l+1}, what the attention brings, and what the Gram matrix brings."""
    rows, width, _, _, kept, _, _ = sizes
    tall = tl.cast(TASKS * rows * width, tl.int64)
    size = tl.cast(TASKS * width * width, tl.int64)
    column = tl.arange(0, BLOCK)[None, None, :]
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[None, :, None]
        mask = live & (row < rows) & (column < width)
        entry = row * width + column
        bounds = (live, rows - first, width, width, width)
        total = tl.load(grad + entry, mask=mask, other=0.0)
        for register in range(kept):
            total += product(
                (register_grads + register * tall + first * width, width, 1),
                (squares + (MIXED + register) * size, width, 1),
                bounds,
                TASKS,
                ROWS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
        lifted = state
        if SPACE == "gram":
            lifted = squares + LIFTED * size
        through = product(
            (lifted + first * width, width, 1),
            (squares + SYMMETRIC * size, width, 1),
            bounds,
            TASKS,
            ROWS,
            BLOCK,
            CHUNK,
            ACC,
            PRECISION,
        )
        if SPACE == "token":
            through = tl.where(row < count, through, 0.0)
        put(into + entry, total + through, mask)
