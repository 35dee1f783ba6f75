"""The number of tasks that rules go by: a call's, or in a rehearsal that of calls to come."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MANY = 2**30
"""Tasks that fill any GPU."""

SEVERAL = (2, 3, 4, 8, 16)
"""Numbers of tasks that stand for all but one: of every power of 2 up to 16 a multiple that is none of the next.

Triton compiles a kernel anew for numbers that are multiples of 16, even in a tuple that it is told not to look at, and
a batch is a factor of some.
"""

FEW_TO_MANY = (2, 32, MANY)
"""Numbers of tasks that rules choose every kernel for: few, whose contexts are cut into many parts or a few, and many.
"""

_PLANNED: ContextVar[int | None] = ContextVar("planned", default=None)


def planned(batch: int) -> int:
    """The number of tasks to choose kernels by, where a call has `batch`."""
    chosen = _PLANNED.get()
    return batch if chosen is None or batch == 0 else chosen


@contextmanager
def planning_for(batch: int) -> Iterator[None]:
    """Makes calls choose the kernels that they would choose for so many tasks."""
    token = _PLANNED.set(batch)
    try:
        yield
    finally:
        _PLANNED.reset(token)
