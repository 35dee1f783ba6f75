"""Writing a file whole or not at all, whatever kind of file a path names; and one writer of a folder at a time."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file in a folder that its one writer holds."""

_SUFFIX = ".tmp"


def _prefix(path: Path) -> str:
    return f".{path.name}."


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError raised inside names `path`: that of a full disk names no file, that of a replacement another one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `data` what is at `path`, links followed and folders on the way made.

    A regular file is replaced and keeps its mode: a reader sees the old file or the new one, and a failure leaves the
    old one. What is no such file (a device, a FIFO) is written through, and so is a file that this process has as its
    standard output or error, where a replacement would lose all that is printed.

    Raises:
        OSError: if it cannot be written, naming `path`; the temporary file is removed.
    """
    with naming(path):
        try:
            held = os.stat(path)
        except FileNotFoundError:
            held = None
        if held is None or (stat.S_ISREG(held.st_mode) and _own_output(held) is None):
            _replace(Path(os.path.realpath(path)), data, held)
        else:
            _write_through(path, data, _own_output(held))


def keep_earlier(path: str | os.PathLike[str]) -> Path | None:
    """A copy of the file at `path` beside it, before another takes its place: "a.png" becomes "a.1.png", or ".2", ...

    Returns:
        Where the copy is; None where there is no regular file.

    Raises:
        OSError: if it cannot be read or copied.
    """
    path = Path(path)
    if not path.is_file():
        return None
    aside = next(
        aside for number in itertools.count(1) if not (aside := path.with_suffix(f".{number}{path.suffix}")).exists()
    )
    write_atomically(aside, path.read_bytes())
    return aside


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left while they were writing `path`.

    Only where no other process is writing it now.
    """
    path = Path(os.path.realpath(path))
    for temporary in path.parent.glob(f"{glob.escape(_prefix(path))}*{_SUFFIX}"):
        temporary.unlink(missing_ok=True)


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


def _replace(path: Path, data: bytes, held: os.stat_result | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}{_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            if held is not None:
                os.chmod(temporary, stat.S_IMODE(held.st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_through(path: str | os.PathLike[str], data: bytes, output: int | None) -> None:
    def opener(name: str, flags: int) -> int:
        # Neither made nor emptied: what is there is there, and systems refuse to "make" a FIFO of somebody else.
        return os.open(name, flags & ~(os.O_CREAT | os.O_TRUNC)) if output is None else os.dup(output)

    with open(path, "wb", opener=opener) as file:
        file.write(data)


def _own_output(held: os.stat_result) -> int | None:
    """The descriptor of this process's standard output or error that is this very file."""
    for descriptor in (1, 2):
        try:
            if os.path.samestat(held, os.fstat(descriptor)):
                return descriptor
        except OSError:
            continue
    return None


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
