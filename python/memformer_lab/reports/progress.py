"""Progress bars that count tasks: how far, tasks per second, what is being done, time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class _TaskRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tasks/s")


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
