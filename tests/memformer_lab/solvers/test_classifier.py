from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from memformer_lab import MemformerClassifier, MemformerRegressor


def _groups(rows: int = 90, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around three centres, with the names of these."""
    random = np.random.default_rng(seed)
    names = random.permutation(np.arange(rows) % 3)
    centres = 3 * np.eye(3, d)
    return centres[names] + random.normal(size=(rows, d)), np.array(["blue", "green", "red"])[names]


@pytest.mark.parametrize(
    "check",
    [pair[1] for pair in estimator_checks_generator(MemformerClassifier())],
    ids=lambda check: check.func.__name__,
)
def test_scikit_learns_own_checks(check: object) -> None:
    check(MemformerClassifier())  # type: ignore[operator]


def test_classes_are_responses_of_the_regressor() -> None:
    x, y = _groups()
    model = MemformerClassifier().fit(x, y)
    assert model.classes_.tolist() == ["blue", "green", "red"]
    assert model.coef_.shape == (3, 3)
    scores = MemformerRegressor().fit(x, (y[:, None] == model.classes_).astype(float)).predict(x)
    np.testing.assert_array_equal(model.decision_function(x), scores)
    np.testing.assert_array_equal(model.predict(x), model.classes_[scores.argmax(1)])
    assert model.score(x, y) > 0.9


def test_measured_data() -> None:
    x, y = load_wine(return_X_y=True)
    ours = cross_val_score(MemformerClassifier(), x, y).mean()
    best = cross_val_score(make_pipeline(StandardScaler(), RidgeClassifier()), x, y).mean()
    assert ours > best - 0.03


def test_two_classes_have_one_score() -> None:
    x, y = _groups()
    x, y = x[y != "red"], y[y != "red"]
    model = MemformerClassifier().fit(x, y)
    scores = model.decision_function(x)
    assert scores.shape == y.shape
    np.testing.assert_array_equal(model.predict(x) == "green", scores > 0)


def test_probabilities_are_the_nearest_ones() -> None:
    x, y = _groups()
    model = MemformerClassifier().fit(x, y)
    scores, made = model.decision_function(5 * x), model.predict_proba(5 * x)
    assert (made >= 0).all()
    np.testing.assert_allclose(made.sum(1), 1.0)
    np.testing.assert_array_equal(model.classes_[made.argmax(1)], model.predict(5 * x))
    # Nearest: what was taken off is the same for all that is above 0, and at least as much as the rest had.
    taken = scores - made
    for row, probabilities in zip(taken, made, strict=True):
        above = probabilities > 0
        assert np.ptp(row[above]) < 1e-9
        assert (row[~above] <= row[above].max() + 1e-9).all()


def test_a_context_may_come_in_parts() -> None:
    x, y = _groups()
    whole, parts = MemformerClassifier().fit(x, y), MemformerClassifier()
    order = np.argsort(y)  # the first part has one class alone
    parts.partial_fit(x[order[:20]], y[order[:20]], classes=["red", "green", "blue"])
    parts.partial_fit(x[order[20:]], y[order[20:]])
    np.testing.assert_allclose(parts.predict_proba(x), whole.predict_proba(x), rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match=r"classes: expected \['blue', 'green', 'red'\], as before, got \['blue'\]"):
        parts.partial_fit(x, y, classes=["blue"])
    with pytest.raises(ValueError, match=r"y: expected labels out of \['blue', 'green', 'red'\], got \['grey'\]"):
        parts.partial_fit(x[:1], ["grey"])
    with pytest.raises(ValueError, match="classes: expected all labels where a context begins, got None"):
        MemformerClassifier().partial_fit(x, y)


def test_one_class_is_always_taken() -> None:
    x, _ = _groups()
    model = MemformerClassifier().fit(x, np.full(len(x), "blue"))
    assert set(model.predict(x)) == {"blue"}
    np.testing.assert_array_equal(model.predict_proba(x), np.ones((len(x), 1)))


def test_rescale_is_a_bool() -> None:
    x, y = _groups()
    with pytest.raises(TypeError, match="rescale: expected a bool, got 'yes'"):
        MemformerClassifier(rescale="yes").fit(x, y)  # type: ignore[arg-type]
    assert MemformerClassifier(rescale=False).fit(x, y).score(x, y) > 0.9
