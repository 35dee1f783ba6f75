"""`python -m benchmarks`: one table, every provider on one workload at several batch sizes, and its JSON record."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.machine import ROOT
from benchmarks.providers import select
from benchmarks.record import write_report
from benchmarks.run import run
from benchmarks.table import print_report
from benchmarks.workloads import BATCHES, QUICK_BATCHES, WORKLOADS

app = typer.Typer(add_completion=False)


@app.command()
def main(
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(WORKLOADS)}.")] = "W",
    batch: Annotated[list[int] | None, typer.Option(help="Tasks; repeat for several sizes.", min=1)] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Part of a provider's name; repeat for several.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small batches, few runs: a look, not a record.")] = False,
    json: Annotated[Path | None, typer.Option(help="Record; default results/bench/<workload>.json.")] = None,
) -> None:
    """Time every provider on one workload on the CPU, each behind a correctness gate, and print one table."""
    if workload not in WORKLOADS:
        raise typer.BadParameter(f"{workload!r} is not one of {', '.join(WORKLOADS)}", param_hint="--workload")
    try:
        providers = select(provider or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--provider") from error
    sizes = batch or (QUICK_BATCHES if quick else BATCHES)
    path = json or ROOT / "results" / "bench" / f"{workload}.json"
    console = Console()
    with console.status("starting") as status:
        report = run(
            [WORKLOADS[workload].with_batch(size) for size in sizes],
            providers,
            torch.device("cpu"),
            quick=quick,
            announce=status.update,
        )
    write_report(path, report)
    print_report(report, console)
    console.print(f"{report.seconds:.0f} s; record: {path}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
