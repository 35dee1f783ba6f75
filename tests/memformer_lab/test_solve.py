from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
from typer.testing import CliRunner, Result

from memformer_lab.cli import app
from memformer_lab.table_problem import compare, read_table


def _frame(rows: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["y"] = 2 * frame["a"] - frame["b"] + 0.1 * random.normal(size=rows)
    return frame


def _solve(frame: pd.DataFrame, folder: Path, *options: str, target: str = "y") -> Result:
    path = folder / "data.csv"
    frame.to_csv(path, index=False)
    figure = str(folder / "plot.png")
    return CliRunner().invoke(app, ["solve", str(path), "--target", target, "--figure", figure, *options])


def test_a_table_is_solved_beside_least_squares_and_ridge(tmp_path: Path) -> None:
    result = _solve(_frame(), tmp_path)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines() if line.split()}
    for name in ("Memformer", "OLS", "ridge"):
        assert float(lines[name][-1]) > 0.9
    assert float(lines["mean"][-1]) < 0.2
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert picture[..., :3].std() > 0.02


def test_scores_are_on_held_out_rows(tmp_path: Path) -> None:
    frame = _frame(30)
    frame["y"] = np.random.default_rng(1).normal(size=30)
    path = tmp_path / "noise.csv"
    frame.to_csv(path, index=False)
    comparison = compare(read_table(path, "y"), 5, 0)
    assert comparison["OLS"].r_squared < 0.1
    assert comparison["Memformer"].r_squared < 0.1


def _assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]


def test_missing_values_are_named(tmp_path: Path) -> None:
    frame = _frame()
    frame.loc[3, "b"] = None
    frame.loc[[3, 7], "y"] = None
    _assert_refused(_solve(frame, tmp_path), "2 of 40 rows have missing or infinite values", "columns b, y")
    assert not (tmp_path / "plot.png").exists()


def test_text_columns_are_named(tmp_path: Path) -> None:
    frame = _frame()
    frame["town"] = "Paris"
    _assert_refused(_solve(frame, tmp_path), "columns town hold text")


def test_too_few_rows_are_counted(tmp_path: Path) -> None:
    _assert_refused(_solve(_frame(4), tmp_path), "has 4 rows, expected at least 5 for 5 folds")
    assert _solve(_frame(5), tmp_path).exit_code == 0
    _assert_refused(_solve(_frame(8), tmp_path, "--folds", "9"), "has 8 rows, expected at least 9")


def test_other_bad_tables(tmp_path: Path) -> None:
    _assert_refused(_solve(_frame(), tmp_path, target="z"), "columns a, b, c, y, got 'z'")
    _assert_refused(_solve(_frame()[["y"]], tmp_path), "no column beside 'y'")
    (tmp_path / "empty.csv").write_text("")
    _assert_refused(CliRunner().invoke(app, ["solve", str(tmp_path / "empty.csv"), "--target", "y"]), "not a CSV table")
    _assert_refused(CliRunner().invoke(app, ["solve", str(tmp_path / "none.csv"), "--target", "y"]), "none.csv")
