"""What every command shares: errors in one line, and the cores at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from memformer_kernels import RankLost
from memformer_lab.trainer import TrainingDiverged


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends in one line on stderr and exit code 2, a run that diverged or lost a rank in exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    except (TrainingDiverged, RankLost) as error:
        typer.echo(f"stopped: {error}", err=True)
        raise typer.Exit(1) from error
