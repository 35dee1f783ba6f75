"""Matrices of tasks in a program's registers, and products of them and of shared matrices with vectors (TASKS, BLOCK).

A matrix that a program is given lies as (rows, TASKS, columns). Lanes lie along columns then, warps along columns and
tasks, and a thread has every row: products sum over rows, and no thread gives a number to another. A matrix that the
program makes of tokens lies as (TASKS, rows, columns), as products of tiles leave it.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.triton.tiles import inner, product

MANY_ROWS: tl.constexpr = tl.constexpr(64)
"""Of a block whose threads have several rows each, however they are loaded."""


def laid(a: Tensor, block: int) -> Tensor:
    """Shared matrices (..., d, d) as `times_shared` reads them: wide ones (..., rows / 4, d, 4), zeros past the last.

    A lane has a column, and reads four rows of it at once.
    """
    if block < MANY_ROWS.value:
        return a.contiguous()
    rows = a.shape[-2]
    quads = -(-rows // 4)
    padded: Tensor = pad(a, (0, 0, 0, 4 * quads - rows))
    quads_of: Tensor = padded.unflatten(-2, (quads, 4))
    return quads_of.mT.contiguous()


@triton.jit
def task_matrix(t, strides, own, context, C: tl.constexpr):
    """The mean context Gram matrix from tokens (TASKS, BLOCK, BLOCK), or a given matrix (BLOCK, TASKS, BLOCK)."""
    if C.TOKENS:
        z_task, z_row, z_column = strides
        tokens = t.z + own.i_task[:, :, None] * z_task
        bounds = (own.m_task[:, :, None], C.WIDTH, own.count, C.WIDTH, context)
        total = product((tokens, z_column, z_row), (tokens, z_row, z_column), bounds, C.BLOCK, C.BLOCK, C)
        tile = total / own.count.to(C.ACC)
    else:
        tile = load_matrices(t.matrix, own, C)
    return tile


@triton.jit
def load_matrices(matrix, own, C: tl.constexpr):
    """A given matrix of every task (BLOCK, TASKS, BLOCK), of the last one where there is no such task."""
    task = tl.minimum(own.i_task, own.last)
    pointers, m_square = given_matrices(matrix, task, C)
    return load_square(pointers, m_square, C)


@triton.jit
def load_square(pointers, m_square, C: tl.constexpr):
    """What lies at pointers, 0 outside of what features have."""
    return tl.load(pointers) if C.FEATURES == C.BLOCK else tl.load(pointers, mask=m_square, other=0.0)


@triton.jit
def given_matrices(matrix, task, C: tl.constexpr):
    """Where the matrices of tasks (TASKS, 1) lie, and which of their entries are of features.

    A thread's rows are constants from one address on, which is why they are added last.
    """
    row = tl.arange(0, C.BLOCK)[:, None, None]
    column = tl.arange(0, C.BLOCK)[None, None, :]
    pointers = matrix + ((task * C.SIDE * C.SIDE)[None, :, :] + column) + row * C.SIDE
    return pointers, (row < C.FEATURES) & (column < C.FEATURES)


@triton.jit
def store_matrices(into, value, own, C: tl.constexpr):
    """Stores a matrix for every task, features alone."""
    pointers, m_square = given_matrices(into, own.i_task, C)
    tl.store(pointers, value, mask=own.m_task[None, :, :] & m_square)


@triton.jit
def zero_matrices(C: tl.constexpr):
    """A matrix for every task, laid as those that `task_matrix` gives."""
    ROWS: tl.constexpr = C.TASKS if C.TOKENS else C.BLOCK
    return tl.zeros((ROWS, C.BLOCK if C.TOKENS else C.TASKS, C.BLOCK), C.ACC)


@triton.jit
def along_rows(vector, C: tl.constexpr):
    """A vector for every row of a task's matrix."""
    return vector[:, :, None] if C.TOKENS else tl.permute(vector, (1, 0))[:, :, None]


@triton.jit
def along_columns(vector, C: tl.constexpr):
    """A vector for every column of a task's matrix."""
    return vector[:, None, :] if C.TOKENS else vector[None, :, :]


@triton.jit
def outer_product(left, right, C: tl.constexpr):
    """left right^T of every task."""
    return along_rows(left, C) * along_columns(right, C)


@triton.jit
def times_own_back(t, tile, vector, own, C: tl.constexpr):
    """The transpose of a task's matrix times a vector. A matrix that is not HELD is read."""
    if not C.HELD:
        tile = load_matrices(t.matrix, own, C)
    return inner(tile, along_rows(vector, C), 1 if C.TOKENS else 0, FUSED=C.BLOCK >= MANY_ROWS)


@triton.jit
def times_own(t, tile, vector, own, C: tl.constexpr):
    """A task's matrix times a vector. Gram matrices are symmetric."""
    if C.NETWORK:
        total = times_own_back(t, tile, vector, own, C)
    else:
        if not C.HELD:
            tile = load_matrices(t.matrix, own, C)
        total = tl.permute(inner(tile, along_columns(vector, C), 2), (1, 0))
    return total


@triton.jit
def times_shared(a, index, vector, C: tl.constexpr):
    """The transpose of one head's matrix, which lies as `laid` has it, times a vector."""
    column = tl.arange(0, C.BLOCK)[None, None, :]
    if C.BLOCK >= MANY_ROWS:
        total = times_quads(a, index, vector, C)
    elif C.TOKENS:
        row = tl.arange(0, C.BLOCK)[None, :, None]
        total = inner(load_shared(a, index, row, column, C), along_rows(vector, C), 1)
    else:
        row = tl.arange(0, C.BLOCK)[:, None, None]
        total = inner(load_shared(a, index, row, column, C), along_rows(vector, C), 0)
    return total


@triton.jit
def load_shared(a, index, row, column, C: tl.constexpr):
    """One head's matrix, of a narrow block."""
    square = a + tl.cast(index, tl.int64) * C.FEATURES * C.FEATURES
    return tl.load(square + row * C.FEATURES + column, mask=(row < C.FEATURES) & (column < C.FEATURES), other=0.0)


@triton.jit
def times_quads(a, index, vector, C: tl.constexpr):
    """`times_shared` of a wide block. Warps read it for the tasks they have: nothing is moved between threads."""
    QUADS: tl.constexpr = (C.FEATURES + 3) // 4
    quad = tl.arange(0, C.BLOCK // 4)[:, None, None, None]
    column = tl.arange(0, C.BLOCK)[None, None, :, None]
    row = tl.arange(0, 4)[None, None, None, :]
    first = a + tl.cast(index, tl.int64) * (QUADS * C.FEATURES * 4) + (column * 4 + row)
    pointers = tl.broadcast_to(first, (1, C.TASKS, C.BLOCK, 4)) + quad * (C.FEATURES * 4)
    whole = load_square(pointers, (quad < QUADS) & (column < C.FEATURES), C)
    rows = tl.permute(tl.reshape(vector, (C.TASKS, C.BLOCK // 4, 4)), (1, 0, 2))
    return tl.sum(inner(whole, rows[:, :, None, :], 3, FUSED=True), 0)
