from __future__ import annotations

import math

import pytest
import torch

from memformer_lab.solvers.convergence import fit_convergence
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import solver_errors, steps_of
from memformer_lab.tasks.gaussian import GaussianTasks


def test_each_model_fits_its_own_curve() -> None:
    depths = (1, 2, 3, 4, 5)
    straight = fit_convergence(depths, [3 - 2 * k + 0.01 * (-1) ** k for k in depths])
    doubling = fit_convergence(depths, [3 - 2 * 2**k + 0.01 * (-1) ** k for k in depths])
    assert straight.linear < 1e-3 < straight.exponential
    assert doubling.exponential < 1e-3 < doubling.linear
    assert straight.advantage == pytest.approx(5 * math.log(straight.linear / straight.exponential))
    assert straight.advantage < 0 < doubling.advantage


@pytest.mark.parametrize(
    ("name", "doubles"), [("gradient_descent", False), ("conjugate_gradient", False), ("iterative_newton", True)]
)
def test_known_methods_are_told_apart(name: str, doubles: bool) -> None:
    """Newton's iteration is of second order, gradient descent and conjugate gradients are of first: by medians."""
    tasks = GaussianTasks(10, 40, (1.0,) * 10, dtype=torch.float64)
    curve = [one.log_median for one in estimate(solver_errors(tasks, [steps_of(name, 8)]), 3000, 0)]
    for first in (0, 3):
        found = fit_convergence(range(first + 1, first + 6), curve[first : first + 5])
        assert (found.advantage > 0) is doubles


def test_what_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="at least 3, got 2 and 2"):
        fit_convergence((1, 2), (0.0, 1.0))
    assert math.isnan(fit_convergence((1, 2, 3), (0.0, math.inf, 1.0)).advantage)
