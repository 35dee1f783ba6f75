"""Memory registers of tasks too large for one program: what follows a batched product, in one pass over its result.

    forward   R = att + beta * R_prev;   X' = X + sum_h sum_j gamma_{j,h} * R_{j,h}
    backward  R'_l = sum_k gamma_k * U_k + beta * R'_{l+1};   gamma_k' = sum R_l * U_k;   beta' = sum R_l * R'_{l+1}

where U_k are the gradients of the states that read R_l. A program owns a tile of rows and columns, forward of one task,
backward of LANES consecutive ones, whose coefficient gradients it adds up in its own partial sum. Every register and
every U_k (once for each head) is read once, every result written once: all is memory traffic.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.tiles import add_to, inner, wide


@triton.jit
def load_weight(coefficient, index, rows, width, row, column, TOKENS: tl.constexpr):
    """One (rows or 1, width) entry of a coefficient, (ROWS or 1, BLOCK)."""
    if TOKENS:
        own = coefficient + tl.cast(index, tl.int64) * rows * width
        values = tl.load(own + row.to(tl.int64) * width + column, mask=(row < rows) & (column < width), other=0.0)
    else:
        own = coefficient + tl.cast(index, tl.int64) * width
        values = tl.load(own + column, mask=column < width, other=0.0)
    return values


@triton.jit
def owned_tile(rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's task or block of tasks, which of its blocks of rows, and its rows and columns."""
    row_blocks = tl.cdiv(rows, ROWS)
    column_blocks = tl.cdiv(width, BLOCK)
    program = tl.program_id(0)
    row_block = program // column_blocks % row_blocks
    row = row_block * ROWS + tl.arange(0, ROWS)[:, None]
    column = program % column_blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.cast(program // column_blocks // row_blocks, tl.int64), row_block, row, column


@triton.jit(do_not_specialize=["rows", "heads", "earlier"])
def update_kernel(
    state,
    fresh,
    before,
    kept,
    gamma,
    beta,
    register,
    moved,
    state_task,
    state_row,
    state_column,
    kept_slot,
    rows,
    width,
    heads,
    earlier,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """register (B, R, M, D) and moved (B, M, D) from fresh (B, R, M, D), the register before and the `earlier` kept.

    gamma (earlier + 1, R, M or 1, D), the last of which weighs the new register; beta (R, M or 1, D).
    """
    task, _, row, column = owned_tile(rows, width, ROWS, BLOCK)
    mask = (row < rows) & (column < width)
    state_task, state_row, state_column = wide((state_task, state_row, state_column))
    own = state + task * state_task + row * state_row + column * state_column
    total = tl.load(own, mask=mask, other=0.0)
    for head in range(heads):
        at = ((task * heads + head) * rows + row) * width + column
        made = tl.load(fresh + at, mask=mask, other=0.0)
        if beta is not None:
            decay = load_weight(beta, head, rows, width, row, column, BETA_TOKENS)
            made += decay * tl.load(before + at, mask=mask, other=0.0)
        tl.store(register + at, made, mask=mask)
        if gamma is None:
            total += made
        else:
            index = earlier * heads + head
            total += made * load_weight(gamma, index, rows, width, row, column, GAMMA_TOKENS)
            if kept is not None:
                for past in range(earlier):
                    weight = load_weight(gamma, past * heads + head, rows, width, row, column, GAMMA_TOKENS)
                    slot = kept + tl.cast(past, tl.int64) * kept_slot
                    total += weight * tl.load(slot + at, mask=mask, other=0.0)
    tl.store(moved + (task * rows + row) * width + column, total, mask=mask)


@triton.jit
def add_weight_gradient(into, index, left, right, rows, width, row, column, TOKENS: tl.constexpr):
    """Adds left * right to a coefficient's partial sum, summed over rows where the coefficient has no token axis."""
    if TOKENS:
        own = into + tl.cast(index, tl.int64) * rows * width
        add_to(own + row.to(tl.int64) * width + column, left * right, (row < rows) & (column < width))
    else:
        own = into + tl.cast(index, tl.int64) * width
        add_to(own + column, inner(left, right, 0, keep_dims=True), column < width)


@triton.jit(do_not_specialize=["batch", "rows", "heads", "later"])
def update_backward_kernel(
    updates,
    register,
    gamma,
    carried,
    beta,
    asked,
    grad,
    gamma_partials,
    beta_partials,
    updates_slot,
    batch,
    rows,
    width,
    heads,
    later,
    gamma_size,
    beta_size,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad (B, R, M, D) of a register from updates (later, B, M, D), the next register's gradient and what was asked.

    gamma (later, R, M or 1, D). Partial sums: gamma_size or beta_size numbers for a block of tasks where the
    coefficient has a token axis, else for a block of tasks and one of rows.
    """
    block, row_block, row, column = owned_tile(rows, width, ROWS, BLOCK)
    inside = (row < rows) & (column < width)
    cell = block * tl.cdiv(rows, ROWS) + row_block
    own_gamma = gamma_partials
    own_beta = beta_partials
    if gamma is not None:
        own_gamma = gamma_partials + (block if GAMMA_TOKENS else cell) * gamma_size
    if carried is not None:
        own_beta = beta_partials + (block if BETA_TOKENS else cell) * beta_size
    for lane in range(tl.minimum(batch - block * LANES, LANES)):
        task = block * LANES + lane
        for head in range(heads):
            at = ((task * heads + head) * rows + row) * width + column
            made = tl.load(register + at, mask=inside, other=0.0)
            total = tl.zeros_like(made)
            for index in range(later):
                slot = updates + tl.cast(index, tl.int64) * updates_slot
                update = tl.load(slot + (task * rows + row) * width + column, mask=inside, other=0.0)
                if gamma is None:
                    total += update
                else:
                    entry = index * heads + head
                    total += update * load_weight(gamma, entry, rows, width, row, column, GAMMA_TOKENS)
                    add_weight_gradient(own_gamma, entry, made, update, rows, width, row, column, GAMMA_TOKENS)
            if carried is not None:
                following = tl.load(carried + at, mask=inside, other=0.0)
                total += following * load_weight(beta, head, rows, width, row, column, BETA_TOKENS)
                add_weight_gradient(own_beta, head, made, following, rows, width, row, column, BETA_TOKENS)
            if asked is not None:
                total += tl.load(asked + at, mask=inside, other=0.0)
            tl.store(grad + at, total, mask=inside)
