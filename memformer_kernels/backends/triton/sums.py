"""Sums over tasks in a fixed order: partial sums of blocks of 1024 tasks in the working dtype, then float64 across.

A program adds the partial sums of one block for BLOCK entries: read once, one addition each. There are as many programs
as such pieces, so that a few blocks of large gradients fill a GPU too. How many partial sums a block has depends on the
batch, and is not compiled in.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.launch import launch
from memformer_kernels.backends.triton.tiles import put

TASKS_A_BLOCK = rules.TASKS_A_BLOCK
_BLOCKS_AT_ONCE = 64
"""Blocks whose sums are added in float64 by one call of torch."""

ROWS: tl.constexpr = tl.constexpr(4)
"""Partial sums that a program reads side by side."""

BLOCK: tl.constexpr = tl.constexpr(32)
"""Entries of a program: a thread has one of every fourth partial sum."""

TOGETHER: tl.constexpr = tl.constexpr(8)
"""Rows of a thread that are on their way at a time."""

STEPS_A_SUM: tl.constexpr = tl.constexpr(32)
"""What a program adds one by one before the sum joins its chunk's, so that errors do not grow with a chunk's tasks."""


@triton.jit
def move_sum(running, total, size):
    """Adds a program's running sum of `size` numbers to a total, and clears it."""
    BLOCK: tl.constexpr = 1024
    tl.debug_barrier()
    for first in range(0, size, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        mask = entry < size
        value = tl.load(running + entry, mask=mask, other=0.0)
        tl.store(total + entry, tl.load(total + entry, mask=mask, other=0.0) + value, mask=mask)
        put(running + entry, tl.zeros_like(value), mask)


@triton.jit(do_not_specialize=["count", "size", "together"])
def sum_kernel(partials, totals, count, size, together):
    """totals (blocks, size) from partials (count, size), `together` consecutive ones each."""
    pieces = tl.cdiv(size, BLOCK)
    block = tl.cast(tl.program_id(0) // pieces, tl.int64)
    left = tl.minimum(count - block * together, together).to(tl.int32)
    which = tl.arange(0, ROWS)[:, None]
    entry = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)[None, :]
    own = partials + block * together * size + entry + tl.cast(size, tl.int64) * which
    total = tl.zeros((ROWS, BLOCK), partials.dtype.element_ty)
    for first in range(0, left, ROWS * TOGETHER):
        for step in tl.static_range(TOGETHER):
            row = first + step * ROWS
            mask = (row + which < left) & (entry < size)
            total += tl.load(own + tl.cast(size, tl.int64) * row, mask=mask, other=0.0)
    tl.store(totals + block * size + entry, tl.sum(total, 0, keep_dims=True), mask=entry < size)


def over_tasks(partials: Tensor, lanes: int) -> Tensor:
    """The sum of partials (chunks, size), each over `lanes` consecutive tasks, in their dtype (size,)."""
    count, size = partials.shape
    together = TASKS_A_BLOCK // lanes
    blocks = triton.cdiv(count, together)
    totals = partials if together == 1 else partials.new_empty(blocks, size)
    if together > 1 and blocks and size:
        launch(
            sum_kernel,
            blocks * triton.cdiv(size, BLOCK.value),
            partials=partials,
            totals=totals,
            count=count,
            size=size,
            together=together,
        )
    # torch copies what it is to sum in float64: some blocks at a time, so that there is never much of it.
    total: Tensor
    total, *others = (part.sum(0, dtype=torch.float64) for part in totals.split(_BLOCKS_AT_ONCE))
    for other in others:
        total += other
    return total.to(partials.dtype)


class Partials:
    """Partial sums of gradients over `lanes` consecutive tasks each, a row of several parts side by side.

    values: (chunks + running, size), zero at first, of the dtype and on the device of `like`. running: programs that
    have a row of their own, after those of the chunks, for sums that are still to join one.
    """

    def __init__(self, like: Tensor, tasks: int, lanes: int, sizes: Sequence[int], running: int = 0) -> None:
        self.lanes, self.sizes, self.chunks = lanes, list(sizes), triton.cdiv(tasks, lanes)
        self.values = like.new_zeros((self.chunks + running, sum(self.sizes)))

    @property
    def size(self) -> int:
        return self.values.shape[1]

    def totals(self) -> tuple[Tensor, ...]:
        """The sums over all tasks, a part each."""
        return torch.split(over_tasks(self.values[: self.chunks], self.lanes), self.sizes)
