"""The command `memformer-lab reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from memformer_lab.reports.protocol import Scale, Setting
from memformer_lab.reports.tables import verdict_table
from memformer_lab.reports.terminal import MOST_WORKERS, command, cores

HELP = "Test the literature's claims; leaves JSON, figures and report.html. A stopped run goes on where it was."


def reproduce(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045, typer before 0.13 cannot read the other spelling
        typer.Argument(help="Experiments by name or number.", show_default="all"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes in all (the default).")] = False,
    full: Annotated[bool, typer.Option("--full", help="Hours in all: the real thing.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Seconds in all, to see that everything runs.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="List them, with processor minutes of --full.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results, figures and the report.")] = Path(
        "results", "experiments"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=MOST_WORKERS, help="Processes that share the experiments.", show_default="one a core"),
    ] = None,
    again: Annotated[bool, typer.Option("--anew", help="Run again what is already in the folder.")] = False,
    judge: Annotated[bool, typer.Option("--judge", help="Judge again what is in the folder, and run nothing.")] = False,
) -> None:
    """The command, as `HELP` says."""
    with command(*([] if list_only else [out])) as console:
        # Imported at use: the experiments import matplotlib, scikit-learn and the like, for seconds.
        from memformer_lab.experiments.runner import EXPERIMENTS, REPORT, judge_again, run_experiments

        if list_only:
            for one in EXPERIMENTS:
                console.print(f"{one.number:>2} {one.name:<14} {one.minutes:>3} min  {one.title}", soft_wrap=True)
            return
        chosen: list[Scale] = [scale for scale, given in (("tiny", tiny), ("quick", quick), ("full", full)) if given]  # type: ignore[misc]
        if judge and again:
            raise ValueError("--judge runs nothing, --anew runs all again: expected one of them")
        if len(chosen) > 1:
            raise ValueError(f"--{' and --'.join(chosen)} cannot go together")
        setting = Setting(chosen[0] if chosen else "quick", seed)
        chosen_names = names or [one.name for one in EXPERIMENTS]
        if judge:
            outcomes = judge_again(chosen_names, setting, out)
        else:
            outcomes = run_experiments(
                chosen_names,
                setting,
                out,
                workers=workers or cores(),
                again=again,
                say=lambda text: console.print(text, soft_wrap=True),
            )
        console.print(verdict_table(outcomes))
        console.print(f"Wrote {out / REPORT}", soft_wrap=True)
