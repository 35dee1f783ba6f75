"""z + sum_j gamma_j * R_j, and the gradients of the registers and of gamma, in one pass each.

A program owns a tile of a matrix of entries: rows along which gamma stays (C entries each) or, where C = 1, columns
along which it stays (A entries each). Bytes per entry: J + 1 numbers read and one written; backward J + 1 read, J
written and 1/64 or less of a register in partial sums, which are then added in one order. J multiply-adds, backward J
more.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.launch import launch, triton_type
from memformer_kernels.backends.triton.tiles import inner
from memformer_kernels.calls.arguments import compute_dtype

_ENTRIES = 4096
"""Of a tile: 32 registers of 128 threads for each of the gradient, a register and their product."""


@triton.jit
def tile(rows, columns, middle, column_blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FOLLOWS: tl.constexpr):
    """Offsets of a tile's entries, where they are inside, and the places of their coefficients in gamma_j."""
    row = tl.cast(tl.program_id(0) // column_blocks, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.cast(tl.program_id(0) % column_blocks, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if FOLLOWS:
        weight = column
        weighed = column < columns
    else:
        weight = row % middle
        weighed = row < rows
    return row * columns + column, (row < rows) & (column < columns), weight, weighed


@triton.jit(do_not_specialize=["rows", "columns", "middle", "column_blocks"])
def update_kernel(
    z,
    registers,
    gamma,
    out,
    rows,
    columns,
    middle,
    column_blocks,
    COUNT: tl.constexpr,
    FOLLOWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    """out = z + sum_j gamma_j * R_j."""
    at, inside, weight, weighed = tile(rows, columns, middle, column_blocks, ROWS, COLUMNS, FOLLOWS)
    total = tl.load(z + at, mask=inside, other=0.0).to(ACC)
    for j in tl.static_range(COUNT):
        coefficient = tl.load(gamma + j * tl.cast(middle, tl.int64) + weight, mask=weighed, other=0.0).to(ACC)
        total += coefficient * tl.load(registers[j] + at, mask=inside, other=0.0).to(ACC)
    tl.store(out + at, total, mask=inside)


@triton.jit(do_not_specialize=["rows", "columns", "middle", "column_blocks"])
def update_backward_kernel(
    grad,
    registers,
    gamma,
    outs,
    partials,
    rows,
    columns,
    middle,
    column_blocks,
    COUNT: tl.constexpr,
    FOLLOWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    """outs: gradients of the registers. partials: (row blocks, J, columns) or (column blocks, J, rows)."""
    at, inside, weight, weighed = tile(rows, columns, middle, column_blocks, ROWS, COLUMNS, FOLLOWS)
    own = tl.load(grad + at, mask=inside, other=0.0).to(ACC)
    for j in tl.static_range(COUNT):
        coefficient = tl.load(gamma + j * tl.cast(middle, tl.int64) + weight, mask=weighed, other=0.0).to(ACC)
        tl.store(outs[j] + at, coefficient * own, mask=inside)
        register = tl.load(registers[j] + at, mask=inside, other=0.0).to(ACC)
        if FOLLOWS:
            block = tl.cast(tl.program_id(0) // column_blocks, tl.int64)
            column = tl.cast(tl.program_id(0) % column_blocks, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
            to = partials + (block * COUNT + j) * columns + column
            tl.store(to, inner(own, register, 0), mask=column < columns)
        else:
            block = tl.cast(tl.program_id(0) % column_blocks, tl.int64)
            row = tl.cast(tl.program_id(0) // column_blocks, tl.int64) * ROWS + tl.arange(0, ROWS)
            to = partials + (block * COUNT + j) * rows + row
            tl.store(to, inner(own, register, 1), mask=row < rows)


class _Shape:
    """The matrix that a program's tile is of, for tokens (A, M, C)."""

    def __init__(self, z: Tensor) -> None:
        before, self.middle, after = z.shape
        self.follows = after == 1
        self.rows, self.columns = (before, self.middle) if self.follows else (before * self.middle, after)
        widest = 64 if self.follows else _ENTRIES if self.rows < 4 else 1024
        self.tile_columns = min(int(triton.next_power_of_2(max(self.columns, 1))), widest)
        self.tile_rows = min(int(triton.next_power_of_2(max(self.rows, 1))), _ENTRIES // self.tile_columns)
        self.row_blocks = triton.cdiv(self.rows, self.tile_rows)
        self.column_blocks = triton.cdiv(self.columns, self.tile_columns)

    @property
    def programs(self) -> int:
        return int(self.row_blocks * self.column_blocks)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rows, self.columns, self.middle, self.column_blocks


def update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """The updated tokens (A, M, C), in z's dtype."""
    shape = _Shape(z)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    if out.numel():
        launch(
            update_kernel,
            shape.programs,
            z.contiguous(),
            tuple(register.contiguous() for register in registers),
            gamma.contiguous(),
            out,
            *shape.sizes,
            COUNT=len(registers),
            FOLLOWS=shape.follows,
            ROWS=shape.tile_rows,
            COLUMNS=shape.tile_columns,
            ACC=triton_type(compute_dtype(z)),
        )
    return out


def update_backward(grad: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> list[Tensor]:
    """Gradients of the registers and of gamma."""
    shape, count = _Shape(grad), len(registers)
    outs = tuple(torch.empty_like(grad, memory_format=torch.contiguous_format) for _ in registers)
    if grad.numel() == 0:
        return [*outs, torch.zeros_like(gamma)]
    across, along = (shape.row_blocks, shape.columns) if shape.follows else (shape.column_blocks, shape.rows)
    partials = grad.new_empty((across, count, along), dtype=compute_dtype(grad))
    launch(
        update_backward_kernel,
        shape.programs,
        grad.contiguous(),
        tuple(register.contiguous() for register in registers),
        gamma.contiguous(),
        outs,
        partials,
        *shape.sizes,
        COUNT=count,
        FOLLOWS=shape.follows,
        ROWS=shape.tile_rows,
        COLUMNS=shape.tile_columns,
        ACC=triton_type(partials.dtype),
    )
    total = partials.view(across, count, -1, shape.middle).sum((0, 2), dtype=torch.float64)
    return [*outs, total.to(gamma.dtype)]
