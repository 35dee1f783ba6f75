"""A regression problem in a CSV file: read with clear refusals, cross-validated by several methods, drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memformer_lab.regressor import MemformerRegressor

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
    """Held-out predictions (n,) and how good they are."""

    predictions: Array
    mean_squared_error: float
    r_squared: float


def read_table(path: Path, target: str, folds: int = 5) -> Problem:
    """Read a CSV file whose columns are all numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no table, a target that is not there, text columns, missing or infinite
        values, or
            too few rows or columns, each named.
    """
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from error
    if target not in frame.columns:
        raise ValueError(f"target: {path} has columns {', '.join(map(str, frame.columns))}, got {target!r}")
    text = [str(name) for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if text:
        raise ValueError(
            f"{path}: columns {', '.join(text)} hold text, expected numbers: leave them out or encode them as numbers"
        )
    values = frame.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        columns = ", ".join(str(name) for name, any_bad in zip(frame.columns, bad.any(0), strict=True) if any_bad)
        rows = int(bad.any(1).sum())
        raise ValueError(
            f"{path}: {rows} of {len(values)} rows have missing or infinite values, in columns {columns}: "
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
    """Held-out predictions of a Memformer, OLS, ridge (penalty by leave-one-out on training rows) and the mean."""
    split = KFold(folds, shuffle=True, random_state=seed)
    methods = {
        "Memformer": MemformerRegressor(),
        "OLS": LinearRegression(),
        "ridge": make_pipeline(StandardScaler(), RidgeCV(_PENALTIES)),
    }
    found = {name: cross_val_predict(method, problem.x, problem.y, cv=split) for name, method in methods.items()}
    means = np.empty_like(problem.y)
    for rest, held in split.split(problem.x):
        means[held] = problem.y[rest].mean()
    return {name: _score(problem.y, predictions) for name, predictions in (found | {"mean": means}).items()}


def draw(problem: Problem, comparison: dict[str, Score]) -> bytes:
    """A PNG: predicted against measured, for each method but the mean."""
    shown = {name: score for name, score in comparison.items() if name != "mean"}
    figure = Figure(figsize=(4 * len(shown), 4), dpi=110, layout="constrained")
    low, high = float(problem.y.min()), float(problem.y.max())
    for axes, (name, score) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        axes.plot([low, high], [low, high], color="#888888", linewidth=1)
        axes.scatter(problem.y, score.predictions, s=14, alpha=0.7, color="#2b6cb0")
        axes.set_title(f"{name}, R² = {score.r_squared:.3f}", fontsize=10)
        axes.set_xlabel(f"{problem.target}, measured")
        axes.set_ylabel("predicted on held-out rows")
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _score(y: Array, predictions: Array) -> Score:
    error = float(np.square(predictions - y).mean())
    variance = float(y.var())
    return Score(predictions, error, 1 - error / variance if variance else float("nan"))
