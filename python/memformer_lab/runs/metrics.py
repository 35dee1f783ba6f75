"""A run's metrics as JSON lines: one complete line a record, in order of steps, whatever interrupts the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from memformer_lab.runs.files import naming, write_atomically


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The complete lines of a metrics file. A last line without its newline, a write cut short, is left out.

    Raises:
        ValueError: for a line that is not a JSON object with an integer "step", naming file and line.
    """
    records = []
    for number, line in enumerate(
        Path(path).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), start=1
    ):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f'{path}, line {number}: expected a JSON object with an integer "step", got {line[:80]!r}')
        records.append(record)
    return records


class MetricsLog:
    """Appends records to a JSON-lines file, flushing each.

    Args:
        path: the file.
        after: the step that training continues from. Lines of later steps are from work that is about to be done
            again and are dropped; 0 starts an empty file.
        every: steps between two records.

    Attributes:
        last: the step of the last line; where the file that training continues is gone, the one it had.

    Raises:
        OSError: if the file cannot be written, naming it.
        ValueError: if the file is not a metrics file, or ends too early for training to continue at `after`.
    """

    def __init__(self, path: str | os.PathLike[str], *, after: int = 0, every: int = 1) -> None:
        self._path = path = Path(path)
        self.last = after // every * every
        kept = []
        if after and path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= after]
            self.last = int(kept[-1]["step"]) if kept else 0
            if after - self.last >= every:
                raise ValueError(f"{path} ends at step {self.last}, expected lines up to step {after // every * every}")
        write_atomically(path, "".join(map(_line, kept)).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, float]) -> None:
        """Append one record and flush it."""
        with naming(self._path):
            self._file.write(_line(record))
            self._file.flush()
        self.last = int(record["step"])

    def sync(self) -> None:
        """Put what was written on the disk, so that no checkpoint is ever ahead of its metrics."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str]) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Gives a function that writes one record of metrics into `folder`, as scalars over the record's "step".

    Raises:
        ValueError: if tensorboard is not installed.
        OSError: if a log cannot be written, naming `folder`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs tensorboard, which is not installed: pip install tensorboard") from error
    with naming(folder):
        writer = SummaryWriter(os.fspath(folder))

    def write(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                with naming(folder):
                    writer.add_scalar(name, value, int(record["step"]))

    try:
        yield write
    finally:
        with naming(folder):
            writer.close()


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
