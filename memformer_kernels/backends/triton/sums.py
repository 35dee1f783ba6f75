"""Sums over tasks in a fixed order: partial sums of blocks of 1024 tasks in the working dtype, then float64 across.

The partial sums of a block are added up by pairs, up to 32 by a program for BLOCK entries, what those leave by others:
the error of a block grows with the logarithm of their number. Each is read once, with one addition. There are as many
programs as such pieces, so that a few blocks of large gradients fill a GPU too. How many partial sums a block has
depends on the batch, and is not compiled in.
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
_BLOCKS_AT_ONCE, _NUMBERS_AT_ONCE = 64, 2**24
"""Blocks whose sums are added in float64 by one call of torch, and numbers of them."""

ROWS: tl.constexpr = tl.constexpr(4)
"""Partial sums that a program reads side by side: a warp each."""

BLOCK: tl.constexpr = tl.constexpr(32)
"""Entries of a program: a thread has one of every fourth partial sum."""

TOGETHER: tl.constexpr = tl.constexpr(8)
"""Rows of a thread, which are on their way at a time."""

AT_ONCE = ROWS.value * TOGETHER.value
"""Partial sums that a program adds up."""

STEPS_A_SUM: tl.constexpr = tl.constexpr(32)
"""What a program adds one by one before the sum joins its chunk's, so that errors do not grow with a chunk's tasks."""


@triton.jit
def sums_apart(chunk_tasks, tasks):
    """Whether a chunk takes so many steps of `tasks` tasks that their sums run in a row of the program's own."""
    return chunk_tasks > tasks * STEPS_A_SUM


@triton.jit
def own_row(chunk, chunks, apart):
    """The row of partial sums that a program adds a chunk's tasks to: the chunk's, or its own after those of chunks."""
    return tl.where(apart, chunks + tl.program_id(0), chunk).to(tl.int64)


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


@triton.jit
def sum_of_rows(rows, row, m_entry, left, size, COUNT: tl.constexpr):
    """The sum of COUNT rows (ROWS, BLOCK), each ROWS after the one before, by pairs; those from `left` on are zero."""
    if COUNT == 1:
        total = tl.load(rows + row * size, mask=(row < left) & m_entry, other=0.0)
    else:
        first = sum_of_rows(rows, row, m_entry, left, size, COUNT // 2)
        total = first + sum_of_rows(rows, row + COUNT // 2 * ROWS, m_entry, left, size, COUNT // 2)
    return total


@triton.jit(do_not_specialize=["count", "size", "together"])
def sum_kernel(partials, totals, count, size, together):
    """totals (groups, size) from partials (count, size), `together` consecutive ones each, up to ROWS * TOGETHER."""
    pieces = tl.cdiv(size, BLOCK)
    group = tl.cast(tl.program_id(0) // pieces, tl.int64)
    entry = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)[None, :]
    left = tl.minimum(count - group * together, together)
    row = tl.arange(0, ROWS)[:, None].to(tl.int64)
    total = sum_of_rows(partials + group * together * size + entry, row, entry < size, left, size, TOGETHER)
    tl.store(totals + group * size + entry, tl.sum(total, 0, keep_dims=True), mask=entry < size)


def running_numbers(sizes: Sequence[int], chunk_tasks: int, tasks: int) -> int:
    """Numbers of the row that a program has of its own for sums of so many numbers each: 0 where it needs none."""
    return sum(sizes) if chunk_tasks > tasks * STEPS_A_SUM.value else 0


def over_tasks(partials: Tensor, lanes: int) -> Tensor:
    """The sum of partials (chunks, size), each over `lanes` consecutive tasks, in their dtype (size,)."""
    totals, left = partials, TASKS_A_BLOCK // lanes
    while left > 1:
        together = min(left, AT_ONCE)
        totals, left = _groups(totals, together), left // together
        if totals.shape[0] == 1:
            break
    # torch copies what it is to sum in float64: some blocks at a time, so that there is never much of it.
    blocks = max(1, min(_BLOCKS_AT_ONCE, _NUMBERS_AT_ONCE // max(totals.shape[1], 1)))
    total: Tensor
    total, *others = (part.sum(0, dtype=torch.float64) for part in totals.split(blocks))
    for other in others:
        total += other
    return total.to(partials.dtype)


def _groups(partials: Tensor, together: int) -> Tensor:
    """The sums of `together` consecutive rows each."""
    count, size = partials.shape
    groups = triton.cdiv(count, together)
    totals = partials.new_empty(groups, size)
    if totals.numel():
        launch(
            sum_kernel,
            groups * triton.cdiv(size, BLOCK.value),
            partials=partials,
            totals=totals,
            count=count,
            size=size,
            together=together,
        )
    return totals


class Partials:
    """Partial sums of gradients over `lanes` consecutive tasks each, a row of several parts side by side.

    values: (chunks + running, size), zero at first, of the dtype and on the device of `like`. running: programs that
    have a row of their own, after those of the chunks, for sums that are still to join one, where `sums_apart` says so.
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
