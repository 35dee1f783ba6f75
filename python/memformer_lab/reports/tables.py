"""Tables for the terminal: the main job's report, estimates, verdicts, and scores on a table of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memformer_lab.reports.protocol import Outcome
from memformer_lab.reports.results import LABELS, Report
from memformer_lab.solvers.estimates import LEVEL, Estimate

if TYPE_CHECKING:
    # It imports pandas and scikit-learn, for seconds.
    from memformer_lab.solvers.comparison import Score

_REAL_COLUMNS = {
    "memformer": "LFOM",
    "ols": "OLS",
    "ridge": "ridge",
    "gradient_descent": "GD",
    "momentum": "mom.",
    "nesterov": "Nest.",
    "conjugate_gradient": "CGD",
    "context mean": "mean",
}


def print_report(report: Report, console: Console) -> None:
    """Print the random tasks' table, the measured sets' table, and how fast training was."""
    console.print(depth_table(report))
    console.print(set_table(report))
    tasks = sum(run.tasks for run in report.runs)
    rate = tasks / report.seconds["training"]
    phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in report.seconds.items())
    console.print(
        f"Trained {len(report.runs)} models on {tasks:,} tasks at {rate:,.0f} tasks/s in {report.workers} process(es)."
        f"\nTime: {phases}."
    )


def depth_table(report: Report) -> Table:
    """Log mean squared query error by depth, its interval, and the median, for each method on the random tasks."""
    table = Table(
        title="Random non-isotropic tasks (d = 5, n = 20): ln of the mean squared query error",
        caption=f"[{LEVEL:.0%} bootstrap interval], median. Depth k: k steps of an optimiser on the full context with "
        "its optimal parameters for each task, or a Memformer of k layers trained for that depth.",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        collapse_padding=True,
    )
    table.add_column("method, judged on")
    for depth in range(1, len(report.methods[0].depths) + 1):
        table.add_column(f"depth {depth}", justify="right")
    for method in report.methods:
        cells = [
            Text.assemble(
                (_number(one.log_mean), "bold"), (f"\n{_interval(one)}\nmed {_number(one.log_median)}", "dim")
            )
            for one in method.depths
        ]
        label = Text.assemble(LABELS[method.name], (f"\n{method.depths[0].tasks:,} tasks", "dim"))
        table.add_row(label, *cells)
    return table


def set_table(report: Report) -> Table:
    """Mean squared error on held-out rows of the measured sets, in variances of the context's response."""
    layers = report.layers
    table = Table(
        title="Measured data: mean squared error on held-out rows",
        caption="In variances of the context's response. "
        f"LFOM: one Memformer with Bm free for each d, {layers} layers, trained on random tasks alone; n rows of "
        f"context; optimisers run {layers} steps; ridge has the penalty that is best on the same random tasks.",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("set")
    for name in ("d", "n", *_REAL_COLUMNS.values()):
        table.add_column(name, justify="right")
    for one in report.sets:
        errors = {name: Text(_error(one.methods[name].log_mean)) for name in _REAL_COLUMNS}
        best = min(_REAL_COLUMNS, key=lambda name: one.methods[name].log_mean)
        errors[best].stylize("bold")
        table.add_row(one.name, str(one.d), str(one.n), *errors.values())
    return table


def estimate_table(title: str, estimates: dict[str, Estimate]) -> Table:
    """Log mean squared query error of one model, one row for each layer judged."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for name in ("layer", "ln mean", f"{LEVEL:.0%} interval", "ln median", "tasks"):
        table.add_column(name, justify="right")
    for layer, one in estimates.items():
        table.add_row(layer, _number(one.log_mean), Text(_interval(one)), _number(one.log_median), f"{one.tasks:,}")
    return table


def score_table(comparison: Mapping[str, Score]) -> Table:
    """Held-out errors of the methods that a table was solved by."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("method", "mean squared error", "R^2"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, score in comparison.items():
        table.add_row(name, f"{score.mean_squared_error:.4g}", f"{score.r_squared:.3f}")
    return table


def verdict_table(outcomes: Sequence[Outcome]) -> Table:
    """The verdict on every experiment, and how many of its rules hold."""
    table = Table(box=SIMPLE_HEAD, title="Verdicts, computed by the rules in the report", title_justify="left")
    for name in ("experiment", "verdict", "deciding rules that hold"):
        table.add_column(name)
    for outcome in outcomes:
        table.add_row(outcome.experiment.name, outcome.verdict.label, outcome.verdict.held)
    return table


def _number(value: float) -> str:
    return f"{value:.2f}"


def _interval(estimate: Estimate) -> str:
    return f"[{estimate.low:.2f},{estimate.high:.2f}]"


def _error(log_mean: float) -> str:
    return f"{math.exp(log_mean):#.3g}" if log_mean < 700 else "inf"
