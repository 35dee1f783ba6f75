"""The command `memformer-lab solve`: a table of one's own, by a Memformer, OLS and ridge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from memformer_lab.reports.terminal import command
from memformer_lab.runs.files import write_atomically

HELP = "Predict one column from the others: Memformer beside OLS and ridge, on held-out rows."


def solve(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header line.")],
    target: Annotated[str, typer.Option(help="Column to predict.")],
    figure: Annotated[Path, typer.Option(help="Where the plot goes: .png, .svg or .pdf.")] = Path(
        "results", "solve.png"
    ),
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
    sep: Annotated[
        Optional[str],  # noqa: UP045, typer before 0.13 cannot read the other spelling
        typer.Option(help="What separates the columns; tab for a tab.", show_default="found out"),
    ] = None,
    decimal: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The decimal sign, . or a comma.", show_default="found out"),
    ] = None,
    encoding: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The file's encoding, e.g. cp1252.", show_default="found out"),
    ] = None,
) -> None:
    """The command, as `HELP` says."""
    with command(figure) as console:
        # Imported at use: pandas and scikit-learn take seconds.
        from memformer_lab.reports.pictures import format_of
        from memformer_lab.reports.table_problem import compare, draw, read_table

        form = format_of(figure)
        separator = {"tab": "\t", "\\t": "\t"}.get(sep, sep) if sep is not None else None
        problem = read_table(table, target, folds, separator=separator, decimal=decimal, encoding=encoding)
        comparison = compare(problem, folds, seed)
        # In a line of its own: a table would fold it, and a column's name with it, to its own width.
        title = f"{target} from {len(problem.features)} columns, {len(problem.y)} rows, {folds}-fold cross-validation"
        shown = Table(box=SIMPLE_HEAD)
        for name in ("method", "mean squared error", "R^2"):
            shown.add_column(name, justify="left" if name == "method" else "right")
        for name, score in comparison.items():
            shown.add_row(name, f"{score.mean_squared_error:.4g}", f"{score.r_squared:.3f}")
        try:
            write_atomically(figure, draw(problem, comparison, form))
        finally:
            console.print(title, soft_wrap=True)
            console.print(shown)
            for name, score in comparison.items():
                if score.failure:
                    console.print(f"{name} failed: {score.failure}", soft_wrap=True)
        console.print(f"Wrote {figure}", soft_wrap=True)
