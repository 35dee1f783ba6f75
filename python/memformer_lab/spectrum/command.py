"""The command `memformer-lab explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memformer_lab.reports.pictures import format_of
from memformer_lab.reports.terminal import command, memory_for
from memformer_lab.runs.files import keep_earlier, write_atomically
from memformer_lab.runs.models import load_model
from memformer_lab.runs.training import CHECKPOINT
from memformer_lab.spectrum.explanation import explain as explain_model
from memformer_lab.spectrum.formula import numpy_source
from memformer_lab.spectrum.picture import draw
from memformer_lab.spectrum.tables import method_table, step_table

HELP = (
    "Say what a response-only network learned: its residual polynomial compared with those of classical methods, its "
    "steps and momentum; leaves a figure, and the network as a function of NumPy."
)


def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    figure: Annotated[Path, typer.Option(help="Where the plot goes: .png, .svg or .pdf.")] = Path(
        "results", "explain.png"
    ),
    function: Annotated[Path, typer.Option(help="Where the function of NumPy goes.")] = Path("results", "explain.py"),
    tasks: Annotated[int, typer.Option(min=1, help="Fresh tasks to judge on.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fresh tasks.")] = 0,
) -> None:
    """The command, as `HELP` says."""
    with command(figure, function) as console:
        form = format_of(figure)
        path = checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint
        model, config = load_model(path)
        try:
            with memory_for(tasks=tasks, d=config.d):
                found = explain_model(model, config.sampler(), count=tasks, seed=seed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        written = {}
        try:
            for place, data in ((figure, draw(found, form)), (function, numpy_source(found.method).encode())):
                kept = keep_earlier(place)
                write_atomically(place, data)
                written[place] = f"; the earlier one is {kept}" if kept else ""
        finally:
            kind = f"{config.rule}, {config.layers} layers on {config.tasks} tasks, d={config.d}, n={config.n}"
            console.print(kind, soft_wrap=True)
            console.print(method_table(found))
            console.print(step_table(found))
        for place, note in written.items():
            console.print(f"Wrote {place}{note}", soft_wrap=True)
