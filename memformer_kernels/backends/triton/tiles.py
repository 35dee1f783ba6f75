"""What all kernels share: products of the small matrices of several tasks, and memory that one program reads again.

A tile is (TASKS, ROWS, COLUMNS). From width 16 on a program holds one task and a product is one `tl.dot`; below, it
holds several and a product is an elementwise one summed along an axis, so that no lane works on padding up to 16.

Operands come from memory: inputs, or a program's own scratch, which the caches hold. A transposed operand is read with
its strides exchanged. No product ever transposes a tile that an earlier product left in registers, and none begins
with a sum that a loop carries: both have given wrong numbers, see docs/triton.md, and compiled code is held to it.
"""

import triton
import triton.language as tl


@triton.jit
def wide(strides):
    """A tuple of strides as 64-bit numbers, so that every offset made with them is one: a view may span any memory."""
    return [tl.cast(stride, tl.int64) for stride in strides]


@triton.jit
def with_tile(tiles, tile):
    """A tuple of tiles and one more."""
    return tiles + (tile,)  # noqa: RUF005  Triton adds tuples and unpacks none


@triton.jit
def put(pointers, value, mask):
    """Stores a tile that any thread of the program may read next, where any may just have read the one before."""
    tl.debug_barrier()
    tl.store(pointers, value, mask=mask)
    tl.debug_barrier()


@triton.jit
def add_to(pointers, value, mask):
    """Adds a tile to what this program has stored at the same place: a sum in the order of the calls, no atomics."""
    total = tl.load(pointers, mask=mask, other=0.0) + value
    put(pointers, total, mask)


@triton.jit
def inner(left, right, axis: tl.constexpr, keep_dims: tl.constexpr = False, FUSED: tl.constexpr = False):
    """The sum of left * right along an axis, of the same bits in every lane that holds it.

    Lanes sum by giving each other their parts, and each keeps the result. Where a part is a product, a compiler would
    fuse a lane's own into the addition of another's rounded one, and the last bits would tell the lanes apart: which of
    them then writes is open. What is fused with 0 already is fused with nothing else. Whether a lane holds several
    products, whose sum nothing would be fused with, is decided by the strides that a matrix is loaded by. FUSED: each
    does, however they are loaded.
    """
    products = left * right if FUSED else tl.fma(left, right, 0.0)
    return tl.sum(products, axis, keep_dims=keep_dims)


@triton.jit
def multiply(left, right, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """(TASKS, ROWS, COLUMNS) from (TASKS, ROWS, INNER) and (TASKS, INNER, COLUMNS), accumulated in ACC."""
    if left.dtype != right.dtype:
        left = left.to(ACC)
        right = right.to(ACC)
    if left.shape[0] == 1 and right.shape[0] == 1:
        ROWS: tl.constexpr = left.shape[1]
        INNER: tl.constexpr = left.shape[2]
        COLUMNS: tl.constexpr = right.shape[2]
        rows = tl.reshape(left, (ROWS, INNER))
        columns = tl.reshape(right, (INNER, COLUMNS))
        flat = tl.dot(rows, columns, input_precision=PRECISION, out_dtype=ACC)
        made = tl.reshape(flat, (1, ROWS, COLUMNS))
    else:
        made = inner(left.to(ACC)[:, :, :, None], right.to(ACC)[:, None, :, :], 2)
    return made


@triton.jit
def product(left, right, bounds, ROWS: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr):
    """`chunked_product` of every task in chunks as a family's constants have them."""
    return chunked_product(left, right, bounds, C.TASKS, ROWS, COLUMNS, C.CHUNK, C.ACC, C.PRECISION)


@triton.jit
def chunked_product(
    left,
    right,
    bounds,
    TASKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The product of two matrices in memory, as a tile.

    left: (pointer, row stride, inner stride); right: (pointer, inner stride, column stride), where a pointer is a
    scalar or (TASKS, 1, 1). Strides are 64-bit, or 32-bit sizes of a matrix of a program's own, which has less than
    2^31 numbers. bounds: (live tasks, rows, inner, columns, longest inner); entries at or past a bound, which may
    differ from task to task, are left out by selection. The inner axis is worked through in chunks.
    """
    left_pointer, left_row, left_inner = left
    right_pointer, right_inner, right_column = right
    live, rows, inner, columns, longest = bounds
    i = tl.arange(0, ROWS)[None, :, None]
    j = tl.arange(0, COLUMNS)[None, None, :]
    across = tl.arange(0, CHUNK)[None, None, :]
    down = tl.arange(0, CHUNK)[None, :, None]
    total = tl.zeros((TASKS, ROWS, COLUMNS), ACC)
    for start in range(0, longest, CHUNK):
        # Only the start of a chunk is multiplied again: offsets within it are the same for all.
        a = tl.load(
            left_pointer + start * left_inner + i * left_row + across * left_inner,
            mask=live & (i < rows) & (start + across < inner),
            other=0.0,
        )
        b = tl.load(
            right_pointer + start * right_inner + down * right_inner + j * right_column,
            mask=live & (start + down < inner) & (j < columns),
            other=0.0,
        )
        total += multiply(a, b, ACC, PRECISION)
    return total


@triton.jit
def load_counts(lengths, task, context, live):
    """The number of labelled tokens of every task, in the shape of `task`."""
    if lengths is None:
        count = context + tl.zeros_like(task).to(tl.int32)
    else:
        count = tl.load(lengths + task, mask=live, other=1)
    return count
