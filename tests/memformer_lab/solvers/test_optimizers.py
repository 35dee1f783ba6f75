from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from memformer_lab.solvers.optimizers import (
    OPTIMIZERS,
    conjugate_gradient,
    gradient_descent,
    iterative_newton,
    momentum,
    nesterov,
    ols,
    ridge,
)
from memformer_lab.tasks.gaussian import GaussianTasks

Array = npt.NDArray[np.float64]
Optimizer = Callable[[Tensor, Tensor, int], Tensor]

METHODS = pytest.mark.parametrize("method", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def _examples(batch: int, n: int, d: int, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    w = torch.randn(batch, d, 1, generator=generator, dtype=torch.float64)
    y = x @ w + noise * torch.randn(batch, n, 1, generator=generator, dtype=torch.float64)
    return x, y.squeeze(-1)


def _quadratics(batch: int, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = _examples(batch, n, d, seed=seed)
    return x.mT @ x / n, (x.mT @ y.unsqueeze(-1)).squeeze(-1) / n


def _spectrum(h: Array) -> tuple[float, float]:
    values = np.linalg.svd(h, compute_uv=False)
    return values[0], values[values > len(h) * np.finfo(np.float64).eps * values[0]][-1]


def _loop_gradient_descent(h: Array, b: Array, steps: int) -> list[Array]:
    largest, smallest = _spectrum(h)
    w, iterates = np.zeros_like(b), []
    for _ in range(steps):
        w = w - 2 / (largest + smallest) * (h @ w - b)
        iterates.append(w)
    return iterates


def _loop_momentum(h: Array, b: Array, steps: int) -> list[Array]:
    largest, smallest = _spectrum(h)
    kappa = largest / smallest
    inertia = ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2
    step = (2 / (math.sqrt(largest) + math.sqrt(smallest))) ** 2
    iterates = [np.zeros_like(b), np.zeros_like(b)]
    for _ in range(steps):
        w, before = iterates[-1], iterates[-2]
        iterates.append(w - step * (h @ w - b) + inertia * (w - before))
    return iterates[2:]


def _loop_nesterov(h: Array, b: Array, steps: int) -> list[Array]:
    largest, smallest = _spectrum(h)
    root = math.sqrt(3 * largest / smallest + 1)
    step, inertia = 4 / (3 * largest + smallest), (root - 2) / (root + 2)
    iterates = [np.zeros_like(b), np.zeros_like(b)]
    for _ in range(steps):
        ahead = (1 + inertia) * iterates[-1] - inertia * iterates[-2]
        iterates.append(ahead - step * (h @ ahead - b))
    return iterates[2:]


def _loop_conjugate_gradient(h: Array, b: Array, steps: int) -> list[Array]:
    """The minimiser over each Krylov space, which is what the method computes."""
    basis: list[Array] = []
    power, iterates = b, []
    for _ in range(steps):
        for vector in basis:
            power = power - (power @ vector) * vector
        basis.append(power / np.linalg.norm(power))
        power = h @ basis[-1]
        space = np.stack(basis, axis=1)
        iterates.append(space @ np.linalg.solve(space.T @ h @ space, space.T @ b))
    return iterates


def _loop_iterative_newton(h: Array, b: Array, steps: int) -> list[Array]:
    largest, smallest = _spectrum(h)
    inverse, iterates = 2 / (largest**2 + smallest**2) * h, []
    for _ in range(steps):
        inverse = inverse @ (2 * np.eye(len(b)) - h @ inverse)
        iterates.append(inverse @ b)
    return iterates


LOOPS = {
    "gradient_descent": _loop_gradient_descent,
    "momentum": _loop_momentum,
    "nesterov": _loop_nesterov,
    "conjugate_gradient": _loop_conjugate_gradient,
    "iterative_newton": _loop_iterative_newton,
}


def _errors(iterates: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """Relative distance to the minimum-norm solution: (steps, B)."""
    solution = ols(h, b)
    errors: Tensor = (iterates - solution).norm(dim=-1) / solution.norm(dim=-1)
    return errors


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("n", "d", "steps"), [(20, 5, 4), (9, 3, 3), (4, 6, 4), (8, 1, 1)])
def test_equals_a_loop_over_tasks(name: str, n: int, d: int, steps: int) -> None:
    h, b = _quadratics(11, n, d)
    iterates = OPTIMIZERS[name](h, b, steps)
    assert iterates.shape == (steps, 11, d)
    for task in range(11):
        expected = np.stack(LOOPS[name](h[task].numpy(), b[task].numpy(), steps))
        np.testing.assert_allclose(iterates[:, task].numpy(), expected, rtol=1e-8, atol=1e-10)


@METHODS
def test_float32_follows_float64(method: Optimizer) -> None:
    h, b = _quadratics(50, 40, 4)
    exact, iterates = method(h, b, 4), method(h.float(), b.float(), 4)
    assert iterates.dtype == torch.float32
    assert (iterates - exact).norm() < 1e-4 * exact.norm()


@METHODS
def test_storage_order_does_not_matter_and_arguments_are_left_alone(method: Optimizer) -> None:
    quadratics = GaussianTasks.nonisotropic(dtype=torch.float64).quadratics(9, torch.Generator().manual_seed(0))
    h, b = quadratics.h.contiguous(), quadratics.b.contiguous()
    assert not quadratics.h.is_contiguous()
    copies = h.clone(), b.clone()
    torch.testing.assert_close(method(quadratics.h, quadratics.b, 3), method(h, b, 3), rtol=1e-11, atol=1e-12)
    assert torch.equal(h, copies[0])
    assert torch.equal(b, copies[1])
    assert torch.equal(quadratics.h, copies[0])
    assert torch.equal(quadratics.b, copies[1])


@METHODS
def test_more_steps_only_append_iterates(method: Optimizer) -> None:
    h, b = _quadratics(5, 10, 3)
    assert torch.equal(method(h, b, 6)[:2], method(h, b, 2))


def test_conjugate_gradient_is_exact_after_d_steps_and_stays() -> None:
    h, b = _quadratics(200, 60, 6)
    errors = _errors(conjugate_gradient(h, b, 30), h, b)
    assert errors[4].max() > 1e-6
    assert errors[5:].max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradient_stays_put_on_singular_problems(dtype: torch.dtype) -> None:
    x, y = _examples(2000, 3, 6)
    x, y = x.to(dtype), y.to(dtype).unsqueeze(-1)
    iterates = conjugate_gradient(x.mT @ x / 3, (x.mT @ y / 3).squeeze(-1), 40)
    assert iterates.isfinite().all()
    solution = (torch.linalg.pinv(x.double()) @ y.double()).squeeze(-1)
    errors = (iterates - solution).norm(dim=-1) / solution.norm(dim=-1)
    assert errors[39].median() < 50 * torch.finfo(dtype).eps
    assert (errors[39] <= 2 * errors[5] + 1000 * torch.finfo(dtype).eps).all()


def test_conjugate_gradient_reaches_its_reference_figures() -> None:
    """ln of the mean squared query error after steps 1 to 4; 131,072 tasks leave standard errors of 0.002 to 0.016."""
    for tasks, figures in (
        (GaussianTasks.nonisotropic(), (0.69, 0.14, -0.60, -1.61)),
        (GaussianTasks.isotropic(), (-0.09, -1.78, -3.76, -6.39)),
    ):
        generator, total = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.float64)
        for _ in range(128):
            quadratics = tasks.quadratics(1 << 10, generator)
            error = conjugate_gradient(quadratics.h, quadratics.b, 4) - quadratics.weights
            total += (error @ tasks.factor.to(error.dtype)).square().sum(-1).double().mean(1)
        torch.testing.assert_close((total / 128).log(), torch.tensor(figures, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (gradient_descent, lambda kappa: (kappa - 1) / (kappa + 1)),
        (momentum, lambda kappa: (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)),
        (nesterov, lambda kappa: 1 - 2 / math.sqrt(3 * kappa + 1)),
    ],
)
def test_converges_at_its_theoretical_rate(method: Optimizer, rate: Callable[[float], float]) -> None:
    kappa, steps = 50.0, 80
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 4, 4, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([1 / kappa, 0.2, 0.7, 1.0], dtype=torch.float64)
    h = (basis * values) @ basis.mT
    b = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    errors = _errors(method(h, b, steps), h, b)
    powers = torch.arange(1, steps + 1, dtype=torch.float64)
    # Heavy ball and Nesterov have a double root at the ends of the spectrum: a factor k beside the rate's k-th power.
    scaled = errors / ((1 + powers) * rate(kappa) ** powers).unsqueeze(1)
    assert scaled.max() < 3
    assert errors[-1].max() > 0.1 * rate(kappa) ** steps


def test_faster_methods_are_faster_on_ill_conditioned_problems() -> None:
    h, b = _quadratics(300, 12, 8)
    last = {name: _errors(method(h, b, 40), h, b)[-1].median() for name, method in OPTIMIZERS.items()}
    assert last["conjugate_gradient"] < last["momentum"] < last["nesterov"] < last["gradient_descent"]


def test_iterative_newton_converges_quadratically() -> None:
    h, b = _quadratics(100, 60, 4)
    values = torch.linalg.eigvalsh(h)
    ratio = (values[:, 0] / values[:, -1]) ** 2
    start = (1 - ratio) / (1 + ratio)
    iterates = iterative_newton(h, b, 14)
    solution = ols(h, b)
    for step in range(6):
        # I - M_k H = (I - M_0 H)^(2^k), whose largest eigenvalue is that of the start to the same power.
        bound = start ** (2 ** (step + 1)) * solution.norm(dim=-1)
        assert ((iterates[step] - solution).norm(dim=-1) <= bound * (1 + 1e-9) + 1e-12).all()
    assert _errors(iterates, h, b)[-1].max() < 1e-11


@METHODS
def test_singular_problems_head_for_the_minimum_norm_solution(method: Optimizer) -> None:
    h, b = _quadratics(20, 3, 6)
    errors = _errors(method(h, b, 400 if method in (gradient_descent, momentum, nesterov) else 20), h, b)
    assert errors.isfinite().all()
    assert errors[-1].median() < 1e-6
    assert errors[-1].max() < errors[0].max()


@METHODS
def test_zero_right_hand_sides_stay_at_zero(method: Optimizer) -> None:
    h, _ = _quadratics(3, 10, 4)
    assert torch.equal(method(h, torch.zeros(3, 4, dtype=torch.float64), 5), torch.zeros(5, 3, 4, dtype=torch.float64))


@METHODS
def test_problems_without_curvature_stay_at_zero(method: Optimizer) -> None:
    h, b = torch.zeros(2, 3, 3), torch.zeros(2, 3)
    assert torch.equal(method(h, b, 3), torch.zeros(3, 2, 3))


@METHODS
def test_the_identity_is_solved_in_one_step(method: Optimizer) -> None:
    b = torch.tensor([[1.0, -2.0, 3.0]])
    iterates = method(torch.eye(3).unsqueeze(0), b, 3)
    torch.testing.assert_close(iterates, b.expand(3, 1, 3), rtol=1e-5, atol=1e-6)


@METHODS
def test_empty_batches(method: Optimizer) -> None:
    assert method(torch.zeros(0, 3, 3), torch.zeros(0, 3), 2).shape == (2, 0, 3)


def test_a_non_finite_task_stays_visible_and_alone() -> None:
    h, b = _quadratics(4, 10, 3)
    expected = conjugate_gradient(h, b, 3)
    b[1, 0] = torch.nan
    iterates = conjugate_gradient(h, b, 3)
    assert iterates[:, 1].isnan().all()
    assert torch.equal(iterates[:, [0, 2, 3]], expected[:, [0, 2, 3]])


@pytest.mark.parametrize(("n", "d"), [(20, 5), (5, 5), (3, 6), (1, 4)])
def test_ols_equals_least_squares_on_the_examples(n: int, d: int) -> None:
    x, y = _examples(30, n, d)
    solution = ols(x.mT @ x / n, (x.mT @ y.unsqueeze(-1)).squeeze(-1) / n)
    for task in range(30):
        expected = np.linalg.lstsq(x[task].numpy(), y[task].numpy(), rcond=None)[0]
        np.testing.assert_allclose(solution[task].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_ols_of_nothing_is_zero() -> None:
    assert torch.equal(ols(torch.zeros(2, 3, 3), torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize(("n", "d"), [(20, 5), (3, 6)])
@pytest.mark.parametrize("penalty", [1e-3, 0.5, 10.0])
def test_ridge_equals_least_squares_with_penalty_rows(n: int, d: int, penalty: float) -> None:
    x, y = _examples(10, n, d)
    solution = ridge(x.mT @ x / n, (x.mT @ y.unsqueeze(-1)).squeeze(-1) / n, penalty)
    for task in range(10):
        rows = np.concatenate([x[task].numpy(), math.sqrt(n * penalty) * np.eye(d)])
        responses = np.concatenate([y[task].numpy(), np.zeros(d)])
        np.testing.assert_allclose(solution[task].numpy(), np.linalg.lstsq(rows, responses, rcond=None)[0], atol=1e-9)


def test_ridge_with_the_bayes_penalty_beats_its_neighbours() -> None:
    tasks = GaussianTasks(4, 8, (1.0, 1.0, 1.0, 1.0), None, "isotropic", 0.8, torch.float64)
    quadratics = tasks.quadratics(20_000, torch.Generator().manual_seed(0))

    def error(penalty: float) -> Tensor:
        return (ridge(quadratics.h, quadratics.b, penalty) - quadratics.weights).square().sum(1).mean()

    best = 0.8**2 / 8
    assert error(best) < min(error(best / 2), error(best * 2))


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.inf, math.nan])
def test_ridge_penalties_must_be_positive(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty must be positive and finite"):
        ridge(torch.eye(2).unsqueeze(0), torch.ones(1, 2), penalty)


SOLVERS: dict[str, Callable[..., Tensor]] = {
    **{name: lambda h, b, method=method: method(h, b, 2) for name, method in OPTIMIZERS.items()},
    "ols": ols,
    "ridge": lambda h, b: ridge(h, b, 0.1),
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize(
    ("h_shape", "b_shape"),
    [((2, 3, 4), (2, 3)), ((2, 3, 3), (2, 4)), ((3, 3), (3,)), ((2, 3, 3), (1, 3)), ((2, 0, 0), (2, 0))],
)
def test_shapes_that_do_not_fit_are_errors(solve: Any, h_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"h and b must be \(B, d, d\) and \(B, d\)"):
        solve(torch.zeros(h_shape), torch.zeros(b_shape))


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.int64, torch.int64), (torch.float16,) * 2])
def test_other_dtypes_are_errors(solve: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    with pytest.raises(TypeError, match="h and b must both be float32 or both float64"):
        solve(torch.zeros(1, 2, 2, dtype=dtypes[0]), torch.zeros(1, 2, dtype=dtypes[1]))


@METHODS
@pytest.mark.parametrize("steps", [0, -3])
def test_steps_must_be_positive(method: Optimizer, steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        method(torch.eye(2).unsqueeze(0), torch.ones(1, 2), steps)
