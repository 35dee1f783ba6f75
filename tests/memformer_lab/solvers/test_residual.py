"""Residual polynomials: those of known methods, their zeros, the recurrences behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Chebyshev

from memformer_lab.solvers.first_order import FirstOrderMethod
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.solvers.residual import (
    PolynomialMethod,
    chebyshev_polynomial,
    gradient_descent_polynomial,
    gradient_weights,
    heavy_ball_polynomial,
    ritz_values,
    shared_preconditioner,
    whitened_likeness,
)
from memformer_lab.tasks.gaussian import GaussianTasks

TASKS = GaussianTasks.isotropic(4, 12, dtype=torch.float64)
X = np.linspace(0.0, 2.5, 7)


def _random(layers: int, seed: int = 0) -> PolynomialMethod:
    return PolynomialMethod(0.4 * np.tril(np.random.default_rng(seed).random((layers, layers))))


def _drawn(count: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    drawn = TASKS.quadratics(count, torch.Generator().manual_seed(0))
    return drawn.h.contiguous(), drawn.b.contiguous(), drawn.weights.contiguous()


def test_a_method_leaves_what_its_polynomial_says() -> None:
    """After each layer, along each eigenvector."""
    h, b, truth = _drawn()
    one = _random(4)
    found = one.method(torch.eye(4, dtype=torch.float64)).solver(layers=True)(h, b)
    values, vectors = torch.linalg.eigh(h)
    left = one.residuals(values.flatten().numpy()).reshape(5, *values.shape)[1:]
    parts = (vectors.mT @ truth.unsqueeze(-1)).squeeze(-1)
    expected = truth - (vectors @ (torch.from_numpy(left) * parts).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_known_polynomials() -> None:
    np.testing.assert_allclose(gradient_descent_polynomial(3, 0.4).residuals(X)[-1], (1 - 0.4 * X) ** 3, atol=1e-14)
    low, high = 0.2, 2.4
    at = [(high + low - 2 * x) / (high - low) for x in (*X, 0.0)]
    expected = Chebyshev.basis(5)(np.array(at))
    found = chebyshev_polynomial(5, low, high)
    np.testing.assert_allclose(found.residuals(X)[-1], expected[:-1] / expected[-1], rtol=1e-12, atol=1e-13)
    q = heavy_ball_polynomial(3, 0.5, 0.3).residuals(X)
    np.testing.assert_allclose(q[2], 1.3 * q[1] - 0.5 * X * q[1] - 0.3 * q[0], atol=1e-14)


def test_zeros_are_the_steps_of_gradient_descent() -> None:
    steps = [0.9, 0.4, 0.7]
    rows = np.tril(np.array([steps] * 3) * np.eye(3))
    np.testing.assert_allclose(PolynomialMethod(rows).zeros(), 1 / np.array([0.9, 0.7, 0.4]), rtol=1e-9)
    pair = PolynomialMethod(np.array([[1.0, 0.0], [-1.0, 1.0]])).zeros()  # 1 - x + x^2
    assert sorted(pair.imag) == pytest.approx([-math.sqrt(0.75), math.sqrt(0.75)])
    flat = PolynomialMethod(np.array([[0.5, 0.0], [0.0, 0.0]]))
    assert flat.zeros() == pytest.approx([2.0]), "a layer that does nothing adds no zero"


def test_recurrences_are_found_where_there_are_any() -> None:
    ball = heavy_ball_polynomial(5, 0.5, 0.3).recurrence()
    assert ball.exact
    np.testing.assert_allclose(ball.steps, 0.5, rtol=1e-9)
    np.testing.assert_allclose(ball.momenta, [0, 0.3, 0.3, 0.3, 0.3], rtol=1e-9)
    cgd = PolynomialMethod.of_recurrence([0.5, 0.4, 0.3], [0.0, 0.2, 0.5]).recurrence()
    assert cgd.exact
    np.testing.assert_allclose(cgd.momenta, [0, 0.2 * 0.4 / 0.5, 0.5 * 0.3 / 0.4], rtol=1e-9)
    other = _random(4).recurrence()
    assert not other.exact
    assert other.misfits[0] < 1e-12
    assert other.misfits.max() > 0.01


def test_registers_are_taken_apart_into_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    h, b, _ = _drawn()
    a = -0.4 * torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
    gamma = torch.rand(3, 3, 1, generator=generator, dtype=torch.float64)
    beta = torch.rand(3, 1, generator=generator, dtype=torch.float64)
    for method in (FirstOrderMethod(a, gamma, beta), FirstOrderMethod(a, None, beta), FirstOrderMethod(a, None, None)):
        apart = PolynomialMethod(0.4 * gradient_weights(method)).method(torch.eye(4, dtype=torch.float64))
        expected = method.solver(layers=True)(h, b)
        torch.testing.assert_close(apart.solver(layers=True)(h, b), expected, rtol=1e-12, atol=1e-13)


def test_multiples_of_one_preconditioner_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    root, wide = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    a, mean = root @ root.T + torch.eye(4).double(), wide @ wide.T + torch.eye(4).double()
    scales = torch.tensor([0.5, -2.0, 0.1]).double()
    found = shared_preconditioner(-scales[:, None, None] * a, mean)
    np.testing.assert_allclose(found.likeness, 1.0, rtol=1e-12)
    assert float((found.preconditioner @ mean).trace()) == pytest.approx(4.0)
    again = torch.from_numpy(found.scales)[:, None, None] * found.preconditioner
    torch.testing.assert_close(again, scales[:, None, None] * a, rtol=1e-9, atol=1e-10)
    noisy = -scales[:, None, None] * (a + 0.3 * torch.randn(3, 4, 4, generator=generator, dtype=torch.float64))
    assert 0.9 < shared_preconditioner(noisy, mean).likeness.min() < 0.9999


def test_what_is_not_positive_definite_is_refused() -> None:
    mixed = torch.diag(torch.tensor([1.0, -0.5]).double()).expand(2, -1, -1)
    with pytest.raises(ValueError, match="share no positive definite preconditioner"):
        shared_preconditioner(mixed, torch.eye(2).double())
    with pytest.raises(ValueError, match="mean must be positive definite"):
        shared_preconditioner(mixed, torch.zeros(2, 2).double())
    with pytest.raises(ValueError, match="expected 0 < low < high, got low=2 and high=1"):
        chebyshev_polynomial(3, 2, 1)


def test_likeness_to_the_inverse_covariance() -> None:
    """1 for its multiples in any coordinates, and the cosine of the eigenvalues else."""
    factor = torch.tensor([[2.0, 0.0], [0.7, 0.3]], dtype=torch.float64)
    inverse = torch.linalg.inv(factor @ factor.T)
    assert whitened_likeness(3 * inverse, factor) == pytest.approx(1, abs=1e-12)
    assert whitened_likeness(-inverse, factor) == pytest.approx(-1, abs=1e-12)
    root = torch.linalg.inv(factor)
    turned = root.T @ torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)) @ root
    assert whitened_likeness(turned, factor) == pytest.approx(4 / math.sqrt(10 * 2), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_ritz_values_are_the_zeros_of_conjugate_gradients(steps: int) -> None:
    h, b, truth = _drawn()
    values, vectors = torch.linalg.eigh(h)
    zeros = ritz_values(h, b, steps)
    assert zeros.shape == (20, min(steps, 4))
    left = (1 - values[:, None, :] / zeros[:, :, None]).prod(1)
    parts = (vectors.mT @ truth.unsqueeze(-1)).squeeze(-1)
    expected = truth - (vectors @ (left * parts).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(conjugate_gradient(h, b, steps)[-1], expected, rtol=1e-8, atol=1e-9)


def test_missing_ritz_values_are_zero() -> None:
    h = torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()).expand(1, -1, -1)
    found = ritz_values(h, torch.tensor([[0.0, 1.0, 1.0]]).double(), 3)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0, 3.0]]).double())
