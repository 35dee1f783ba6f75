"""One layer's backward: the gradients of its registers, of its matrices and of its state, in a program's scratch."""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.coefficients import add_to_coefficient
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
    load_beta,
    load_gamma,
    load_past,
    put_square,
    row_tile,
)
from memformer_kernels.backends.triton.tiles import add_to, inner, product, put


@triton.jit
def add_gradient(into, index, left, right, tile, n, TOKENS: tl.constexpr):
    """Adds left * right, summed over tasks and, where the coefficient has no token axis, over tokens."""
    summed = inner(left, right, 0, keep_dims=True)
    total = summed if TOKENS else tl.sum(summed, 1, keep_dims=True)
    add_to_coefficient(into, index, total, n.rows, n.width, tile.entries, TOKENS)


@triton.jit
def put_register_gradients(t, register_out_grad, past_grad, partial, layer, memory, own, n, C: tl.constexpr):
    """Stores R'_l over R_l, and adds the gradients of gamma and beta that this layer's registers bring.

    Registers from before the first layer belong to a call of one layer: their gradients are stored with it.
    """
    total = n.layers + n.depth
    gammas = partial + tl.cast(n.layers * n.heads, tl.int64) * n.width * n.width * (2 if C.P_GRAD else 1)
    gamma_rows = n.rows if C.GAMMA_TOKENS else 1
    betas = gammas
    if C.RULE == 1:
        betas = gammas + tl.cast(n.layers * n.kept, tl.int64) * gamma_rows * n.width
    if C.RULE == 2:
        betas = gammas + tl.cast(n.layers * total * n.kept, tl.int64) * gamma_rows * n.width
    for first in range(0, n.rows, C.ROWS):
        tile = row_tile(first, own.m_task, n, C)
        update = tl.load(memory.grads + (layer + 1) * memory.slot + tile.o_entry, mask=tile.m_entry, other=0.0)
        for register in range(n.kept):
            p_register = memory.registers + layer * memory.register_slot + register * memory.slot + tile.o_entry
            value = tl.load(p_register, mask=tile.m_entry, other=0.0)
            grad = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
            if C.RULE == 0:
                grad += update
            else:
                index = layer if C.RULE == 1 else layer * total + n.depth + layer
                index = index * n.kept + register
                grad += update * load_gamma(t, index, tile, n, C)
                add_gradient(gammas, index, value, update, tile, n, C.GAMMA_TOKENS)
            if C.RULE == 2:
                for later in range(layer + 1, n.layers):
                    index = (later * total + n.depth + layer) * n.kept + register
                    p_later = memory.grads + (later + 1) * memory.slot + tile.o_entry
                    from_later = tl.load(p_later, mask=tile.m_entry, other=0.0)
                    grad += from_later * load_gamma(t, index, tile, n, C)
                    add_gradient(gammas, index, value, from_later, tile, n, C.GAMMA_TOKENS)
            if t.beta is not None:
                m_later = tile.m_entry & (layer < n.layers - 1)
                carried = tl.load(p_register + memory.register_slot, mask=m_later, other=0.0)
                index = tl.minimum(layer + 1, n.layers - 1) * n.kept + register
                grad += carried * load_beta(t, index, tile, n, C)
                if layer < n.layers - 1:
                    add_gradient(betas, index, value, carried, tile, n, C.BETA_TOKENS)
            if register_out_grad is not None:
                p_out = register_out_grad + (own.i_task * n.kept + register) * n.rows * n.width + tile.o_entry
                grad += tl.load(p_out, mask=tile.m_entry, other=0.0).to(C.ACC)
            put(p_register, grad, tile.m_entry)
            if C.PAST:
                store_past_gradients(t, past_grad, gammas, betas, update, grad, register, tile, own, n, C)


@triton.jit
def store_past_gradients(t, past_grad, gammas, betas, update, grad, register, tile, own, n, C: tl.constexpr):
    """Gradients of the registers from before, of one head, where needed, and what these bring to gamma and beta."""
    for slot in tl.static_range(C.PAST):
        earlier = slot + n.depth - C.PAST
        if earlier >= 0:
            before = load_past(t.past[slot], register, tile.o_entry, tile.m_entry, own, n, C.ACC)
            before_grad = tl.zeros((C.TASKS, C.ROWS, C.BLOCK), C.ACC)
            if C.RULE == 2:
                index = earlier * n.kept + register
                before_grad += update * load_gamma(t, index, tile, n, C)
                add_gradient(gammas, index, before, update, tile, n, C.GAMMA_TOKENS)
            if t.beta is not None and slot == C.PAST - 1:
                before_grad += grad * load_beta(t, register, tile, n, C)
                add_gradient(betas, register, before, grad, tile, n, C.BETA_TOKENS)
            if past_grad is not None:
                p_grad = past_grad + earlier * own.past_slot + register * n.rows * n.width
                tl.store(p_grad + tile.o_entry, before_grad, mask=tile.m_entry)


@triton.jit
def add_head_gradients(gram_grad, partial, layer, head, q, p, memory, own, n, C: tl.constexpr):
    """Adds the gradients of one head's q and p to a partial sum; gram_grad plus what the head brings to G'."""
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    matrix_size = tl.cast(n.width * n.width, tl.int64)
    m_square = (i < n.width) & (j < n.width)
    narrow = (own.m_task, n.width, n.width, n.width, n.width)
    gram = memory.squares + GRAM * memory.square
    half = memory.squares + HALF * memory.square
    projected = memory.squares + PROJECTED * memory.square
    mixed_grad = memory.squares + MIXED_GRAD * memory.square
    turned = memory.squares + MIXED_GRAD_TURNED * memory.square
    matrix = head * matrix_size
    p_partial = partial + (layer * n.heads + head) * matrix_size + (i * n.width + j)
    put_square(PROJECTED, (mixed_grad, n.width, 1), (p + matrix, n.width, 1), memory, own, n, C)
    q_grad = product((projected, n.width, 1), (gram, n.width, 1), narrow, C.BLOCK, C.BLOCK, C)
    add_to(p_partial, tl.sum(q_grad, 0, keep_dims=True), m_square)
    gram_grad += product((q + matrix, 1, n.width), (projected, n.width, 1), narrow, C.BLOCK, C.BLOCK, C)
    if C.P_GRAD:
        put_square(HALF, (q + matrix, n.width, 1), (gram, n.width, 1), memory, own, n, C)
        p_grad = product((turned, n.width, 1), (half, n.width, 1), narrow, C.BLOCK, C.BLOCK, C)
        add_to(p_partial + n.layers * n.heads * matrix_size, tl.sum(p_grad, 0, keep_dims=True), m_square)
    return gram_grad


@triton.jit
def add_matrix_gradients(partial, layer, state, q, p, NEED_INITIAL: tl.constexpr, memory, own, n, C: tl.constexpr):
    """Adds the gradients of q, p and, where asked for, G_0; stores G' + G'^T, on tokens divided by n."""
    together = n.heads // n.kept
    i = tl.arange(0, C.BLOCK)[None, :, None]
    j = tl.arange(0, C.BLOCK)[None, None, :]
    o_entry = i * n.width + j
    m_entry = own.m_task & (i < n.width) & (j < n.width)
    bounds = (own.m_task, n.width, n.rows, n.width, n.rows)
    half = memory.squares + HALF * memory.square
    gram_grads = memory.squares + GRAM_GRAD * memory.square
    gram_grad = tl.zeros((C.TASKS, C.BLOCK, C.BLOCK), C.ACC)
    for register in range(n.kept):
        grads = memory.registers + layer * memory.register_slot + register * memory.slot
        mixed_grad = product((state, 1, n.width), (grads, n.width, 1), bounds, C.BLOCK, C.BLOCK, C)
        put(memory.squares + MIXED_GRAD * memory.square + o_entry, mixed_grad, m_entry)
        if C.P_GRAD:
            turned = product((grads, 1, n.width), (state, n.width, 1), bounds, C.BLOCK, C.BLOCK, C)
            put(memory.squares + MIXED_GRAD_TURNED * memory.square + o_entry, turned, m_entry)
        for head in range(register * together, register * together + together):
            gram_grad = add_head_gradients(gram_grad, partial, layer, head, q, p, memory, own, n, C)
    put(gram_grads + o_entry, gram_grad, m_entry)
    both = gram_grad + tl.load(gram_grads + j * n.width + i, mask=m_entry, other=0.0)
    if C.SPACE == "token":
        both = both / own.count.to(C.ACC)
    put(memory.squares + SYMMETRIC * memory.square + o_entry, both, m_entry)
    if C.SPACE == "gram" and NEED_INITIAL:
        put_square(HALF, (state, n.width, 1), (gram_grads, n.width, 1), memory, own, n, C)
        narrow = (own.m_task, n.width, n.width, n.width, n.width)
        initial_grad = product((half, n.width, 1), (state, 1, n.width), narrow, C.BLOCK, C.BLOCK, C)
        add_to(memory.squares + INITIAL_GRAD * memory.square + o_entry, initial_grad, m_entry)


@triton.jit
def put_state_gradient(layer, state, memory, own, n, C: tl.constexpr):
    """Stores the gradient of X_l: that of X_{l+1}, what the attention brings, and what the Gram matrix brings."""
    into = memory.grads + layer * memory.slot
    register_grads = memory.registers + layer * memory.register_slot
    for first in range(0, n.rows, C.ROWS):
        tile = row_tile(first, own.m_task, n, C)
        bounds = (own.m_task, n.rows - first, n.width, n.width, n.width)
        total = tl.load(into + memory.slot + tile.o_entry, mask=tile.m_entry, other=0.0)
        for register in range(n.kept):
            total += product(
                (register_grads + register * memory.slot + first * n.width, n.width, 1),
                (memory.squares + (MIXED + register) * memory.square, n.width, 1),
                bounds,
                C.ROWS,
                C.BLOCK,
                C,
            )
        lifted = state
        if C.SPACE == "gram":
            lifted = memory.squares + LIFTED * memory.square
        symmetric = memory.squares + SYMMETRIC * memory.square
        through = product((lifted + first * n.width, n.width, 1), (symmetric, n.width, 1), bounds, C.ROWS, C.BLOCK, C)
        if C.SPACE == "token":
            through = tl.where(tile.i_row < own.count, through, 0.0)
        put(into + tile.o_entry, total + through, tile.m_entry)
