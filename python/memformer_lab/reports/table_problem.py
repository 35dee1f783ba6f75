"""A regression problem in a CSV file: read with clear refusals, cross-validated by several methods, drawn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memformer_lab.reports.pictures import encode
from memformer_lab.solvers.regressor import MemformerRegressor
from memformer_lab.tasks.table_file import quoted, read_frame, text_columns

Array = NDArray[np.float64]

LEAST_ROWS = 4
"""Rows that every fold must leave for fitting."""

_PENALTIES = np.logspace(-4, 4, 33)


@dataclass(frozen=True)
class Problem:
    """Features x (n, d) by name, and the target y (n,)."""

    x: Array
    y: Array
    features: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Score:
    """Held-out predictions (n,) and how good they are; all NaN where the method failed, and why."""

    predictions: Array
    mean_squared_error: float
    r_squared: float
    failure: str = ""


def read_table(
    path: Path,
    target: str,
    folds: int = 5,
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
) -> Problem:
    """Read a CSV file whose columns are all numbers. `separator`, `decimal` and `encoding` are those of `read_frame`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no table, a target that is not there, text columns, missing or infinite values,
            or too few rows or columns, each named.
    """
    frame = read_frame(path, separator=separator, decimal=decimal, encoding=encoding)
    if target not in frame.columns:
        raise ValueError(f"target: {path} has columns {quoted(frame.columns)}, got {target!r}")
    text = frame.columns[text_columns(frame)]
    if len(text):
        raise ValueError(
            f"{path}: columns {quoted(text)} hold text, expected numbers: leave them out or encode them as numbers"
        )
    values = frame.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        rows = int(bad.any(1).sum())
        raise ValueError(
            f"{path}: {rows} of {len(values)} rows have missing or infinite values, in columns "
            f"{quoted(frame.columns[bad.any(0)])}: "
            "fill them in or leave those rows out"
        )
    features = tuple(str(name) for name in frame.columns if name != target)
    if not features:
        raise ValueError(f"{path} has no column beside {target!r}, expected at least one to predict it from")
    left = len(values) - -(-len(values) // folds)
    if len(values) < folds or left < LEAST_ROWS:
        least = max(folds, next(n for n in range(2, 100) if n - -(-n // folds) >= LEAST_ROWS))
        raise ValueError(f"{path} has {len(values)} rows, expected at least {least} for {folds} folds")
    place = list(frame.columns).index(target)
    return Problem(np.delete(values, place, axis=1), values[:, place], features, target)


def compare(problem: Problem, folds: int, seed: int) -> dict[str, Score]:
    """Held-out predictions of a Memformer, OLS, ridge (penalty by leave-one-out on training rows) and the mean.

    A peer that cannot solve the problem says so in its score, and the others go on.
    """
    split = KFold(folds, shuffle=True, random_state=seed)
    peers = {"OLS": LinearRegression(), "ridge": make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))}
    with warnings.catch_warnings():
        # Of an overflow the scores tell.
        warnings.simplefilter("ignore")
        ours = cross_val_predict(MemformerRegressor(), problem.x, problem.y, cv=split)
        found = {"Memformer": _score(problem.y, ours)}
        for name, peer in peers.items():
            try:
                found[name] = _score(problem.y, cross_val_predict(peer, problem.x, problem.y, cv=split))
            except Exception as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [type(error).__name__])[0]}"
                found[name] = Score(np.full_like(problem.y, np.nan), np.nan, np.nan, reason)
        means = np.empty_like(problem.y)
        for rest, held in split.split(problem.x):
            means[held] = problem.y[rest].mean()
        return found | {"mean": _score(problem.y, means)}


def draw(problem: Problem, comparison: dict[str, Score], form: str = "png") -> bytes:
    """A picture, in one of `pictures.FORMATS`: predicted against measured, for each method but the mean."""
    shown = {name: score for name, score in comparison.items() if name != "mean"}
    figure = Figure(figsize=(4 * len(shown), 4), dpi=110, layout="constrained")
    low, high = float(problem.y.min()), float(problem.y.max())
    for axes, (name, score) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        axes.plot([low, high], [low, high], color="#888888", linewidth=1)
        axes.scatter(problem.y, score.predictions, s=14, alpha=0.7, color="#2b6cb0")
        axes.set_title(f"{name} failed" if score.failure else f"{name}, R² = {score.r_squared:.3f}", fontsize=10)
        # A column's name is no formula, whatever dollars are in it.
        axes.set_xlabel(f"{problem.target}, measured", parse_math=False)
        axes.set_ylabel("predicted on held-out rows")
        axes.grid(alpha=0.25)
    return encode(figure, form)


def _score(y: Array, predictions: Array) -> Score:
    error = float(np.square(predictions - y).mean())
    variance = float(y.var())
    return Score(predictions, error, 1 - error / variance if variance else float("nan"))
