from __future__ import annotations

import socket
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from memformer_lab.solvers.optimizers import ols
from memformer_lab.tasks.real import RegressionSet, contexts, load, names

SHAPES = {
    "diabetes": (442, 10),
    "linnerud": (20, 3),
    "stackloss": (21, 3),
    "ccard": (72, 4),
    "statecrime": (51, 4),
    "copper": (25, 4),
    "longley": (16, 5),
    "star98": (303, 12),
}


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _numbered(rows: int = 12) -> RegressionSet:
    """A set whose rows can be told apart after scaling: y counts the rows, x0 their squares."""
    count = torch.arange(rows, dtype=torch.float64)
    x = torch.stack([count**2, torch.sin(count)], dim=1)
    return RegressionSet("numbered", x, count, ("square", "sine"), "count", "this test")


def _drawn_rows(z: Tensor, target: Tensor, n: int, dataset: RegressionSet) -> Tensor:
    """Undo the scaling of one task by matching standardised responses: the row numbers of its context and queries."""
    scaled = torch.cat([z[:n, -1], target])
    for first in range(len(dataset.y)):
        for second in range(len(dataset.y)):
            if first == second:
                continue
            slope = (dataset.y[second] - dataset.y[first]) / (scaled[1] - scaled[0])
            offset = dataset.y[first] - slope * scaled[0]
            rows = offset + slope * scaled
            context = rows[:n]
            fits = (rows - rows.round()).abs().max() < 1e-6 and rows.min() > -0.5 and rows.max() < len(dataset.y) - 0.5
            if fits and slope > 0 and (context.std(correction=0) - slope).abs() < 1e-6:
                features = dataset.x[rows.round().long()]
                expected = (features - features[:n].mean(0)) / features[:n].std(0, correction=0)
                if torch.allclose(expected, z[:, :-1]):
                    return rows.round().long()
    raise AssertionError("no choice of rows explains this task")


def test_every_set_is_tested() -> None:
    assert set(names()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_sets_load_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    dataset = load(name)
    assert dataset.name == name
    assert tuple(dataset.x.shape) == SHAPES[name]
    assert dataset.y.shape == dataset.x.shape[:1]
    assert dataset.x.dtype == dataset.y.dtype == torch.float64
    assert dataset.x.isfinite().all()
    assert dataset.y.isfinite().all()
    assert (dataset.x.std(0) > 0).all()
    assert dataset.y.std() > 0
    assert len(dataset.feature_names) == dataset.x.shape[1] == len(set(dataset.feature_names))
    assert dataset.response_name not in dataset.feature_names
    assert name in dataset.source


def test_known_rows_are_where_they_should_be() -> None:
    stackloss, longley, linnerud = load("stackloss"), load("longley"), load("linnerud")
    assert stackloss.x[0].tolist() == [80.0, 27.0, 89.0]
    assert stackloss.y[0] == 42.0
    assert longley.y[0] == 60323.0
    assert longley.feature_names[1] == "GNP"
    assert longley.x[0, 1] == 234289.0
    assert linnerud.feature_names == ("Chins", "Situps", "Jumps")
    assert linnerud.x[0].tolist() == [5.0, 162.0, 60.0]
    assert linnerud.y[0] == 36.0
    assert load("diabetes").x[0, 0] == 59.0
    star98 = load("star98")
    assert 0 < star98.y.min() < star98.y.max() < 1


def test_ordinary_least_squares_explains_the_sets() -> None:
    """Published coefficients of determination, so columns and responses are the intended ones."""
    for name, published in (("stackloss", 0.914), ("diabetes", 0.518), ("ccard", 0.244)):
        dataset = load(name)
        x = dataset.x - dataset.x.mean(0)
        x, y = x / x.std(0, correction=0), dataset.y - dataset.y.mean()
        w = ols((x.T @ x / len(y)).unsqueeze(0), (x.T @ y / len(y)).unsqueeze(0))[0]
        assert abs(1 - (y - x @ w).var().item() / y.var().item() - published) < 1e-3


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match=r"name must be one of diabetes, linnerud, .*, got 'boston'"):
        load("boston")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("diabetes", "sklearn.datasets", "scikit-learn"), ("copper", "statsmodels.datasets.copper", "statsmodels")],
)
def test_a_missing_package_is_named(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package} is needed to load this set: pip install"):
        load(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_context_shapes_and_units(name: str, dtype: torch.dtype) -> None:
    dataset = load(name)
    d, n = dataset.x.shape[1], len(dataset.y) // 2
    batch = contexts(dataset, n, 30, _seeded(), queries=3, dtype=dtype)
    assert batch.z.shape == (30, n + 3, d + 1)
    assert batch.target.shape == (30, 3)
    assert batch.context == n
    assert batch.z.dtype == batch.target.dtype == dtype
    assert batch.z.isfinite().all()
    assert torch.equal(batch.z[:, n:, -1], torch.zeros(30, 3, dtype=dtype))
    tolerance = 10 * torch.finfo(dtype).eps
    known = batch.z[:, :n]
    assert known.mean(1).abs().max() < tolerance
    variances = known.square().mean(1)
    assert (((variances - 1).abs() < 2 * tolerance) | (variances == 0)).all()
    assert (variances[:, -1] > 0).all()


def test_rows_are_drawn_without_replacement_and_scaled_by_the_context() -> None:
    dataset = _numbered()
    batch = contexts(dataset, 6, 10, _seeded(), queries=3, dtype=torch.float64)
    for z, target in zip(batch.z, batch.target, strict=True):
        assert len(set(_drawn_rows(z, target, 6, dataset).tolist())) == 9


def test_every_row_is_drawn_equally_often() -> None:
    """With one context row fewer than the set, the query is the row left out: uniform to 5 standard errors."""
    dataset = _numbered(4)
    batch = contexts(dataset, 3, 8000, _seeded(), dtype=torch.float64)
    counts = Counter(f"{value:.6f}" for value in batch.target.flatten().tolist())
    assert len(counts) == 4
    assert max(abs(count - 2000) for count in counts.values()) < 5 * (8000 * 0.25 * 0.75) ** 0.5


def test_query_rows_never_change_the_context_tokens() -> None:
    """The rows a task holds out are replaced by nonsense: its context tokens must be the same to the last bit."""
    dataset = load("stackloss")
    before = contexts(dataset, 12, 1, _seeded(), queries=9)
    for row in range(21):
        y = dataset.y.clone()
        x = dataset.x.clone()
        x[row], y[row] = 1e6, -1e6
        after = contexts(replace(dataset, x=x, y=y), 12, 1, _seeded(), queries=9)
        held_out = not torch.equal(before.target, after.target) and torch.equal(before.z[:, :12], after.z[:, :12])
        in_context = not torch.equal(before.z[:, :12], after.z[:, :12])
        assert held_out != in_context
        if held_out:
            changed = (before.target != after.target).flatten()
            assert changed.sum() == 1
            assert torch.equal((before.z[0, 12:] != after.z[0, 12:]).any(1), changed)
    changed_contexts = 0
    for row in range(21):
        y = dataset.y.clone()
        y[row] = -1e6
        after = contexts(replace(dataset, y=y), 12, 1, _seeded(), queries=9)
        changed_contexts += not torch.equal(before.z[:, :12], after.z[:, :12])
    assert changed_contexts == 12


def test_seeds_reproduce() -> None:
    dataset = load("copper")
    first, again, other = (contexts(dataset, 10, 5, _seeded(seed), queries=4) for seed in (3, 3, 4))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.z, other.z)


def test_no_tasks() -> None:
    batch = contexts(load("copper"), 10, 0, _seeded())
    assert batch.z.shape == (0, 11, 5)
    assert batch.target.shape == (0, 1)


def test_all_rows_can_be_used() -> None:
    assert contexts(load("longley"), 12, 3, _seeded(), queries=4).z.shape == (3, 16, 6)


@pytest.mark.parametrize(
    ("n", "tasks", "queries", "message"),
    [
        (12, 2, 5, r"n \+ queries must be at most the 16 rows of longley, got 12 \+ 5"),
        (1, 2, 1, "n must be at least 2"),
        (4, 2, 0, "queries must be at least 1, got 0"),
        (4, -1, 1, "tasks must be at least 0, got -1"),
    ],
)
def test_sizes_outside_their_range_are_errors(n: int, tasks: int, queries: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contexts(load("longley"), n, tasks, _seeded(), queries)


def test_other_dtypes_are_errors() -> None:
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64"):
        contexts(load("longley"), 8, 2, _seeded(), dtype=torch.float16)
