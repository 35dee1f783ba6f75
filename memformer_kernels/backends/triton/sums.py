"""Sums over tasks in a fixed order: partial sums of blocks of 1024 tasks in the working dtype, then float64 across.

A program adds the partial sums of one block, `COUNT` of them, for BLOCK entries: read once, one addition each.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton.launch import launch

TASKS_A_BLOCK = 1024
_NUMBERS = 4096
"""Numbers a program adds at a time: 32 registers of 128 threads."""


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
    totals = partials.new_empty(blocks, size)
    if blocks and size:
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
    return totals.sum(0, dtype=torch.float64).to(partials.dtype)


class Partials:
    """Partial sums of gradients over `lanes` consecutive tasks each, a row of several parts side by side.

    values: (chunks, size), zero at first, of the dtype and on the device of `like`.
    """

    def __init__(self, like: Tensor, tasks: int, lanes: int, sizes: Sequence[int]) -> None:
        self.lanes, self.sizes = lanes, list(sizes)
        self.values = like.new_zeros((triton.cdiv(tasks, lanes), sum(self.sizes)))

    @property
    def chunks(self) -> int:
        return self.values.shape[0]

    @property
    def size(self) -> int:
        return self.values.shape[1]

    def totals(self) -> tuple[Tensor, ...]:
        """The sums over all tasks, a part each."""
        return torch.split(over_tasks(self.values, self.lanes), self.sizes)
