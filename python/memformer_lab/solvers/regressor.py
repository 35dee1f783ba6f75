"""A Memformer as a scikit-learn regressor: in-context regression without any fitting of its own parameters.

What `classifier` shares with it is `InContextEstimator`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from memformer_lab.solvers.shipped import LARGEST_D, shipped_weights

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, means and centred Gram matrix of the rows seen, each with its weight.

    Attributes:
        count: rows, or the sum of their weights.
        mean: (D,) weighted column means.
        scatter: (D, D) weighted sum over rows of (z - mean)(z - mean)^T.
        constant: (D,) whether a column has had the same value in every row.
        first: (D,) the first row.
    """

    count: float
    mean: Array
    scatter: Array
    constant: NDArray[np.bool_]
    first: Array

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows, `width` columns wide."""
        return cls(0.0, np.zeros(width), np.zeros((width, width)), np.ones(width, dtype=bool), np.zeros(width))

    def with_rows(self, rows: Array, weights: Array | None = None) -> Moments:
        """The moments of the rows seen and of `rows` (n, D), in O(n D^2) (Chan, Golub and LeVeque 1983).

        weights: (n,) positive ones; None: all 1.
        """
        if weights is None:
            weights = np.ones(len(rows))
        added = float(weights.sum())
        first = self.first if self.count else rows[0]
        constant = self.constant & (rows == first).all(0)
        own_mean = weights @ rows / added
        centred = rows - own_mean
        total = self.count + added
        gap = own_mean - self.mean
        own_scatter = (weights[:, None] * centred).T @ centred
        scatter = self.scatter + own_scatter + np.outer(gap, gap) * (self.count * (added / total))
        mean = np.where(constant, first, self.mean + gap * (added / total))
        return Moments(total, mean, scatter, constant, first)

    def faded(self, factor: float) -> Moments:
        """The moments with every weight times `factor`."""
        return replace(self, count=self.count * factor, scatter=self.scatter * factor)

    def standardised(self) -> tuple[Array, Array]:
        """Standard deviations (D,), 0 for constant columns, and the Gram matrix in standard units over the count."""
        count = self.count or 1.0
        variance = np.where(self.constant, 0.0, np.diagonal(self.scatter).clip(min=0) / count)
        deviation = np.sqrt(variance)
        inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        gram = self.scatter / count * np.outer(inverse, inverse)
        return deviation, gram


ROWS_A_FEATURE = 2
"""What a network needs about."""


def readable_components(rows: int) -> int:
    """How many features, or else leading principal components, networks read of so many rows."""
    return max(1, rows // ROWS_A_FEATURE)


class InContextEstimator(BaseEstimator):  # type: ignore[misc]
    """The rows seen as the context of a shipped network, whose weights for each response are its answer.

    Parameters:
        rescale: whether to scale a response's weights by the factor that fits the context best.

    Attributes:
        coef_: (m, d) weights of m responses in the units of X; a subclass may drop an axis of one.
        intercept_: (m,), likewise.
        n_features_in_: d.
        n_samples_seen_: rows in the context.
    """

    def __init__(self, rescale: bool = True) -> None:
        self.rescale = rescale

    moments_: Moments
    n_samples_seen_: int
    coef_: Array
    intercept_: Array | float

    def _check_rescale(self) -> bool:
        if not isinstance(self.rescale, bool | np.bool_):
            raise TypeError(f"rescale: expected a bool, got {self.rescale!r}")
        return bool(self.rescale)

    def _take(
        self, rows: Array, responses: Array, weights: Array | None = None, *, decay: float = 1.0, reset: bool
    ) -> None:
        """Adds rows (n, d) with responses (n, m) to the context, or begins one, and sets the weights.

        weights: of the rows, (n,), where 0 is no row; None: all 1. decay: the factor that a row's weight falls by with
        each row after it.
        """
        columns = np.column_stack([rows, responses])
        seen = Moments.empty(columns.shape[1]) if reset else self.moments_
        if len(seen.mean) != columns.shape[1]:
            raise ValueError(
                f"y: expected {len(seen.mean) - rows.shape[1]} responses, as before, got {responses.shape[1]}"
            )
        given = np.ones(len(columns)) if weights is None else weights
        columns, given = columns[given > 0], given[given > 0]
        count = len(columns)
        if reset and count < 2:
            raise ValueError(f"sample_weight: expected at least 2 rows whose weight is above zero, got {count}")
        if count:
            ages = np.arange(count - 1, -1, -1)
            # In a long stream weights fade below the smallest number: there is no such row any more.
            seen = seen.faded(decay**count).with_rows(columns, given * decay**ages)
        self.moments_ = seen
        self.n_samples_seen_ = count if reset else self.n_samples_seen_ + count
        mean, d = self.moments_.mean, rows.shape[1]
        self.coef_ = _weights(self.moments_, responses.shape[1], rescale=self._check_rescale())
        self.intercept_ = mean[d:] - self.coef_ @ mean[:d]

    def _answers(self, features: ArrayLike) -> Array:
        """(n, m) predictions of the responses."""
        check_is_fitted(self)
        rows = validate_data(self, features, reset=False, dtype=np.float64)
        mean, d = self.moments_.mean, rows.shape[1]
        answers: Array = (rows - mean[:d]) @ np.atleast_2d(self.coef_).T + mean[d:]
        return answers


class MemformerRegressor(RegressorMixin, InContextEstimator):  # type: ignore[misc]
    """Linear regression by a trained Memformer that reads the training rows as its context.

    `fit` keeps the context's mean and Gram matrix, `partial_fit` adds examples to them in O(d^2) each, and the trained
    network (LFOM with Bm free, 4 layers, shipped with the package) turns them into a prediction. Its parameters were
    trained on random tasks with noise and correlated features (`StandardisedTasks`) and never change, so there is
    nothing to tune. Several responses are answered each by itself, from the same context.

    How data of any shape fit the shipped networks:

    - Columns and response are centred and scaled by the context, as in training. A constant column has weight 0, and a
      constant response is predicted.
    - There is a network for each d from 1 to 16. More features are replaced by the context's principal components in
      standard units, and networks read 16 of them at a time: components are uncorrelated over the context, so the
      groups do not depend on each other.
    - A network needs about two rows a feature. With n < 2 d rows only the leading n // 2 components (at least 1) are
      read, as in principal component regression.
    - For each d there are networks trained with 4, 16 and 64 rows a feature; the nearest in the logarithm is taken.
    - A weighted row counts as so many rows, so that the sum of weights is the n of all this; forgetting in
      `partial_fit` lets the weights of earlier rows, and n with them, fade.
    - Far from what the network was trained on it could overshoot. Its weights are therefore scaled by the factor that
      fits the context best, which never predicts the context worse than its mean response does.

    Parameters:
        rescale: whether to scale the network's weights so; False gives the network's bare answer.

    Attributes:
        coef_: (d,) weights in the units of X, or (m, d) of m responses, set by `fit` and `partial_fit`.
        intercept_: float, or (m,).
        n_features_in_: d.
        n_samples_seen_: rows in the context, those of weight 0 not counted.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> MemformerRegressor:
        """Take (n, d) features and (n,) responses, or (n, m), as the context.

        Args:
            X: features.
            y: responses.
            sample_weight: (n,) non-negative weights: w counts as w rows, 0 as none. A number: of each. None: 1.

        Raises:
            ValueError: for fewer than 2 rows of positive weight, missing or infinite values, a negative weight, or
                shapes that do not fit.
            TypeError: for a `rescale` that is no bool, or sparse responses.
        """
        return self._read(X, y, sample_weight, decay=1.0, reset=True)

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, decay: float = 1.0
    ) -> MemformerRegressor:
        """Add rows to the context, of as many responses; begins a new one if there is none.

        Args:
            X: features.
            y: responses.
            sample_weight: as in `fit`.
            decay: what a row's weight is multiplied with for each row that comes after it, above 0 and at most 1. A
                stream in which each call has the same decay keeps about 1 / (1 - decay) rows. A row of weight 0 does
                not come.

        Raises:
            ValueError: as `fit` does; for another number of responses, or a `decay` outside these bounds.
            TypeError: as `fit` does; for a `decay` that is no number.
        """
        return self._read(X, y, sample_weight, decay=decay, reset=not hasattr(self, "n_samples_seen_"))

    def predict(self, X: ArrayLike) -> Array:
        """(k,) predictions for (k, d) features, or (k, m) where y had columns.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for another number of features, or missing or infinite values.
        """
        answers = self._answers(X)
        return answers if self.coef_.ndim == 2 else answers[:, 0]

    def _read(
        self,
        features: ArrayLike,
        response: ArrayLike,
        sample_weight: ArrayLike | None,
        *,
        decay: float,
        reset: bool,
    ) -> MemformerRegressor:
        if isinstance(decay, bool) or not isinstance(decay, Real):
            raise TypeError(f"decay: expected a number, got {decay!r}")
        if not 0 < decay <= 1:
            raise ValueError(f"decay: expected a number above 0 and at most 1, got {decay!r}")
        self._check_rescale()
        if issparse(response):
            raise TypeError(f"y: expected a dense array, got a sparse {type(response).__name__}")
        rows, responses = validate_data(
            self,
            features,
            response,
            reset=reset,
            dtype=np.float64,
            y_numeric=True,
            multi_output=True,
            ensure_min_samples=2 if reset else 1,
        )
        columns = np.asarray(responses, dtype=np.float64)
        weights = _sample_weights(sample_weight, len(rows))
        self._take(rows, columns.reshape(len(rows), -1), weights, decay=decay, reset=reset)
        if columns.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(np.ravel(self.intercept_)[0])
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = False
        tags.target_tags.multi_output = True
        return tags


def _sample_weights(given: ArrayLike | None, rows: int) -> Array | None:
    """Weights (rows,), as they were given or of one number for each row; None: all 1."""
    if given is None:
        return None
    weights: Array = check_array(
        np.full(rows, given) if isinstance(given, Real) else given,
        ensure_2d=False,
        ensure_min_samples=0,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if weights.shape != (rows,):
        raise ValueError(f"sample_weight: expected one weight per row, shape ({rows},), got shape {weights.shape}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(weights.sum())
    if not (weights >= 0).all() or not finite:
        found = f"from {weights.min()} to {weights.max()}"
        raise ValueError(f"sample_weight: expected non-negative weights of a finite sum, got ones {found}")
    return weights


def _weights(moments: Moments, responses: int, *, rescale: bool) -> Array:
    """Weights (m, d) in the units of the data, from the context's moments alone."""
    deviation, gram = moments.standardised()
    d = len(deviation) - responses
    useful, answered = deviation[:d] > 0, deviation[d:] > 0
    weights = np.zeros((responses, d))
    if not useful.any() or not answered.any():
        return weights
    h, b = gram[:d, :d][np.ix_(useful, useful)], gram[d:, :d][np.ix_(answered, useful)]
    found = np.zeros_like(b)
    rows = max(1, round(moments.count))
    for basis in _bases(h, readable_components(rows)):
        found += shipped_weights(basis.T @ h @ basis, b @ basis, rows) @ basis.T
    if rescale:
        curvature, along = (found @ h * found).sum(1), (b * found).sum(1)
        fits = curvature > np.finfo(float).tiny
        found *= np.divide(along, curvature, out=np.zeros_like(along), where=fits)[:, None]
    weights[np.ix_(answered, useful)] = found * deviation[d:][answered][:, None] / deviation[:d][useful]
    return weights


def _bases(h: Array, most: int) -> list[Array]:
    """Bases (d, k <= `LARGEST_D`) of uncorrelated subspaces: the features, or at most `most` leading components."""
    if len(h) <= min(LARGEST_D, most):
        return [np.eye(len(h))]
    values, vectors = np.linalg.eigh(h)
    keep = np.arange(len(h))[::-1][:most]
    keep = keep[values[keep] > values[-1] * len(h) * np.finfo(float).eps]
    components: Array = vectors[:, keep] / np.sqrt(values[keep])
    return [components[:, start : start + LARGEST_D] for start in range(0, components.shape[1], LARGEST_D)]
