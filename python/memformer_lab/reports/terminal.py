"""What every command shares: the console it prints on, progress, its end in one line where it fails, the cores."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from memformer_kernels import RankLost
from memformer_lab.runs.steps import TrainingDiverged

MOST_WORKERS = 1024
"""The most processes that a command starts: a number beyond is a slip of the hand."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def usable_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: if it cannot be used.
    """
    try:
        device = torch.device(name)
        # Read back, which is what a device of shapes alone cannot do.
        torch.zeros(1, device=device, dtype=torch.float32).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {name!r} cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return device


@contextmanager
def memory_for(**sizes: int) -> Iterator[None]:
    """Work that needs more memory than there is ends in a ValueError that names these sizes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        if isinstance(error, RuntimeError) and not any(word in said for word in ("memory", "overflow", "alloc")):
            raise
        named = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"{named} need more memory than there is: {said}") from error


def task_progress(console: Console) -> Progress:
    """A progress display whose bars count tasks; a bar's field `note` says what is being done."""
    return Progress(
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        _TaskRate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


@contextmanager
def command(*leaves: Path) -> Iterator[Console]:
    """What the body of every command runs in. Gives the console to print on, which reads no text as markup.

    A standard output that is closed or full never stops the work: it ends the command in one line when all is done.
    Errors are those of `one_line_errors`.

    Args:
        leaves: where the command leaves its work, for that line.
    """
    with one_line_errors():
        output = _Output()
        console = Console(file=cast(IO[str], output), markup=False, emoji=False, highlight=False)
        yield console
        if output.fault is not None and not console.quiet:
            rest = f"; what was made is in {' and '.join(map(str, leaves))}" if leaves else ""
            raise OSError(f"standard output cannot be written: {output.fault}{rest}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends in one line on stderr and exit code 2, a run that diverged or lost a rank in exit code 1."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        _say(f"error: {error}")
        raise typer.Exit(2) from error
    except (TrainingDiverged, RankLost) as error:
        _say(f"stopped: {error}")
        raise typer.Exit(1) from error


@contextmanager
def standard_streams() -> Iterator[None]:
    """Streams that take whatever is printed, around all of a program that is a process of its own.

    What an encoding lacks is escaped. The place of a closed stream is taken, so that no file that is opened later gets
    its number. A standard output that cannot be written ends in one line and exit code 2, with the help as well.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except OSError as error:
        _abandon_output()
        _say(f"error: standard output cannot be written: {error.strerror}")
        raise SystemExit(2) from error


class _Output(io.TextIOBase):
    """Standard output whose first fault is kept in `fault` and ends all writing, in place of being raised."""

    def __init__(self) -> None:
        self.fault = "it is closed" if sys.stdout is None else None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()

    def fileno(self) -> int:
        return sys.stdout.fileno()

    def write(self, text: str) -> int:
        if self.fault is None:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except OSError as error:
                self.fault = error.strerror
                _abandon_output()
        return len(text)


class _TaskRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tasks/s")


def _abandon_output() -> None:
    """What standard output still holds goes nowhere, so that the interpreter does not fail on it as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _say(text: str) -> None:
    """One line on stderr. Only line breaks are taken out: the blanks of a name are part of it."""
    typer.echo(" ".join(line.strip() for line in text.splitlines()), err=True)
