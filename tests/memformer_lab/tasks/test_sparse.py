"""Sparse codes and non-negative weights: what is drawn is what the text says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from memformer_lab.tasks.sparse import NonNegativeTasks, SparseTasks

DOUBLE = torch.float64


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_codes_are_sparse_and_measured_by_one_dictionary() -> None:
    tasks = SparseTasks(40, 15, 0.2, dtype=DOUBLE)
    drawn = tasks.quadratics(2000, _generator())
    dictionary = tasks.dictionary
    assert dictionary.shape == (15, 40)
    torch.testing.assert_close(dictionary.norm(dim=0), torch.ones(40, dtype=DOUBLE))
    assert (drawn.h.shape, drawn.h.stride(0)) == ((2000, 40, 40), 0)
    torch.testing.assert_close(drawn.h[7], dictionary.T @ dictionary)
    torch.testing.assert_close(drawn.b, drawn.weights @ drawn.h[0])
    active = drawn.weights != 0
    # 80,000 draws: the share is off by 0.0014 and the variance of 16,000 normals by 0.011, one standard deviation each.
    assert float(active.double().mean()) == pytest.approx(0.2, abs=0.006)
    assert float(drawn.weights[active].var()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(tasks.quadratics(2000, _generator()).b, drawn.b)
    other = SparseTasks(40, 15, 0.2, dictionary_seed=1, dtype=DOUBLE)
    assert not torch.equal(other.dictionary, dictionary)


def test_noise_is_as_many_decibels_below_what_is_measured() -> None:
    tasks = SparseTasks(40, 15, 0.2, snr=10.0, dtype=DOUBLE)
    drawn = tasks.quadratics(4000, _generator())
    clean = SparseTasks(40, 15, 0.2, dtype=DOUBLE).quadratics(4000, _generator())
    assert torch.equal(drawn.weights, clean.weights)
    signal = (drawn.weights @ tasks.dictionary.T).square().sum()
    # b - D^T D w* = D^T e, from which e follows, since D has full row rank.
    noise = torch.linalg.lstsq(tasks.dictionary.T, (drawn.b - clean.b).T).solution.square().sum()
    assert 10 * math.log10(float(signal / noise)) == pytest.approx(10.0, abs=0.15)


def test_defaults_are_the_published_sizes() -> None:
    tasks = SparseTasks()
    assert (tasks.d, tasks.n, tasks.density, tasks.snr, tasks.dtype) == (500, 250, 0.1, math.inf, torch.float32)


def test_non_negative_tasks_are_least_squares_of_their_examples() -> None:
    drawn = NonNegativeTasks(4, 9, dtype=DOUBLE).quadratics(500, _generator())
    torch.testing.assert_close((drawn.h @ drawn.weights.unsqueeze(-1)).squeeze(-1), drawn.b)
    assert float(drawn.weights.min()) == 0
    assert float((drawn.weights == 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    noisy = NonNegativeTasks(4, 9, 0.5, dtype=DOUBLE).quadratics(500, _generator())
    torch.testing.assert_close(noisy.h, drawn.h)
    # Of covariance noise^2 h / n, whose trace is 0.5^2 * 4 / 9 in expectation.
    assert float((noisy.b - drawn.b).square().sum(1).mean()) == pytest.approx(0.25 * 4 / 9, rel=0.15)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SparseTasks(0, 5), ValueError),
        (lambda: SparseTasks(5, 0), ValueError),
        (lambda: SparseTasks(5, 3, 0.0), ValueError),
        (lambda: SparseTasks(5, 3, 1.5), ValueError),
        (lambda: SparseTasks(5, 3, snr=math.nan), ValueError),
        (lambda: SparseTasks(5, 3, snr=-math.inf), ValueError),
        (lambda: SparseTasks(5, 3, dtype=torch.float16), TypeError),
        (lambda: SparseTasks(5, 3).quadratics(-1, _generator()), ValueError),
        (lambda: NonNegativeTasks(5, 0), ValueError),
        (lambda: NonNegativeTasks(5, 3, -1.0), ValueError),
        (lambda: NonNegativeTasks(5, 3).quadratics(-1, _generator()), ValueError),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        make()


def test_no_tasks_are_fine() -> None:
    for tasks in (SparseTasks(4, 3), NonNegativeTasks(4, 5)):
        drawn = tasks.quadratics(0, _generator())
        assert (drawn.h.shape, drawn.b.shape, drawn.weights.shape) == ((0, 4, 4), (0, 4), (0, 4))
