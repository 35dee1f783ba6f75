from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.utils.estimator_checks import estimator_checks_generator

from memformer_lab import MemformerRegressor
from memformer_lab.runs.train_shipped import train_network
from memformer_lab.solvers.regressor import Moments
from memformer_lab.solvers.shipped import LARGEST_D, RATIOS, nearest_ratio, shipped_network, shipped_weights


def _linear(n: int, d: int, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) * random.uniform(0.1, 10, d) + random.normal(size=d)
    y = (x - x.mean(0)) / x.std(0) @ random.normal(size=d) + 5 + noise * random.normal(size=n)
    return x, y


@pytest.mark.parametrize(
    "check",
    [pair[1] for pair in estimator_checks_generator(MemformerRegressor())],
    ids=lambda check: check.func.__name__,
)
def test_scikit_learns_own_checks(check: object) -> None:
    check(MemformerRegressor())  # type: ignore[operator]


@pytest.mark.parametrize("d", [1, 5, 16])
def test_predictions_are_near_those_of_least_squares(d: int) -> None:
    x, y = _linear(8 * d + 10, d)
    fresh_x, _ = _linear(500, d, seed=0)
    ours, best = MemformerRegressor().fit(x, y), LinearRegression().fit(x, y)
    assert r2_score(best.predict(fresh_x), ours.predict(fresh_x)) > 0.9


def test_measured_data() -> None:
    x, y = load_diabetes(return_X_y=True)
    train, test = slice(None, 300), slice(300, None)
    ours = MemformerRegressor().fit(x[train], y[train]).score(x[test], y[test])
    best = RidgeCV(np.logspace(-4, 2, 20)).fit(x[train], y[train]).score(x[test], y[test])
    assert ours > best - 0.03


def test_a_context_may_come_in_parts() -> None:
    x, y = _linear(60, 4)
    whole = MemformerRegressor().fit(x, y)
    parts = MemformerRegressor()
    for start, stop in ((0, 2), (2, 3), (3, 40), (40, 60)):
        parts.partial_fit(x[start:stop], y[start:stop])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-9)
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-9)
    assert parts.n_samples_seen_ == 60
    parts.fit(x[:10], y[:10])
    assert parts.n_samples_seen_ == 10


def test_a_weight_is_so_many_rows() -> None:
    x, y = _linear(30, 3)
    counts = np.random.default_rng(2).integers(0, 4, 30)
    repeated = MemformerRegressor().fit(x.repeat(counts, 0), y.repeat(counts))
    for weights in (counts, counts.astype(float), counts.tolist()):
        weighted = MemformerRegressor().fit(x, y, sample_weight=weights)
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)
        assert weighted.n_samples_seen_ == (counts > 0).sum()
    parts = MemformerRegressor().fit(x[:10], y[:10], counts[:10]).partial_fit(x[10:], y[10:], counts[10:])
    np.testing.assert_allclose(parts.coef_, repeated.coef_, rtol=1e-9)
    same = MemformerRegressor().fit(x, y).partial_fit(x, 0 * y, sample_weight=0)
    np.testing.assert_array_equal(same.coef_, MemformerRegressor().fit(x, y).coef_)
    assert same.n_samples_seen_ == 30


def test_a_stream_forgets() -> None:
    """The weights are decay to the power of age, whatever parts rows come in."""
    x, y = _linear(60, 3)
    weights = 0.9 ** np.arange(59, -1, -1)
    whole = MemformerRegressor().fit(x, y, weights)
    parts = MemformerRegressor()
    for start, stop in ((0, 2), (2, 3), (3, 40), (40, 60)):
        parts.partial_fit(x[start:stop], y[start:stop], decay=0.9)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-9)
    np.testing.assert_allclose(parts.moments_.count, weights.sum())
    changed, mixed = (MemformerRegressor().fit(x, y).partial_fit(x, -y, decay=decay) for decay in (0.9, 1.0))
    assert r2_score(-y, changed.predict(x)) > 0.8 > r2_score(-y, mixed.predict(x))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"sample_weight: expected one weight per row, shape \(10,\), got shape \(3,\)"),
        (-np.ones(10), "sample_weight: expected non-negative weights"),
        (np.full(10, np.nan), "sample_weight contains NaN"),
        (np.full(10, 1e308), "weights of a finite sum"),
        (np.eye(10)[0], "expected at least 2 rows whose weight is above zero, got 1"),
    ],
)
def test_bad_weights_are_refused(weights: np.ndarray, message: str) -> None:
    x, y = _linear(10, 2)
    with pytest.raises(ValueError, match=message):
        MemformerRegressor().fit(x, y, sample_weight=weights)


@pytest.mark.parametrize(
    ("decay", "error"),
    [(0.0, ValueError), (1.5, ValueError), (np.nan, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_bad_decays_are_refused(decay: object, error: type[Exception]) -> None:
    x, y = _linear(10, 2)
    with pytest.raises(error, match="decay: expected a number"):
        MemformerRegressor().fit(x, y).partial_fit(x, y, decay=decay)  # type: ignore[arg-type]


def test_units_do_not_matter() -> None:
    x, y = _linear(50, 3)
    plain = MemformerRegressor().fit(x, y).predict(x)
    scaled = MemformerRegressor().fit(x * [1e-6, 1.0, 1e6] + 3.0, 100 * y - 7).predict(x * [1e-6, 1.0, 1e6] + 3.0)
    np.testing.assert_allclose(scaled, 100 * plain - 7, rtol=1e-6)


def test_coefficients_are_the_prediction() -> None:
    x, y = _linear(50, 6)
    model = MemformerRegressor().fit(x, y)
    np.testing.assert_allclose(x @ model.coef_ + model.intercept_, model.predict(x), rtol=1e-9)


def test_more_features_than_networks_read() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 6)) @ random.normal(size=(6, 30)) + 0.05 * random.normal(size=(400, 30))
    y = x @ random.normal(size=30)
    model = MemformerRegressor().fit(x[:300], y[:300])
    assert model.coef_.shape == (30,)
    assert model.score(x[300:], y[300:]) > 0.8


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 8), (3, 30), (5, 5), (12, 16)])
def test_few_rows_stay_sane(n: int, d: int) -> None:
    x, y = _linear(n, d)
    model = MemformerRegressor().fit(x, y)
    assert np.isfinite(model.predict(10 * x)).all()
    assert model.score(x, y) >= 0


def test_the_context_is_never_predicted_worse_than_by_its_mean() -> None:
    random = np.random.default_rng(1)
    for seed in range(20):
        x = random.standard_t(2, size=(30, 5)) ** 3
        y = random.normal(size=30)
        assert MemformerRegressor().fit(x, y).score(x, y) >= -1e-9, seed


def test_constant_columns_and_responses() -> None:
    x, y = _linear(40, 3)
    widened = np.column_stack([x, np.full(40, 0.1)])
    model = MemformerRegressor().fit(widened, y)
    assert model.coef_[3] == 0
    np.testing.assert_allclose(model.coef_[:3], MemformerRegressor().fit(x, y).coef_, rtol=1e-9)
    flat = MemformerRegressor().fit(x, np.full(40, 2.5))
    np.testing.assert_array_equal(flat.predict(x), np.full(40, 2.5))
    assert (MemformerRegressor().fit(np.full((9, 2), 0.1), np.arange(9.0)).coef_ == 0).all()


def _of_several() -> tuple[np.ndarray, np.ndarray]:
    """Features, and three responses of which the last is constant."""
    x, y = _linear(60, 4)
    return x, np.column_stack([y, _linear(60, 4, seed=3)[1], np.full(60, 2.5)])


@pytest.mark.parametrize("weights", [None, np.arange(60) % 4], ids=["plain", "weighted"])
@pytest.mark.parametrize("rescale", [True, False])
def test_responses_are_answered_each_by_itself(rescale: bool, weights: np.ndarray | None) -> None:
    x, y = _of_several()
    model = MemformerRegressor(rescale).partial_fit(x, y, weights, decay=0.98)
    assert model.coef_.shape == (3, 4)
    assert model.intercept_.shape == (3,)
    made = model.predict(x[:7])
    assert made.shape == (7, 3)
    for response in range(3):
        alone = MemformerRegressor(rescale).partial_fit(x, y[:, response], weights, decay=0.98)
        assert alone.coef_.shape == (4,)
        assert isinstance(alone.intercept_, float)
        np.testing.assert_allclose(made[:, response], alone.predict(x[:7]), rtol=1e-9)
    np.testing.assert_array_equal(made[:, 2], np.full(7, 2.5))
    one = MemformerRegressor(rescale).fit(x, y[:, :1])
    assert one.predict(x).shape == (60, 1)


def test_several_responses_may_come_in_parts() -> None:
    x, y = _of_several()
    whole, parts = MemformerRegressor().fit(x, y), MemformerRegressor()
    for rows in (slice(0, 20), slice(20, 60)):
        parts.partial_fit(x[rows], y[rows])
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-9)
    with pytest.raises(ValueError, match="y: expected 3 responses, as before, got 2"):
        parts.partial_fit(x, y[:, :2])
    with pytest.raises(TypeError, match="y: expected a dense array, got a sparse csr_array"):
        parts.fit(x, csr_array(y))
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-9)


def test_bad_input_is_refused() -> None:
    x, y = _linear(10, 2)
    with pytest.raises(ValueError, match="1 sample"):
        MemformerRegressor().fit(x[:1], y[:1])
    with pytest.raises(ValueError, match="NaN"):
        MemformerRegressor().fit(np.full((10, 2), np.nan), y)
    with pytest.raises(ValueError, match="3 features"):
        MemformerRegressor().fit(x, y).predict(np.zeros((1, 3)))


def test_every_network_is_shipped_and_finite() -> None:
    for d in range(1, LARGEST_D + 1):
        for ratio in RATIOS:
            network = shipped_network(d, ratio)
            assert network.d == d
            assert all(value.isfinite().all() for value in network.state_dict().values())
    with pytest.raises(ValueError, match="d must be from 1 to 16"):
        shipped_network(17, 4)


@pytest.mark.parametrize(("d", "rows", "ratio"), [(4, 2, 4), (4, 16, 4), (4, 60, 16), (4, 300, 64), (4, 10**6, 64)])
def test_the_nearest_network_is_taken(d: int, rows: int, ratio: int) -> None:
    assert nearest_ratio(d, rows) == ratio


def test_shipped_weights_solve_easy_contexts() -> None:
    h = np.eye(5)
    b = np.array([[0.5, -0.3, 0.1, 0.6, 0.2], [0.0, 0.4, 0.0, -0.4, 0.3]])
    found = shipped_weights(h, b, 320)
    assert (np.linalg.norm(found - b, axis=1) / np.linalg.norm(b, axis=1) < 0.1).all()


def test_training_is_repeatable() -> None:
    one, other = train_network(2, 4, 3), train_network(2, 4, 3)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)) + 1e6
    moments = Moments.empty(4)
    for part in np.array_split(rows, 7):
        moments = moments.with_rows(part)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(moments.mean, rows.mean(0))
    np.testing.assert_allclose(moments.scatter, centred.T @ centred, rtol=1e-6, atol=1e-6)
    assert moments.count == 50
    assert not moments.constant.any()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_rescale_is_a_bool(value: object) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3))
    with pytest.raises(TypeError, match=rf"rescale: expected a bool, got {value!r}"):
        MemformerRegressor(rescale=value).fit(rows[:, :2], rows[:, 2])  # type: ignore[arg-type]
    found, expected = (MemformerRegressor(rescale=one).fit(rows[:, :2], rows[:, 2]) for one in (np.False_, False))
    assert np.array_equal(found.coef_, expected.coef_)
