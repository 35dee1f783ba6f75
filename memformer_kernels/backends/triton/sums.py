"""Sums over tasks in a fixed order: partial sums of blocks of 1024 tasks in the working dtype, then float64 across.

A program adds the partial sums of one block, `COUNT` of them, for BLOCK entries: read once, one addition each.
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

_NUMBERS = 4096
"""Numbers a program adds at a time: 32 registers of 128 threads."""

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


@triton.jit(do_not_specialize=["count", "size"])
def sum_kernel(partials, totals, count, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """totals (blocks, size) from partials (count, size), COUNT consecutive ones each."""
    block = tl.cast(tl.program_id(0), tl.int64)
    which = tl.arange(0, COUNT)[:, None]
    for first in range(0, size, BLOCK):
        entry = first + tl.arange(0, BLOCK)[None, :]
        at = partials + (block * COUNT + which) * size + entry
        mask = (block * COUNT + which < count) & (entry < size)
        total = tl.sum(tl.load(at, mask=mask, other=0.0), 0, keep_dims=True)
        tl.store(totals + block * size + entry, total, mask=entry < size)


def over_tasks(partials: Tensor, lanes: int) -> Tensor:
    """The sum of partials (chunks, size), each over `lanes` consecutive tasks, in their dtype (size,)."""
    count, size = partials.shape
    together = TASKS_A_BLOCK // lanes
    blocks = triton.cdiv(count, together)
    totals = partials if together == 1 else partials.new_empty(blocks, size)
    if together > 1 and blocks and size:
        launch(
            sum_kernel,
            blocks,
            partials=partials,
            totals=totals,
            count=count,
            size=size,
            COUNT=together,
            BLOCK=max(1, _NUMBERS // together),
        )
    # torch copies what it is to sum in float64: some blocks at a time, so that there is never much of it.
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
