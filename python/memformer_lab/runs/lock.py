"""One writer of a folder at a time, as long as its process lives."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def sole_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps every other process and thread that asks for `folder` out of it; it is made if it is not there.

    The system lets go of the lock, which is on the empty file ".lock", when the process ends in whatever way. Where
    files cannot be locked (Windows, some network file systems) nobody is kept out.

    Raises:
        BlockingIOError: if somebody else has the folder.
        OSError: if the file cannot be made.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        if fcntl is not None:
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str | os.PathLike[str]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            "another run is writing to this folder: wait for its end, or take another",
            os.fspath(folder),
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise
