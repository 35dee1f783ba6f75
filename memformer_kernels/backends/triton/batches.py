"""The number of tasks that rules go by: a call's, or in a rehearsal that of calls to come."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MANY = 2**30
"""Tasks that fill any GPU."""

REHEARSED = ((1, 1), (2, 2), (2, MANY))
"""Numbers of tasks of a rehearsal, and those that rules go by in it: one, a few whose contexts are divided, many.

Kernels are not compiled for a number of tasks, nor for one that it is a factor of. One task is apart because torch may
leave any stride where there is one.
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
