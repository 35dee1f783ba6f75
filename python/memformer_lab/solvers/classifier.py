"""A Memformer as a scikit-learn classifier: in-context regression on one response for each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from memformer_lab.solvers.regressor import Array, InContextEstimator


class MemformerClassifier(ClassifierMixin, InContextEstimator):  # type: ignore[misc]
    """Linear classification by a trained Memformer that reads the training rows as its context.

    Each class is a response, 1 in rows of that class and 0 in others, and the class of the largest prediction is
    taken: least squares on one-hot responses, as scikit-learn's RidgeClassifier has it. The context, the networks and
    what they do with data of any shape are those of `MemformerRegressor`. A class between two others along one line can
    be hidden by them, as with any regression on one-hot responses.

    Parameters:
        rescale: whether to scale the network's weights so that they fit the context best; False gives its bare answer.

    Attributes:
        classes_: (K,) the labels, in order.
        coef_: (K, d) weights in the units of X, set by `fit` and `partial_fit`.
        intercept_: (K,).
        n_features_in_: d.
        n_samples_seen_: rows in the context.
    """

    classes_: NDArray[Any]

    def fit(self, X: ArrayLike, y: ArrayLike) -> MemformerClassifier:
        """Take (n, d) features and (n,) labels as the context.

        Raises:
            ValueError: for fewer than 2 rows, missing or infinite values, labels that are none, or shapes that do not
                fit.
            TypeError: for a `rescale` that is no bool.
        """
        return self._read(X, y, None, reset=True)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> MemformerClassifier:
        """Add rows to the context; begins a new one if there is none.

        Args:
            X: (n, d) features.
            y: (n,) labels out of `classes`.
            classes: all labels, needed where a context begins; later None or the same ones.

        Raises:
            ValueError: as `fit` does, for a label or for `classes` that are others than before, and for none at first.
            TypeError: for a `rescale` that is no bool.
        """
        reset = not hasattr(self, "n_samples_seen_")
        if reset and classes is None:
            raise ValueError("classes: expected all labels where a context begins, got None")
        given = None if classes is None else np.unique(np.asarray(classes))
        if not reset and given is not None and not np.array_equal(given, self.classes_):
            raise ValueError(f"classes: expected {self.classes_.tolist()}, as before, got {given.tolist()}")
        return self._read(X, y, self.classes_ if given is None else given, reset=reset)

    def decision_function(self, X: ArrayLike) -> Array:
        """(k, K) predictions of the classes' responses; of two classes (k,) the second's minus the first's.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for another number of features, or missing or infinite values.
        """
        scores = self._answers(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(k,) labels for (k, d) features. Errors are those of `decision_function`."""
        scores = self._answers(X)
        labels: NDArray[Any] = self.classes_[scores.argmax(1)]
        return labels

    def predict_proba(self, X: ArrayLike) -> Array:
        """(k, K) the probabilities that are nearest to the predictions of the classes' responses.

        Nearest in the Euclidean distance: max(0, prediction - t) with the t that makes them add up to 1. They are in
        the order of the predictions, many are 0 or 1, and nothing has calibrated them. Errors are those of
        `decision_function`.
        """
        scores = self._answers(X)
        falling = -np.sort(-scores, axis=1)
        places = np.arange(1, scores.shape[1] + 1)
        thresholds = (falling.cumsum(1) - 1) / places
        # The threshold of as many entries as stay above their own.
        kept = (falling > thresholds).sum(1) - 1
        probabilities: Array = np.maximum(scores - np.take_along_axis(thresholds, kept[:, None], 1), 0.0)
        return probabilities

    def _read(
        self, features: ArrayLike, labels: ArrayLike, classes: NDArray[Any] | None, *, reset: bool
    ) -> MemformerClassifier:
        self._check_rescale()
        least = 2 if reset else 1
        rows, given = validate_data(self, features, labels, reset=reset, dtype=np.float64, ensure_min_samples=least)
        check_classification_targets(given)
        known = np.unique(given) if classes is None else classes
        unknown = np.setdiff1d(given, known)
        if len(unknown):
            raise ValueError(f"y: expected labels out of {known.tolist()}, got {unknown.tolist()}")
        self.classes_ = known
        self._take(rows, (given[:, None] == known).astype(np.float64), reset=reset)
        return self
