"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

_SUFFIX = ".tmp"


def _prefix(path: Path) -> str:
    return f".{path.name}."


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace `path` by `data`; a reader sees the old file or the new one, and a failure leaves the old one.

    Folders on the way are made.

    Raises:
        OSError: if the file cannot be written; the temporary file beside it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}{_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left beside `path` while they were writing it.

    Only where no other process is writing it now.
    """
    path = Path(path)
    for temporary in path.parent.glob(f"{_prefix(path)}*{_SUFFIX}"):
        temporary.unlink(missing_ok=True)
