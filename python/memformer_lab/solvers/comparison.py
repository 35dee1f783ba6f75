"""Several methods on one table, compared by cross-validation: a Memformer, least squares, ridge and the mean."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memformer_lab.solvers.regressor import ROWS_A_FEATURE, MemformerRegressor, readable_components
from memformer_lab.tasks.table import Array, Problem

_WORSE = 1.25  # times an error from which on it is said
_PENALTIES = np.logspace(-4, 4, 33)


@dataclass(frozen=True)
class Score:
    """Held-out predictions (n,) and how good they are; all NaN where the method failed, and why."""

    predictions: Array
    mean_squared_error: float
    r_squared: float
    failure: str = ""


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


def advice(problem: Problem, comparison: dict[str, Score], folds: int) -> list[str]:
    """Where another method does better than the Memformer, which one, and why where that is known."""
    own = comparison["Memformer"].mean_squared_error
    peers = {name: comparison[name].mean_squared_error for name in ("OLS", "ridge") if not comparison[name].failure}
    best = min(peers, key=peers.__getitem__, default=None)
    if best is None or not peers[best] < own / _WORSE:
        return []
    said = [f"Take {best} for this table: its error is {peers[best] / own:.2f} of the Memformer's."]
    rows, columns = len(problem.y) * (folds - 1) // folds, len(problem.features)
    if columns > readable_components(rows):
        said.append(
            f"The Memformer needs {ROWS_A_FEATURE} rows a column: with {rows} rows it reads the "
            f"{readable_components(rows)} leading principal components of {columns} columns, and what the others hold "
            "is lost to it."
        )
    return said


def _score(y: Array, predictions: Array) -> Score:
    error = float(np.square(predictions - y).mean())
    variance = float(y.var())
    return Score(predictions, error, 1 - error / variance if variance else float("nan"))
