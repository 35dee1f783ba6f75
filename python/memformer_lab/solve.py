"""The command `memformer-lab solve`: a table of one's own, by a Memformer, OLS and ridge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from memformer_lab.files import write_atomically
from memformer_lab.terminal import one_line_errors


def solve(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header line.")],
    target: Annotated[str, typer.Option(help="Column to predict.")],
    figure: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("results", "solve.png"),
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
) -> None:
    """Predict one column from the others: Memformer beside OLS and ridge, on held-out rows."""
    # Imported at use: pandas and scikit-learn take seconds.
    from memformer_lab.table_problem import compare, draw, read_table

    console = Console(highlight=False)
    with one_line_errors():
        problem = read_table(table, target, folds)
        comparison = compare(problem, folds, seed)
        write_atomically(figure, draw(problem, comparison))
    shown = Table(
        title=f"{problem.target} from {len(problem.features)} columns, {len(problem.y)} rows, {folds}-fold "
        "cross-validation",
        box=SIMPLE_HEAD,
        title_justify="left",
    )
    for name in ("method", "mean squared error", "R^2"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    for name, score in comparison.items():
        shown.add_row(name, f"{score.mean_squared_error:.4g}", f"{score.r_squared:.3f}")
    console.print(shown)
    console.print(f"Wrote {figure}", soft_wrap=True, markup=False)
