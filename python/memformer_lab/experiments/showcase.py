"""The main job: train Memformers of several depths, compare them with classical optimisers, judge on measured data."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memformer_lab.experiments.common import DEPTHS
from memformer_lab.experiments.contests import (
    METHODS,
    REAL_LAYERS,
    Budget,
    Run,
    depth_contests,
    depth_runs,
    judge,
    judge_real_set,
    real_runs,
    train_run,
)
from memformer_lab.reports.drawing import draw_report
from memformer_lab.reports.results import MethodResult, Report, versions
from memformer_lab.reports.tables import print_report
from memformer_lab.reports.terminal import task_progress
from memformer_lab.runs.files import keep_earlier, write_atomically
from memformer_lab.runs.parallel import Job, Workers
from memformer_lab.tasks import real


def run_showcase(
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    budget: Budget | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> Report:
    """Train, judge, print, and write "report.json", "figure.png" and "runs/<name>/" below `output`.

    What is found depends on `seed` and `budget` alone, not on the number of workers.

    Args:
        output: folder. An earlier report and figure there are kept beside the new ones; runs are replaced.
        seed: of parameters, tasks, their rotation and all that is judged on; >= 0.
        budget: how much to do; None is the full job.
        workers: processes to share the work, of one thread each.
        console: where to print.

    Raises:
        ValueError: for an argument out of range.
        OSError: if `output` cannot be written.
        TrainingDiverged: if a run diverges.
    """
    folder, budget, console = Path(output), budget or Budget(), console or Console()
    where, clock = folder / "runs", _Clock()
    where.mkdir(parents=True, exist_ok=True)
    by_structure = depth_runs(budget, seed)
    with Workers(workers) as pool, task_progress(console) as progress:
        sets = [real.load(name) for name in budget.sets]
        by_d = real_runs(sets, budget, seed)

        def run_jobs(name: str, jobs: list[Job], tasks: int) -> list[Any]:
            bar = progress.add_task(name, total=tasks, note="")
            results = pool.run(jobs, lambda done, note: progress.update(bar, advance=done, note=note))
            progress.update(bar, note="")
            clock.lap(name)
            return results

        runs = sorted([*by_d.values(), *by_structure["block"], *by_structure["response-only"]], key=_work, reverse=True)
        training = [Job(train_run, (run.name, run.config, where / run.name)) for run in runs]
        summaries = run_jobs("training", training, sum(run.tasks for run in runs))

        contests = depth_contests(by_structure, where, budget, seed)
        found = judge(contests, partial(run_jobs, "random tasks"), seed)

        measured = [
            Job(judge_real_set, (dataset, where / by_d[dataset.x.shape[1]].name, budget.contexts, seed))
            for dataset in sets
        ]
        judged = run_jobs("measured data", measured, budget.contexts * len(measured))
    report = Report(
        seed=seed,
        methods=tuple(MethodResult(name, tuple(found[name, depth] for depth in DEPTHS)) for name in METHODS),
        sets=tuple(judged),
        layers=REAL_LAYERS,
        runs=tuple(summaries),
        workers=workers,
        seconds=clock.laps,
        versions=versions(),
    )
    kept = [aside for name in ("report.json", "figure.png") if (aside := keep_earlier(folder / name))]
    try:
        write_atomically(folder / "report.json", report.to_json().encode())
        write_atomically(folder / "figure.png", draw_report(report))
    finally:
        print_report(report, console)
    # As a Text, in which no part of a folder's name is read as markup.
    wrote = f"{clock.total():.0f} s in all. Wrote report.json, figure.png and runs/ in {folder}"
    console.print(Text(wrote), soft_wrap=True)
    if kept:
        console.print(Text(f"The earlier ones are {' and '.join(map(str, kept))}"), soft_wrap=True)
    return report


class _Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.laps[phase], self._last = now - self._last, now

    def total(self) -> float:
        return time.perf_counter() - self._first


def _work(run: Run) -> int:
    """Grows with a run's time, so that the longest start first."""
    config = run.config
    return (
        config.steps * config.layers * (config.batch + config.d * config.n) * (4 if config.structure == "block" else 1)
    )
