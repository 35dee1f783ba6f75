"""The processes that torchrun starts, as one process group; a command without torchrun is alone."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.distributed import ProcessGroup

TIMEOUT = datetime.timedelta(minutes=2)
"""How long a rank waits for the others before it says that one is lost; one that dies is noticed at once."""


def is_writer() -> bool:
    """Whether this process writes files and shows progress: the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """The group of all ranks, None where there is one process alone. On a failure the others are not waited for."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    yield distributed.group.WORLD
    distributed.destroy_process_group()
