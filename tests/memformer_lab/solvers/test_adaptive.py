"""Coefficients of the task: with them a Memformer is conjugate gradients, with fixed ones what it was."""

from __future__ import annotations

import pytest
import torch

from memformer_kernels import lfom_solve
from memformer_lab.solvers.adaptive import adaptive_predict, adaptive_solve, adaptive_solver, conjugate_gamma
from memformer_lab.solvers.judging import preconditioned_steps, quadratics_of
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.tasks.gaussian import GaussianTasks

KINDS = {
    "isotropic": GaussianTasks.isotropic(5, 20, dtype=torch.float64),
    "non-isotropic": GaussianTasks.nonisotropic(20, dtype=torch.float64),
    "noisy": GaussianTasks(4, 12, (1.0, 0.5, 1.0, 0.8), 1, noise=0.5, dtype=torch.float64),
    "fewer examples than features": GaussianTasks.isotropic(6, 4, dtype=torch.float64),
}


def _drawn(tasks: GaussianTasks) -> torch.Tensor:
    return tasks.tokens(200, torch.Generator().manual_seed(0), queries=3).z


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_memformer_is_conjugate_gradients(kind: str) -> None:
    """After each layer, also after those at which tasks are at their end."""
    tasks = KINDS[kind]
    z, layers = _drawn(tasks), 7
    h, b = quadratics_of(z, tasks.n)
    expected = conjugate_gradient(h, b, layers)
    q = -torch.eye(tasks.d, dtype=torch.float64).expand(layers, 1, -1, -1)
    run = adaptive_predict(z, q, context=tasks.n)
    answers = (z[:, tasks.n :, :-1] @ expected.unsqueeze(-1)).squeeze(-1)
    assert run.found.shape == (layers, 200, 3)
    assert _apart(run.found, answers) < 1e-10
    assert _apart(adaptive_solve(h, b, q[:, 0]).found, expected) < 1e-10


def test_with_a_preconditioner_it_is_preconditioned_conjugate_gradients() -> None:
    tasks = KINDS["non-isotropic"]
    a = torch.linalg.inv(tasks.covariance)
    drawn = tasks.quadratics(300, torch.Generator().manual_seed(0))
    expected = preconditioned_steps("conjugate_gradient", a, 5)(drawn.h, drawn.b)
    found = adaptive_solver(a, 5)(drawn.h, drawn.b)
    assert _apart(found, expected) < 1e-10
    assert float((found[-1] - drawn.weights).norm() / drawn.weights.norm()) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [4, 7])
def test_lfom_with_coefficients_of_each_task_is_conjugate_gradients(kind: str, layers: int) -> None:
    """In the contract: registers hold gradients, and gamma (B, L, L, 1) makes conjugate directions of them."""
    tasks = KINDS[kind]
    h, b = (one.contiguous() for one in quadratics_of(_drawn(tasks), tasks.n))
    a = -torch.eye(tasks.d, dtype=torch.float64).expand(layers, -1, -1)
    expected = conjugate_gradient(h, b, layers)
    gamma = conjugate_gamma(h, b, a)
    assert gamma.shape == (200, layers, layers, 1)
    assert not bool(gamma[..., 0].triu(1).any())
    assert _apart(lfom_solve(h, b, a, gamma, layers=True), expected) < 1e-10
    run = adaptive_solve(h, b, a)
    diagonal, beta = torch.diag_embed(run.gamma.T).unsqueeze(-1), run.beta.T.unsqueeze(-1)
    assert _apart(lfom_solve(h, b, a, diagonal, beta, layers=True), expected) < 1e-10
    mean = gamma.mean(0)
    assert _apart(lfom_solve(h, b, a, mean, layers=True), expected) > 0.01, "one gamma for all tasks is not"


def test_lfom_with_coefficients_of_each_task_is_preconditioned_conjugate_gradients() -> None:
    tasks = KINDS["non-isotropic"]
    preconditioner = torch.linalg.inv(tasks.covariance)
    drawn = tasks.quadratics(300, torch.Generator().manual_seed(0))
    h, b, a = drawn.h.contiguous(), drawn.b.contiguous(), -preconditioner.expand(5, -1, -1)
    expected = preconditioned_steps("conjugate_gradient", preconditioner, 5)(h, b)
    assert _apart(lfom_solve(h, b, a, conjugate_gamma(h, b, a), layers=True), expected) < 1e-10


def test_tokens_and_quadratics_have_the_same_coefficients() -> None:
    tasks = KINDS["isotropic"]
    z = _drawn(tasks)
    h, b = quadratics_of(z, tasks.n)
    q = -torch.eye(5, dtype=torch.float64).expand(4, 1, -1, -1)
    tokens, quadratics = adaptive_predict(z, q, context=tasks.n, queries=1), adaptive_solve(h, b, q[:, 0])
    torch.testing.assert_close(tokens.gamma, quadratics.gamma, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(tokens.beta, quadratics.beta, rtol=1e-7, atol=1e-10)
    assert bool((tokens.beta[0] == 0).all())
    assert float(tokens.gamma.std(1).min()) > 0.05, "tasks differ in their coefficients"


def test_given_coefficients_are_those_of_the_contract() -> None:
    """(L, 1) of them for all tasks: `lfom_solve` with the same."""
    tasks = KINDS["isotropic"]
    z = _drawn(tasks)
    h, b = (one.contiguous() for one in quadratics_of(z, tasks.n))
    generator = torch.Generator().manual_seed(1)
    a = -torch.eye(5, dtype=torch.float64) + 0.1 * torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    gamma, beta = torch.tensor([[0.5], [0.4], [0.3]]).double(), torch.tensor([[0.0], [0.2], [0.3]]).double()
    expected = lfom_solve(h, b, a, torch.diag(gamma[:, 0]).unsqueeze(-1), beta, layers=True)
    run = adaptive_solve(h, b, a, gamma=gamma, beta=beta)
    torch.testing.assert_close(run.found, expected, rtol=1e-11, atol=1e-12)
    assert run.gamma.shape == run.beta.shape == (3, 200)
    tokens = adaptive_predict(z, a.unsqueeze(1), context=tasks.n, gamma=gamma, beta=beta).found
    answers = (z[:, tasks.n :, :-1] @ expected.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(tokens, answers, rtol=1e-11, atol=1e-12)


def test_line_search_alone_is_steepest_descent() -> None:
    tasks = KINDS["isotropic"]
    h, b = quadratics_of(_drawn(tasks), tasks.n)
    run = adaptive_solve(h, b, -torch.eye(5, dtype=torch.float64).expand(3, -1, -1), beta=torch.zeros(1, 1))
    w = torch.zeros_like(b)
    for found in run.found:
        g = b - (h @ w.unsqueeze(-1)).squeeze(-1)
        step = g.square().sum(1) / torch.einsum("bi,bij,bj->b", g, h, g)
        w = w + step[:, None] * g
        torch.testing.assert_close(found, w, rtol=1e-11, atol=1e-12)


def test_a_task_that_is_not_finite_stays_so_and_alone() -> None:
    tasks = KINDS["isotropic"]
    z = _drawn(tasks)
    z[3, 0, 0] = torch.nan
    found = adaptive_predict(z, -torch.eye(5, dtype=torch.float64).expand(2, 1, -1, -1), context=tasks.n).found
    assert bool(found[:, 3].isnan().all())
    assert bool(found[:, [0, 1, 2, 4]].isfinite().all())


def test_shapes_are_checked() -> None:
    h, b = torch.eye(2).expand(3, 2, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"h, b and a must be .* got \(3, 2, 2\), \(3, 2\) and \(0, 2, 2\)"):
        adaptive_solve(h, b, torch.ones(0, 2, 2))
    with pytest.raises(ValueError, match="h, b and a must be"):
        adaptive_solve(h, b, torch.ones(1, 3, 3))


def test_layers_that_differ_are_no_conjugate_gradients() -> None:
    h, a = torch.eye(3).expand(2, 3, 3), -torch.stack([torch.eye(3), 2 * torch.eye(3)])
    with pytest.raises(ValueError, match="the same matrix in every layer"):
        conjugate_gamma(h, torch.ones(2, 3), a)
