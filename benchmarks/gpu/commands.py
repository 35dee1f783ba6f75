"""`python -m benchmarks virtual` and `gpu-floors`: what the GPU kernels do on a virtual GPU and need of an H200."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu import floors, goals
from benchmarks.gpu.virtual_record import GPUS, as_table, read, write
from benchmarks.measure.sources import ROOT
from benchmarks.reports.record import write_json

VIRTUAL_HELP = (
    "Run the hot kernels of both GPU backends on a virtual GPU: their counters, and what the model of time predicts "
    "for an H200 or an A100. No GPU is needed, and none has confirmed a prediction.\n\nThe record is written after "
    "each case; cases that are not named stay as they are in it."
)

FLOORS_HELP = (
    "Work out, from the counters of `virtual`, what the GPU kernels need of an H200, and the floor of what their "
    "work must move; measures nothing."
)

RESULTS = ROOT / "results" / "bench"
WIDTH = 136
"""Of the table, which no narrower terminal shows whole."""


def count(
    case: Annotated[list[str] | None, typer.Option(help="Part of 'BACKEND, NAME' of a case; default all.")] = None,
    architecture: Annotated[list[int] | None, typer.Option(help="90 or 80; repeat for both; default 90.")] = None,
    json: Annotated[Path, typer.Option(help="Record.")] = RESULTS / "virtual-gpu.json",
    show: Annotated[bool, typer.Option("--show", help="Run nothing: print the record.")] = False,
) -> None:
    # Triton and the CUDA library's host code are looked for when they are needed: other commands do without.
    from benchmarks.gpu import virtual, virtual_cases
    from virtual_gpu.build import BuildFailed

    console = Console()
    console.width = max(console.width, WIDTH)
    try:
        known = {one.key: one for one in (read(json) if show or json.exists() else ())}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--json") from error
    if show:
        console.print(as_table(list(known.values())))
        return
    for number in architecture or ():
        if number not in GPUS:
            raise typer.BadParameter(f"{number} is not one of {', '.join(map(str, GPUS))}")
    every = virtual_cases.cases()
    chosen = [one for one in every if not case or any(part in f"{one.backend}, {one.name}" for part in case)]
    if not chosen:
        names = "; ".join(f"{one.backend}, {one.name}" for one in every)
        raise typer.BadParameter(f"no case holds it; they are {names}", param_hint="--case")
    machines, counted = virtual.Machines(), []
    for number in architecture or (90,):
        for one in chosen:
            with console.status(f"{one.backend}, {one.name}, sm_{number}"):
                try:
                    made = machines.count(one, number)
                except (RuntimeError, BuildFailed) as error:
                    console.print(f"{one.backend}, {one.name}: {error}", markup=False, soft_wrap=True)
                    raise typer.Exit(1) from error
            counted.append(made)
            known[made.key] = made
            write(json, list(known.values()))
    console.print(as_table(counted))
    console.print(f"record: {json}", soft_wrap=True)


def floors_of_a_gpu(
    counted: Annotated[Path, typer.Option(help="Record of `virtual`.")] = floors.COUNTED,
    json: Annotated[Path, typer.Option(help="Record.")] = RESULTS / "h200-floors.json",
) -> None:
    try:
        rows = floors.sheet(counted)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--counted") from error
    write_json(json, floors.HEAD, {"cases": rows})
    console = Console()
    floors.print_sheet(rows, console)
    goals.print_goals(rows, console)
    console.print(f"record: {json}", soft_wrap=True)
