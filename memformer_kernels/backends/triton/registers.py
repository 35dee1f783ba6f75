"""Memory registers of tasks too large for one program: what follows a batched product, in one pass over its result.

    forward   R = att + beta * R_prev;   X' = X + sum_h sum_j gamma_{j,h} * R_{j,h}
    backward  R'_l = sum_k gamma_k * U_k + beta * R'_{l+1};   gamma_k' = sum R_l * U_k;   beta' = sum R_l * R'_{l+1}

where U_k are the gradients of the states that read R_l. A program owns a tile of rows and columns, forward of one task,
backward of several consecutive ones, whose coefficient gradients it adds up in its own partial sum. Every register and
every U_k (once for each head) is read once, every result written once: all is memory traffic.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import sums
from memformer_kernels.backends.triton.coefficients import Entries, add_to_coefficient, load_coefficient
from memformer_kernels.backends.triton.launch import in_slots, launch, strides_of, tasks_a_sum
from memformer_kernels.backends.triton.tiles import inner, wide

TILE_NUMBERS = 2048
"""Numbers of a tile: 16 registers of 128 threads for each of the half dozen tiles that a program holds."""

WIDEST_TILE = 128

WARPS = 4
"""Of a program: as many as Triton takes where it is not told."""

MOST_TERMS = 64
"""Of a sum in one launch: a kernel's arguments have room for some hundreds of addresses."""


class Update(NamedTuple):
    """Tensors of the forward; gamma (earlier + 1, R, M or 1, D), the last of which weights the new register.

    kept: in slots, or None. fresh, register: None where only registers kept are added.
    """

    state: Tensor
    fresh: Tensor | None
    before: Tensor | None
    kept: tuple[Tensor, ...] | None
    gamma: Tensor | None
    beta: Tensor | None
    register: Tensor | None
    moved: Tensor


class Backward(NamedTuple):
    """Tensors of the backward; gamma (later, R, M or 1, D). direct: what reaches the register itself.

    updates: in slots, or None.
    """

    updates: tuple[Tensor, ...] | None
    register: Tensor
    gamma: Tensor | None
    carried: Tensor | None
    beta: Tensor | None
    direct: Tensor | None
    grad: Tensor
    gamma_partials: Tensor | None
    beta_partials: Tensor | None


class Constants(NamedTuple):
    """ROWS, BLOCK: of a tile. TERMS: slots of registers kept or of updates."""

    GAMMA_TOKENS: bool
    BETA_TOKENS: bool
    ROWS: int
    BLOCK: int
    TERMS: int


class Tile(NamedTuple):
    """A program's task or block of tasks, its block of rows, and its rows and columns."""

    i_block: Any
    i_row_block: Any
    i_row: Any
    i_column: Any
    m_entry: Any
    entries: Any


@triton.jit
def owned_tile(rows, width, C: tl.constexpr):
    """The tile of this program."""
    row_blocks = tl.cdiv(rows, C.ROWS)
    column_blocks = tl.cdiv(width, C.BLOCK)
    i_program = tl.program_id(0)
    i_row_block = i_program // column_blocks % row_blocks
    i_row = i_row_block * C.ROWS + tl.arange(0, C.ROWS)[:, None]
    i_column = i_program % column_blocks * C.BLOCK + tl.arange(0, C.BLOCK)[None, :]
    i_block = tl.cast(i_program // column_blocks // row_blocks, tl.int64)
    m_entry = (i_row < rows) & (i_column < width)
    entries = Entries(i_row.to(tl.int64) * width, i_column, m_entry, i_column < width)
    return Tile(i_block, i_row_block, i_row, i_column, m_entry, entries)


@triton.jit(do_not_specialize=["rows", "heads", "others"])
def update_kernel(t, strides, rows, width, heads, others, C: tl.constexpr):
    """register (B, R, M, D) and moved (B, M, D) from fresh (B, R, M, D), the register before and the `others` kept."""
    tile = owned_tile(rows, width, C)
    entries = tile.entries
    s_task, s_row, s_column = wide(strides)
    own = t.state + tile.i_block * s_task + tile.i_row * s_row + tile.i_column * s_column
    total = tl.load(own, mask=tile.m_entry, other=0.0)
    for head in range(heads):
        o_entry = ((tile.i_block * heads + head) * rows + tile.i_row) * width + tile.i_column
        if t.fresh is not None:
            register = tl.load(t.fresh + o_entry, mask=tile.m_entry, other=0.0)
            if t.beta is not None:
                decay = load_coefficient(t.beta, head, rows, width, entries, C.BETA_TOKENS)
                register += decay * tl.load(t.before + o_entry, mask=tile.m_entry, other=0.0)
            tl.store(t.register + o_entry, register, mask=tile.m_entry)
            if t.gamma is None:
                total += register
            else:
                i_own = others * heads + head
                total += register * load_coefficient(t.gamma, i_own, rows, width, entries, C.GAMMA_TOKENS)
        for slot in tl.static_range(C.TERMS):
            past = slot + others - C.TERMS
            if past >= 0:
                weight = load_coefficient(t.gamma, past * heads + head, rows, width, entries, C.GAMMA_TOKENS)
                total += weight * tl.load(t.kept[slot] + o_entry, mask=tile.m_entry, other=0.0)
    tl.store(t.moved + (tile.i_block * rows + tile.i_row) * width + tile.i_column, total, mask=tile.m_entry)


@triton.jit
def add_gradient(into, index, left, right, rows, width, entries, TOKENS: tl.constexpr):
    """Adds left * right to a coefficient's partial sum, summed over rows where the coefficient has no token axis."""
    total = left * right if TOKENS else inner(left, right, 0, keep_dims=True)
    add_to_coefficient(into, index, total, rows, width, entries, TOKENS)


@triton.jit(do_not_specialize=["batch", "rows", "heads", "others", "lanes"])
def update_backward_kernel(t, batch, rows, width, heads, others, lanes, gamma_size, beta_size, C: tl.constexpr):
    """grad (B, R, M, D) of a register from updates (K, B, M, D), the next register's and what reaches it directly.

    others: K. A program has `lanes` tasks. Partial sums: of a block of tasks where the coefficient has a token axis,
    else of a block of tasks and one of rows.
    """
    tile = owned_tile(rows, width, C)
    entries = tile.entries
    i_cell = tile.i_block * tl.cdiv(rows, C.ROWS) + tile.i_row_block
    p_gamma = t.gamma_partials
    p_beta = t.beta_partials
    if t.gamma is not None:
        p_gamma = t.gamma_partials + (tile.i_block if C.GAMMA_TOKENS else i_cell) * gamma_size
    if t.carried is not None:
        p_beta = t.beta_partials + (tile.i_block if C.BETA_TOKENS else i_cell) * beta_size
    for lane in range(tl.minimum(batch - tile.i_block * lanes, lanes)):
        i_task = tile.i_block * lanes + lane
        for head in range(heads):
            o_entry = ((i_task * heads + head) * rows + tile.i_row) * width + tile.i_column
            register = tl.load(t.register + o_entry, mask=tile.m_entry, other=0.0)
            total = tl.zeros_like(register)
            for slot in tl.static_range(C.TERMS):
                index = slot + others - C.TERMS
                if index >= 0:
                    o_update = (i_task * rows + tile.i_row) * width + tile.i_column
                    update = tl.load(t.updates[slot] + o_update, mask=tile.m_entry, other=0.0)
                    if t.gamma is None:
                        total += update
                    else:
                        i_weight = index * heads + head
                        total += update * load_coefficient(t.gamma, i_weight, rows, width, entries, C.GAMMA_TOKENS)
                        add_gradient(p_gamma, i_weight, register, update, rows, width, entries, C.GAMMA_TOKENS)
            if t.carried is not None:
                following = tl.load(t.carried + o_entry, mask=tile.m_entry, other=0.0)
                total += following * load_coefficient(t.beta, head, rows, width, entries, C.BETA_TOKENS)
                add_gradient(p_beta, head, register, following, rows, width, entries, C.BETA_TOKENS)
            if t.direct is not None:
                total += tl.load(t.direct + o_entry, mask=tile.m_entry, other=0.0)
            tl.store(t.grad + o_entry, total, mask=tile.m_entry)


class RegisterGradients(NamedTuple):
    """Of a register (B, R, M, D), of the gamma that weights it and of the beta that carries it on, in full, or None."""

    register: Tensor
    gamma: Tensor | None
    beta: Tensor | None


def _constants(width: int, gamma: Tensor | None, beta: Tensor | None, terms: int) -> Constants:
    tokens = [x is not None and x.shape[-2] > 1 for x in (gamma, beta)]
    block = min(WIDEST_TILE, triton.next_power_of_2(width))
    return Constants(tokens[0], tokens[1], TILE_NUMBERS // block, block, terms)


def update(
    state: Tensor,
    fresh: Tensor | None,
    kept: Sequence[Tensor],
    gamma: Tensor | None,
    before: Tensor | None,
    beta: Tensor | None,
    register: Tensor | None,
) -> Tensor:
    """The next state (B, M, D), contiguous; the register (B, R, M, D) goes to `register`.

    fresh (B, R, M, D) is the attention output, kept (B, R, M, D) each, contiguous, are the registers that gamma weights
    before the new one, gamma (J + 1, R, M or 1, D) or None for the new one alone; before (B, R, M, D) and beta (R, M
    or 1, D) or None. Without fresh and register kept ones alone are added, by a gamma of J.
    """
    while len(kept) > MOST_TERMS:
        assert gamma is not None
        state = update(state, None, kept[:MOST_TERMS], gamma[:MOST_TERMS], None, None, None)
        kept, gamma = kept[MOST_TERMS:], gamma[MOST_TERMS:]
    batch, heads, rows, width = (kept[0] if fresh is None else fresh).shape
    slots = in_slots(tuple(kept))
    constants = _constants(width, gamma, beta, len(slots))
    moved = torch.empty_like(state, memory_format=torch.contiguous_format)
    programs = batch * triton.cdiv(rows, constants.ROWS) * triton.cdiv(width, constants.BLOCK)
    if programs:
        made = None if fresh is None else fresh.contiguous()
        launch(
            update_kernel,
            programs,
            t=Update(state, made, before, slots or None, gamma, beta, register, moved),
            strides=strides_of(state),
            rows=rows,
            width=width,
            heads=heads,
            others=len(kept),
            C=constants,
        )
    return moved


def update_backward(
    updates: Sequence[Tensor],
    register: Tensor,
    gamma: Tensor | None,
    carried: Tensor | None,
    beta: Tensor | None,
    direct: Tensor | None = None,
) -> RegisterGradients:
    """Gradients of a register from those of the K states that read it, updates (B, M, D), each contiguous.

    gamma (K, R, M or 1, D) or None for ones; carried (B, R, M, D) is the next register's gradient and beta (R, M or 1,
    D) what it was carried on with, or None; direct (B, R, M, D) is added. Coefficients' gradients are sums over tasks.
    """
    earlier: list[Tensor] = []
    while len(updates) > MOST_TERMS:
        assert gamma is not None
        some = update_backward(updates[:MOST_TERMS], register, gamma[:MOST_TERMS], None, None, direct)
        assert some.gamma is not None
        earlier.append(some.gamma)
        updates, gamma, direct = updates[MOST_TERMS:], gamma[MOST_TERMS:], some.register
    batch, heads, rows, width = register.shape
    slots = in_slots(tuple(updates))
    constants = _constants(width, gamma, beta, len(slots))
    row_blocks, column_blocks = triton.cdiv(rows, constants.ROWS), triton.cdiv(width, constants.BLOCK)
    # A partial sum for every task where rows are summed; that of a token axis is as large as a task itself.
    has_tokens = constants.GAMMA_TOKENS or constants.BETA_TOKENS
    numbers = sum(x.numel() for x in (gamma, beta) if x is not None)
    tiles = row_blocks * column_blocks
    lanes = tasks_a_sum(register, batch, 1, WARPS, tiles, numbers=numbers) if has_tokens else 1
    blocks = triton.cdiv(batch, lanes)

    def partials(coefficient: Tensor | None, tokens: bool) -> Tensor | None:
        if coefficient is None:
            return None
        return register.new_zeros((blocks, 1 if tokens else row_blocks, coefficient.numel()))

    def total(parts: Tensor | None, coefficient: Tensor | None) -> Tensor | None:
        if parts is None or coefficient is None:
            return None
        return sums.over_tasks(parts.sum(1), lanes).view(coefficient.shape)

    t = Backward(
        slots or None,
        register,
        gamma,
        carried,
        beta,
        direct,
        register.new_empty(register.shape),
        partials(gamma, constants.GAMMA_TOKENS),
        partials(None if carried is None else beta, constants.BETA_TOKENS),
    )
    if batch:
        launch(
            update_backward_kernel,
            blocks * tiles,
            t=t,
            batch=batch,
            rows=rows,
            width=width,
            heads=heads,
            others=len(updates),
            lanes=lanes,
            gamma_size=0 if gamma is None else gamma.numel(),
            beta_size=0 if beta is None else beta.numel(),
            C=constants,
        )
    gamma_grad = total(t.gamma_partials, gamma)
    if earlier and gamma_grad is not None:
        gamma_grad = torch.cat([*earlier, gamma_grad])
    return RegisterGradients(t.grad, gamma_grad, total(t.beta_partials, beta))
