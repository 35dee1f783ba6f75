"""The processes that torchrun starts, as one process group; a command without torchrun is alone."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.distributed import ProcessGroup

TIMEOUT = datetime.timedelta(minutes=2)
"""How long a rank waits for the others before it says that one is lost; one that dies is noticed at once."""


def is_writer(group: ProcessGroup | None) -> bool:
    """Whether this process writes files and shows progress: the first of a group, or one that is alone."""
    return group is None or distributed.get_rank(group) == 0


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """The group of all ranks, None without torchrun. On a failure the others are not waited for."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield None
        return
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    yield distributed.group.WORLD
    distributed.destroy_process_group()
