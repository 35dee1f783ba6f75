"""ISTA, FISTA and the matrices of learned ones: against other libraries, `lfom_solve` and their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch import Tensor

from memformer_kernels import lfom_solve
from memformer_lab.solvers.proximal import PROXIMAL, analytic_weights, coupled_preconditioner, decibels, fista, ista
from memformer_lab.tasks.gaussian import Quadratics
from memformer_lab.tasks.sparse import NonNegativeTasks, SparseTasks

DOUBLE = torch.float64
SPARSE = SparseTasks(16, 10, 0.2, snr=30.0, dtype=DOUBLE)


def _drawn(tasks: SparseTasks | NonNegativeTasks, batch: int = 3) -> Quadratics:
    return tasks.quadratics(batch, torch.Generator().manual_seed(0))


def _least_squares(h: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """X and y with X^T X = h and X^T y = b, for h of full rank."""
    root = torch.linalg.cholesky(h).T
    return root.numpy(), torch.linalg.solve_triangular(root.T, b[:, None], upper=False)[:, 0].numpy()


@pytest.mark.parametrize("name", PROXIMAL)
def test_they_reach_the_lasso(name: str) -> None:
    drawn = _drawn(NonNegativeTasks(6, 30, 0.5, dtype=DOUBLE))
    made = PROXIMAL[name](drawn.h, drawn.b, 1500, 0.1)[-1]
    for task in range(3):
        x, y = _least_squares(drawn.h[task], drawn.b[task])
        solver = Lasso(alpha=0.1 / len(x), fit_intercept=False, tol=1e-14, max_iter=100_000)
        np.testing.assert_allclose(made[task].numpy(), solver.fit(x, y).coef_, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PROXIMAL)
def test_they_reach_non_negative_least_squares(name: str) -> None:
    drawn = _drawn(NonNegativeTasks(6, 30, 2.0, dtype=DOUBLE))
    made = PROXIMAL[name](drawn.h, drawn.b, 1500, nonnegative=True)[-1]
    for task in range(3):
        expected = nnls(*_least_squares(drawn.h[task], drawn.b[task]))[0]
        np.testing.assert_allclose(made[task].numpy(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_one_matrix_for_all_tasks_is_a_copy_for_each(nonnegative: bool) -> None:
    drawn = _drawn(SPARSE)
    for method in (ista, fista):
        one = method(drawn.h, drawn.b, 20, 0.05, nonnegative=nonnegative)
        torch.testing.assert_close(method(drawn.h.contiguous(), drawn.b, 20, 0.05, nonnegative=nonnegative), one)


def test_ista_is_lfom_solve_and_fista_is_ahead_of_it() -> None:
    drawn = _drawn(SPARSE, 200)
    step = 1 / torch.linalg.eigvalsh(drawn.h[0])[-1]
    eye = torch.eye(16, dtype=DOUBLE)
    made = lfom_solve(drawn.h, drawn.b, -step * eye.expand(40, 16, 16), level=0.02 * step, layers=True)
    by_steps = ista(drawn.h, drawn.b, 40, 0.02)
    torch.testing.assert_close(made, by_steps, rtol=1e-11, atol=1e-12)

    def objective(w: Tensor) -> float:
        quadratic = 0.5 * ((w @ drawn.h[0]) * w).sum(-1) - (drawn.b * w).sum(-1)
        return float((quadratic + 0.02 * w.abs().sum(-1)).mean())

    limit = objective(fista(drawn.h, drawn.b, 3000, 0.02)[-1])
    assert objective(fista(drawn.h, drawn.b, 40, 0.02)[-1]) - limit < 0.5 * (objective(by_steps[-1]) - limit)


def test_analytic_weights_are_the_least_coherent() -> None:
    """The constraint holds, and no admissible change of W makes ||W^T D|| smaller."""
    dictionary = SPARSE.dictionary
    analysis = analytic_weights(dictionary)
    torch.testing.assert_close((analysis * dictionary).sum(0), torch.ones(16, dtype=DOUBLE))
    least = (analysis.T @ dictionary).norm()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        change = 1e-3 * torch.randn(analysis.shape, generator=generator, dtype=DOUBLE)
        change -= dictionary * (change * dictionary).sum(0)  # columns have norm 1
        assert ((analysis + change).T @ dictionary).norm() > least


def test_a_preconditioner_runs_coupled_weights() -> None:
    dictionary, drawn = SPARSE.dictionary, _drawn(SPARSE)
    analysis = torch.randn(10, 16, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    made = lfom_solve(drawn.h, drawn.b, -coupled_preconditioner(dictionary, analysis)[None], w0=drawn.weights)
    y = torch.linalg.lstsq(dictionary.T, drawn.b.T).solution.T
    expected = drawn.weights + (y - drawn.weights @ dictionary.T) @ analysis
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


def test_decibels_are_of_all_tasks_together() -> None:
    truth = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    weights = torch.stack([torch.zeros_like(truth), truth + 0.5, truth])
    made = decibels(weights, truth)
    assert made.dtype == DOUBLE
    assert made.tolist() == pytest.approx([0.0, 10 * math.log10(1 / 25), -math.inf])


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"penalty": -1.0}, ValueError, "penalty"),
        ({"penalty": math.nan}, ValueError, "penalty"),
        ({"b": torch.ones(3, 5, dtype=DOUBLE)}, ValueError, "h and b"),
        ({"b": torch.ones(3, 16)}, TypeError, "h and b"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    drawn = _drawn(SPARSE)
    for method in (ista, fista):
        with pytest.raises(error, match=said):
            method(**{"h": drawn.h, "b": drawn.b, "steps": 2, **changed})
