"""The optimum of response-only networks: closed forms, brute force, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from memformer_kernels import lfom_solve
from memformer_lab.experiments.e13_one_layer import closed_form
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import solver_errors, weight_errors
from memformer_lab.solvers.optimum import common_errors, exact_optimum, sampled_form
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

DOUBLE = torch.float64


def _tasks(noise: float = 0.0, d: int = 5, n: int = 20, scale: float = 1.0) -> GaussianTasks:
    return GaussianTasks(d, n, (scale,) * d, noise=noise, dtype=DOUBLE)


def _judged(tasks: GaussianTasks, method: object, count: int = 100_000) -> tuple[float, float, float]:
    found = estimate(solver_errors(tasks, [method.solver(layers=False)]), count, 0)[0]  # type: ignore[attr-defined]
    return found.log_mean, found.low, found.high


@pytest.mark.parametrize(("d", "n"), [(5, 20), (2, 2), (256, 1024), (6, 3)])
def test_one_layer_has_the_known_optimum(d: int, n: int) -> None:
    tasks = _tasks(d=d, n=n)
    assert exact_optimum(tasks, 1).error == pytest.approx(d * (d + 1) / (n + d + 1), rel=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_one_layer_takes_the_step_of_the_closed_form(noise: float) -> None:
    tasks = _tasks(noise)
    optimum = exact_optimum(tasks, 1)
    torch.testing.assert_close(optimum.weights * optimum.preconditioner, closed_form(tasks), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_more_layers_are_better_and_more_noise_is_worse(noise: float) -> None:
    errors = [exact_optimum(_tasks(noise), layers).error for layers in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    noisier = [exact_optimum(_tasks(noise + 0.3), layers).error for layers in range(1, 9)]
    assert all(one < other for one, other in zip(errors, noisier, strict=True))


def test_many_layers_come_to_ridge_regression() -> None:
    """With noise the optimum over every function of H and b is ridge regression with penalty noise^2 / n."""
    tasks = _tasks(1.0)
    drawn = tasks.quadratics(200_000, torch.Generator().manual_seed(0))
    values = torch.linalg.eigvalsh(drawn.h)
    penalty = tasks.noise**2 / tasks.n
    ridge = (penalty / (values + penalty)).sum(1)
    error = float(ridge.std()) / math.sqrt(len(ridge))
    assert abs(exact_optimum(tasks, 16).error - float(ridge.mean())) < 4 * error + 2e-3
    assert exact_optimum(tasks, 16).error > float(ridge.mean()) - 4 * error


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_its_method_has_its_error_on_fresh_tasks(noise: float, layers: int) -> None:
    tasks = _tasks(noise)
    optimum = exact_optimum(tasks, layers)
    mean, low, high = _judged(tasks, optimum.method(), 100_000)
    assert abs(mean - optimum.log_error) < 1.3 * max(high - mean, mean - low)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_no_other_coefficients_do_better(noise: float) -> None:
    tasks = _tasks(noise)
    form = sampled_form(tasks, torch.eye(5, dtype=DOUBLE), 4, 100_000, seed=1)
    found, exact = form.best(), exact_optimum(tasks, 4)
    both = [solver_errors(tasks, [one.method().solver(layers=False) for one in (found, exact)])]
    judged = [one.log_mean for one in estimate(both[0], 100_000, 0)]
    assert judged[0] == pytest.approx(judged[1], abs=0.01)
    generator = torch.Generator().manual_seed(2)
    best = form.error(found.weights)
    for _ in range(20):
        other = found.weights * (1 + 0.1 * torch.randn(4, generator=generator, dtype=DOUBLE))
        assert form.error(other) > best


def test_whitening_rotation_and_units_change_nothing() -> None:
    plain = exact_optimum(_tasks(0.5), 4)
    whitened = exact_optimum(GaussianTasks(5, 20, (1.0, 3.0, 0.5, 0.25, 2.0), 7, "inverse", 0.5, DOUBLE), 4)
    assert whitened.error == plain.error
    scaled = exact_optimum(_tasks(0.5 * 4.0, scale=4.0), 4)
    assert scaled.error == pytest.approx(16 * plain.error, rel=1e-12)
    tasks = GaussianTasks(5, 20, (1.0, 3.0, 0.5, 0.25, 2.0), 7, "inverse", 0.5, DOUBLE)
    assert _judged(tasks, whitened.method())[0] == pytest.approx(_judged(_tasks(0.5), plain.method())[0], abs=1e-9)


def test_the_method_is_the_polynomial() -> None:
    tasks = _tasks(1.0)
    optimum = exact_optimum(tasks, 4)
    drawn = tasks.quadratics(10, torch.Generator().manual_seed(0))
    h, b = drawn.h.contiguous(), drawn.b.contiguous()
    expected, element = torch.zeros_like(b), b
    for node, weight in zip(optimum.nodes, optimum.weights, strict=True):
        expected = expected + weight * element
        element = element - (h @ element[..., None])[..., 0] / node
    torch.testing.assert_close(optimum.method().solver(layers=False)(h, b)[0], expected, rtol=1e-12, atol=1e-12)


def test_without_noise_memory_adds_nothing_and_with_noise_it_is_a_penalty() -> None:
    plain = exact_optimum(_tasks(), 4)
    assert plain.method().gamma is None
    form = sampled_form(_tasks(), torch.eye(5, dtype=DOUBLE), 4, 100_000, seed=1)
    assert form.best_descent().error == pytest.approx(form.best().error, rel=1e-6)
    noisy = exact_optimum(_tasks(1.0), 4)
    penalty, steps = 1.0 / 20, 1 / (noisy.nodes + 1.0 / 20)
    drawn = _tasks(1.0).quadratics(10, torch.Generator().manual_seed(0))
    h, b = drawn.h.contiguous(), drawn.b.contiguous()
    w = torch.zeros_like(b)
    for step in steps:
        w = w + step * (b - (h @ w[..., None])[..., 0] - penalty * w)
    torch.testing.assert_close(noisy.method().solver(layers=False)(h, b)[0], w, rtol=1e-11, atol=1e-11)


def test_gradient_steps_are_no_better_than_any_polynomial() -> None:
    skewed = GaussianTasks(5, 20, (1.0, 1.0, 0.5, 0.25, 1.0), 3, "inverse", dtype=DOUBLE)
    form = sampled_form(skewed, torch.eye(5, dtype=DOUBLE), 3, 50_000, seed=1)
    best, descent = form.best(), form.best_descent()
    assert best.error <= descent.error * (1 + 1e-9)
    assert descent.method().gamma is None
    assert descent.error == pytest.approx(float(form.error(form._of_steps(descent.weights))), rel=1e-12)


@pytest.mark.parametrize("rule", ["linear", "cgd", "lfom"])
def test_brute_force_comes_to_the_same_error(rule: str) -> None:
    """L-BFGS on all scalar weights of a rule, on the sample that the quadratic form is of."""
    tasks, layers, count = _tasks(), 3, 4000
    form = sampled_form(tasks, torch.eye(5, dtype=DOUBLE), layers, count, seed=3)
    drawn = tasks.quadratics(count, generator_for("training", 3, 2))
    h, b = drawn.h.contiguous(), drawn.b.contiguous()
    generator = torch.Generator().manual_seed(0)
    flat = 0.1 * torch.randn(3 * layers + layers**2, generator=generator, dtype=DOUBLE)
    flat[:layers] += 0.5
    flat.requires_grad_()

    def loss() -> Tensor:
        a = -flat[:layers, None, None] * torch.eye(5, dtype=DOUBLE)
        gamma = torch.eye(layers, dtype=DOUBLE) + flat[2 * layers : 2 * layers + layers**2].view(layers, layers)
        beta = flat[layers : 2 * layers, None] if rule == "cgd" else None
        weights = lfom_solve(h, b, a, gamma[..., None] if rule == "lfom" else None, beta)
        errors: Tensor = weight_errors(weights[None], drawn, tasks.factor).mean()
        return errors

    search = torch.optim.LBFGS(
        [flat], max_iter=3000, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    search.step(closure)
    assert float(loss().detach()) == pytest.approx(form.best().error, rel=1e-5)


def test_free_preconditioners_find_nothing_lower() -> None:
    """L-BFGS over all entries of A_l and Gamma ends where multiples of I do, but for the sample's chance."""
    tasks, layers, count = _tasks(d=2, n=8), 2, 4000
    drawn = tasks.quadratics(count, torch.Generator().manual_seed(5))
    h, b = drawn.h.contiguous(), drawn.b.contiguous()
    noise = torch.randn(layers, 2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    a = (0.5 * noise - 0.5 * torch.eye(2, dtype=DOUBLE)).requires_grad_()
    gamma = torch.eye(layers, dtype=DOUBLE).requires_grad_()
    search = torch.optim.LBFGS([a, gamma], max_iter=300, tolerance_change=1e-13, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        weights = lfom_solve(h, b, a, gamma[..., None])
        value: Tensor = weight_errors(weights[None], drawn, tasks.factor).mean()
        torch.autograd.backward(value)
        return value

    search.step(closure)
    best = exact_optimum(tasks, layers).method().solver(layers=False)(h, b)
    expected = float(weight_errors(best, drawn, tasks.factor).mean())
    assert 0.98 * expected < float(closure().detach()) < 1.0001 * expected


def test_what_has_no_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="isotropic weights need equal scales"):
        exact_optimum(GaussianTasks(2, 5, (1.0, 2.0)), 2)
    with pytest.raises(ValueError, match="size 0 needs 0 moments and must be at least 1"):
        exact_optimum(_tasks(), 0)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_length_is_its_own_common_optimum(noise: float) -> None:
    tasks = _tasks(noise)
    expected = [exact_optimum(_tasks(noise, n=n), 3).error for n in (7, 20)]
    found = [common_errors(tasks, [n], 3, [n])[0] for n in (7, 20)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_common_optimum_is_that_of_sampled_prompts_of_all_lengths() -> None:
    """The least mean error over lengths, shorter than d too, by least squares on sampled tasks in float64."""
    tasks, layers, lengths = _tasks(0.5, d=3), 2, (1, 2, 6)
    errors = common_errors(tasks, lengths, layers, (*lengths, 9))
    count, gram, target = 200_000, torch.zeros(layers, layers, dtype=DOUBLE), torch.zeros(layers, dtype=DOUBLE)
    drawn = GaussianTasks(3, 9, (1.0,) * 3, noise=0.5, dtype=DOUBLE).tokens(count, torch.Generator().manual_seed(0))
    bases = []
    for n in (*lengths, 9):
        x, y = drawn.z[:, :n, :-1], drawn.z[:, :n, -1:]
        columns = [x.mT @ y / n]
        for _ in range(layers - 1):
            columns.append(x.mT @ (x @ columns[-1]) / n)
        bases.append(torch.cat(columns, dim=-1))
    wanted = drawn.weights[..., None]
    for basis in bases[: len(lengths)]:
        gram += (basis.mT @ basis).mean(0)
        target += (basis.mT @ wanted).mean(0)[:, 0]
    best = torch.linalg.solve(gram, target)
    found = [float((basis @ best - drawn.weights).square().sum(-1).mean()) for basis in bases]
    assert found == pytest.approx(errors, rel=0.05)
    # A length alone can only do better there than all together.
    assert exact_optimum(_tasks(0.5, d=3, n=6), layers).error <= errors[2]


def test_common_optima_need_lengths_and_layers() -> None:
    with pytest.raises(ValueError, match="expected at least one length and one layer, got 0 lengths and 2 layers"):
        common_errors(_tasks(), [], 2, [5])
    with pytest.raises(ValueError, match="isotropic weights need equal scales"):
        common_errors(GaussianTasks(2, 4, (1.0, 0.5)), [4], 2, [4])
