"""Calls of the register update and its backward."""

from typing import NamedTuple

import triton
from torch import Tensor

from memformer_kernels.backends.triton import sums
from memformer_kernels.backends.triton.launch import launch
from memformer_kernels.backends.triton.registers import update_backward_kernel, update_kernel

TILE_NUMBERS = 2048
"""Numbers of a tile: 16 registers of 128 threads for each of the half dozen tiles that a program holds."""

WIDEST_TILE = 128


class RegisterGradients(NamedTuple):
    """Of a register (B, R, M, D), of the gamma that weighed it and of the beta that carried it on, in full, or None."""

    register: Tensor
    gamma: Tensor | None
    beta: Tensor | None


def _tile(width: int) -> tuple[int, int]:
    block = min(WIDEST_TILE, triton.next_power_of_2(width))
    return TILE_NUMBERS // block, block


def _token_axis(coefficient: Tensor | None) -> bool:
    return coefficient is not None and coefficient.shape[-2] > 1


def update(
    state: Tensor,
    fresh: Tensor,
    kept: Tensor | None,
    gamma: Tensor | None,
    before: Tensor | None,
    beta: Tensor | None,
    register: Tensor,
) -> Tensor:
    """The next state (B, M, D), contiguous; the register (B, R, M, D) goes to `register`.

    fresh (B, R, M, D) is the attention output, kept (J, B, R, M, D) the registers that gamma weighs before the new one,
    gamma (J + 1, R, M or 1, D) or None for the new one alone; before (B, R, M, D) and beta (R, M or 1, D) or None.
    """
    batch, heads, rows, width = fresh.shape
    tile_rows, block = _tile(width)
    moved = fresh.new_empty((batch, rows, width))
    programs = batch * triton.cdiv(rows, tile_rows) * triton.cdiv(width, block)
    if programs:
        launch(
            update_kernel,
            programs,
            state,
            fresh.contiguous(),
            before,
            kept,
            gamma,
            beta,
            register,
            moved,
            *state.stride(),
            0 if kept is None else kept.stride(0),
            rows,
            width,
            heads,
            0 if kept is None else kept.shape[0],
            GAMMA_TOKENS=_token_axis(gamma),
            BETA_TOKENS=_token_axis(beta),
            ROWS=tile_rows,
            BLOCK=block,
        )
    return moved


def update_backward(
    updates: Tensor,
    register: Tensor,
    gamma: Tensor | None,
    carried: Tensor | None,
    beta: Tensor | None,
    asked: Tensor | None = None,
) -> RegisterGradients:
    """Gradients of a register from those of the states that read it, updates (K, B, M, D).

    gamma (K, R, M or 1, D) or None for ones; carried (B, R, M, D) is the next register's gradient and beta (R, M or 1,
    D) what it was carried on with, or None; asked (B, R, M, D) is added. Coefficients' gradients are sums over tasks.
    """
    batch, heads, rows, width = register.shape
    tile_rows, block = _tile(width)
    grad = register.new_empty(register.shape)
    # A partial sum for every task where rows are summed; that of a token axis is as large as a task itself.
    gamma_tokens, beta_tokens = _token_axis(gamma), _token_axis(beta)
    lanes = sums.TASKS_A_BLOCK if gamma_tokens or beta_tokens else 1
    blocks, row_blocks = triton.cdiv(batch, lanes), triton.cdiv(rows, tile_rows)

    def partials(coefficient: Tensor | None, tokens: bool) -> Tensor | None:
        if coefficient is None:
            return None
        return register.new_zeros((blocks, 1 if tokens else row_blocks, coefficient.numel()))

    gamma_partials = partials(gamma, gamma_tokens)
    beta_partials = partials(None if carried is None else beta, beta_tokens)
    if batch:
        launch(
            update_backward_kernel,
            blocks * row_blocks * triton.cdiv(width, block),
            updates,
            register,
            gamma,
            carried,
            beta,
            asked,
            grad,
            gamma_partials,
            beta_partials,
            updates.stride(0),
            batch,
            rows,
            width,
            heads,
            updates.shape[0],
            0 if gamma is None else gamma.numel(),
            0 if beta is None else beta.numel(),
            GAMMA_TOKENS=gamma_tokens,
            BETA_TOKENS=beta_tokens,
            LANES=lanes,
            ROWS=tile_rows,
            BLOCK=block,
        )

    def total(parts: Tensor | None, coefficient: Tensor | None) -> Tensor | None:
        if parts is None or coefficient is None:
            return None
        return sums.over_tasks(parts.sum(1), lanes).view(coefficient.shape)

    return RegisterGradients(grad, total(gamma_partials, gamma), total(beta_partials, beta))
