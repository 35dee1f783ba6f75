"""z + sum_j gamma_j * R_j, and the gradients of the registers and of gamma, in one pass each.

A program owns a tile of a matrix of entries: rows along which gamma stays (C entries each) or, where C = 1, columns
along which it stays (A entries each). Bytes per entry: J + 1 numbers read and one written; backward J + 1 read, J
written and 1/64 or less of a register in partial sums, which are then added in one order. J multiply-adds, backward J
more.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.launch import launch, triton_type
from memformer_kernels.backends.triton.tiles import inner
from memformer_kernels.calls.arguments import compute_dtype

_ENTRIES = 4096
"""Of a tile: 32 registers of 128 threads for each of the gradient, a register and their product."""


class Sizes(NamedTuple):
    """Of the matrix (rows, columns), whose rows repeat gamma's `middle` entries, and its tiles from left to right."""

    rows: Any
    columns: Any
    middle: Any
    column_blocks: Any


class Constants(NamedTuple):
    """COUNT: registers. FOLLOWS: gamma goes along columns, not along rows. ROWS, COLUMNS: of a tile."""

    COUNT: int
    FOLLOWS: bool
    ROWS: int
    COLUMNS: int
    ACC: tl.dtype


class Tile(NamedTuple):
    """Offsets of entries and of their coefficients within gamma_j, and which of both exist."""

    o_entry: Any
    m_entry: Any
    o_weight: Any
    m_weight: Any


@triton.jit
def owned_tile(sizes, C: tl.constexpr):
    """The tile of this program."""
    i_row = tl.cast(tl.program_id(0) // sizes.column_blocks, tl.int64) * C.ROWS + tl.arange(0, C.ROWS)[:, None]
    i_column = tl.cast(tl.program_id(0) % sizes.column_blocks, tl.int64) * C.COLUMNS + tl.arange(0, C.COLUMNS)[None, :]
    o_weight = i_column if C.FOLLOWS else i_row % sizes.middle
    m_weight = i_column < sizes.columns if C.FOLLOWS else i_row < sizes.rows
    o_entry = i_row * sizes.columns + i_column
    return Tile(o_entry, (i_row < sizes.rows) & (i_column < sizes.columns), o_weight, m_weight)


# Loads of a row are as wide as its length lets them be: `columns` are compiled for.
@triton.jit(do_not_specialize=["rows", "middle", "column_blocks"])
def update_kernel(z, registers, gamma, out, rows, columns, middle, column_blocks, C: tl.constexpr):
    """out = z + sum_j gamma_j * R_j."""
    sizes = Sizes(rows, columns, middle, column_blocks)
    tile = owned_tile(sizes, C)
    total = tl.load(z + tile.o_entry, mask=tile.m_entry, other=0.0).to(C.ACC)
    for j in tl.static_range(C.COUNT):
        p_weight = gamma + j * tl.cast(sizes.middle, tl.int64) + tile.o_weight
        weight = tl.load(p_weight, mask=tile.m_weight, other=0.0).to(C.ACC)
        total += weight * tl.load(registers[j] + tile.o_entry, mask=tile.m_entry, other=0.0).to(C.ACC)
    tl.store(out + tile.o_entry, total, mask=tile.m_entry)


@triton.jit(do_not_specialize=["rows", "middle", "column_blocks"])
def update_backward_kernel(
    grad, registers, gamma, outs, partials, rows, columns, middle, column_blocks, C: tl.constexpr
):
    """outs: gradients of the registers. partials: (row blocks, J, columns) or (column blocks, J, rows)."""
    sizes = Sizes(rows, columns, middle, column_blocks)
    tile = owned_tile(sizes, C)
    own = tl.load(grad + tile.o_entry, mask=tile.m_entry, other=0.0).to(C.ACC)
    for j in tl.static_range(C.COUNT):
        p_weight = gamma + j * tl.cast(sizes.middle, tl.int64) + tile.o_weight
        weight = tl.load(p_weight, mask=tile.m_weight, other=0.0).to(C.ACC)
        tl.store(outs[j] + tile.o_entry, weight * own, mask=tile.m_entry)
        register = tl.load(registers[j] + tile.o_entry, mask=tile.m_entry, other=0.0).to(C.ACC)
        i_row_block = tl.cast(tl.program_id(0) // sizes.column_blocks, tl.int64)
        i_column_block = tl.cast(tl.program_id(0) % sizes.column_blocks, tl.int64)
        if C.FOLLOWS:
            i_column = i_column_block * C.COLUMNS + tl.arange(0, C.COLUMNS)
            p_partial = partials + (i_row_block * C.COUNT + j) * sizes.columns + i_column
            tl.store(p_partial, inner(own, register, 0), mask=i_column < sizes.columns)
        else:
            i_row = i_row_block * C.ROWS + tl.arange(0, C.ROWS)
            p_partial = partials + (i_column_block * C.COUNT + j) * sizes.rows + i_row
            tl.store(p_partial, inner(own, register, 1), mask=i_row < sizes.rows)


class _Plan(NamedTuple):
    """What both kernels are told of tokens (A, M, C), and how many programs share them."""

    programs: int
    sizes: Sizes
    constants: Constants


def _plan(z: Tensor, registers: Sequence[Tensor]) -> _Plan:
    before, middle, after = z.shape
    follows = after == 1
    rows, columns = (before, middle) if follows else (before * middle, after)
    # A scalar's rows are one. Neither side of another tile goes by the number of rows, which is that of tokens.
    widest = 64 if follows else 1024
    tile_columns = _ENTRIES if rows == 1 and not follows else min(int(triton.next_power_of_2(max(columns, 1))), widest)
    tile_rows = _ENTRIES // tile_columns
    column_blocks = triton.cdiv(columns, tile_columns)
    constants = Constants(len(registers), follows, tile_rows, tile_columns, triton_type(compute_dtype(z)))
    return _Plan(triton.cdiv(rows, tile_rows) * column_blocks, Sizes(rows, columns, middle, column_blocks), constants)


def update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """The updated tokens (A, M, C), in z's dtype."""
    programs, sizes, constants = _plan(z, registers)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    if out.numel():
        launch(
            update_kernel,
            programs,
            z=z.contiguous(),
            registers=tuple(register.contiguous() for register in registers),
            gamma=gamma.contiguous(),
            out=out,
            **sizes._asdict(),
            C=constants,
        )
    return out


def update_backward(grad: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> list[Tensor]:
    """Gradients of the registers and of gamma."""
    programs, sizes, constants = _plan(grad, registers)
    outs = tuple(torch.empty_like(grad, memory_format=torch.contiguous_format) for _ in registers)
    if grad.numel() == 0:
        return [*outs, torch.zeros_like(gamma)]
    row_blocks = programs // sizes.column_blocks
    across, along = (row_blocks, sizes.columns) if constants.FOLLOWS else (sizes.column_blocks, sizes.rows)
    partials = grad.new_empty((across, constants.COUNT, along), dtype=compute_dtype(grad))
    launch(
        update_backward_kernel,
        programs,
        grad=grad.contiguous(),
        registers=tuple(register.contiguous() for register in registers),
        gamma=gamma.contiguous(),
        outs=outs,
        partials=partials,
        **sizes._asdict(),
        C=constants,
    )
    total = partials.view(across, constants.COUNT, -1, sizes.middle).sum((0, 2), dtype=torch.float64)
    return [*outs, total.to(gamma.dtype)]
