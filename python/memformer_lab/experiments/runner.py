"""All experiments, and running them: shared out over processes, resumed one by one, drawn as they end."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from memformer_lab.reports.pages import Figures, html_page, markdown_page
from memformer_lab.reports.panels import draw_matrix, draw_panel
from memformer_lab.reports.protocol import Experiment, Outcome, Setting, read_outcome, write_outcome
from memformer_lab.reports.results import versions
from memformer_lab.reports.terminal import cores
from memformer_lab.runs.files import write_atomically
from memformer_lab.runs.parallel import Job, Report, Workers

REPORT, SUMMARY = "report.html", "README.md"

EXPERIMENTS: tuple[Experiment, ...] = tuple(
    import_module(f"memformer_lab.experiments.{path.stem}").EXPERIMENT
    for path in sorted(Path(__file__).parent.glob("e[0-9][0-9]_*.py"))
)
"""All experiments, in the order of the report."""


def find(name: str) -> Experiment:
    """The experiment of a name or number.

    Raises:
        ValueError: if there is none.
    """
    for experiment in EXPERIMENTS:
        if name in (experiment.name, str(experiment.number)):
            return experiment
    known = ", ".join(f"{one.number} {one.name}" for one in EXPERIMENTS)
    raise ValueError(f"no experiment is called {name!r}; there are {known}")


def run_experiments(
    names: Sequence[str],
    setting: Setting,
    folder: Path,
    *,
    workers: int = 1,
    again: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Run experiments and write "<name>.json", "<name>-<panel>.png", "report.html" and "README.md" into `folder`.

    An experiment whose file is there already, from the same setting and the same code, is not run again. What is found
    does not depend on the number of workers. Those that take longest begin first.

    Args:
        names: experiments by name or number, in the order of the report.
        setting: scale and seed.
        folder: where to write.
        workers: processes to share the experiments, of one thread each.
        again: run them even if their files are there.
        say: told what begins and ends.

    Raises:
        ValueError: for an unknown name, before anything runs.
        OSError: if the folder cannot be written.
    """
    experiments = [find(name) for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    found = {one.name: None if again else read_outcome(folder, one, setting) for one in experiments}
    missing = [one for one in experiments if found[one.name] is None]
    missing.sort(key=lambda one: -one.minutes)
    for one in experiments:
        if found[one.name] is not None:
            say(f"{one.name}: found in {folder}")

    def report(_: int, note: str) -> None:
        say(note)

    with Workers(min(workers, max(1, len(missing)))) as pool:
        pool.run([Job(_run_one, (one.name, setting, folder)) for one in missing], report)
    outcomes = []
    for one in experiments:
        outcome = found[one.name] or read_outcome(folder, one, setting)
        if outcome is None:
            raise OSError(f"{folder / one.name}.json: expected the results just written, found none that can be read")
        outcomes.append(outcome)
    _draw(outcomes, folder)
    return outcomes


def judge_again(names: Sequence[str], setting: Setting, folder: Path) -> list[Outcome]:
    """Apply the rules of this code to results that are in `folder`, whatever code found them, and run nothing.

    Verdicts in "<name>.json", pictures and pages are written again; numbers, times and versions stay those of the run.

    Args:
        names: experiments by name or number, in the order of the report.
        setting: scale and seed.
        folder: where the results are.

    Raises:
        ValueError: for an unknown name, and for an experiment without results that the rules can read.
        OSError: if the folder cannot be written.
    """
    outcomes = []
    for one in map(find, names):
        outcome = read_outcome(folder, one, setting, any_code=True)
        if outcome is None:
            raise ValueError(
                f"{folder}: expected {setting.scale} results of seed {setting.seed} in {one.name}.json, found none: "
                "name experiments and their scale, or run them first"
            )
        outcomes.append(outcome)
    for outcome in outcomes:
        write_outcome(folder, outcome)
    _draw(outcomes, folder)
    return outcomes


def _run_one(name: str, setting: Setting, folder: Path, report: Report) -> None:
    """Run one experiment and leave its files, so that an interrupted run goes on after it."""
    experiment = find(name)
    report(0, f"{name}: running")
    begin, cpu_begin = time.perf_counter(), time.process_time()
    results = experiment.run(setting)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    outcome = Outcome(experiment, setting, results, seconds, cpu_seconds, _machine(), versions())
    write_outcome(folder, outcome)
    report(1, f"{name}: {outcome.verdict.label}, {outcome.seconds:.0f} s")


def _draw(outcomes: Sequence[Outcome], folder: Path) -> None:
    """The pictures and both pages."""
    drawn = [(outcome, _figures(outcome)) for outcome in outcomes]
    for outcome, figures in drawn:
        for panel, picture in figures.items():
            write_atomically(folder / f"{outcome.experiment.name}-{panel}.png", picture)
    write_atomically(folder / REPORT, html_page(drawn).encode())
    write_atomically(folder / SUMMARY, markdown_page(outcomes).encode())


def _machine() -> str:
    """The processor's name where the system tells it, else its architecture, and the cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


def _figures(outcome: Outcome) -> Figures:
    panels = (panel for panel in outcome.results.panels if len(panel.places) > 1)
    pictures = {panel.name: draw_panel(panel) for panel in panels}
    return pictures | {matrix.name: draw_matrix(matrix) for matrix in outcome.results.matrices}
