from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from memformer_lab.solvers.judging import steps_of, weight_errors
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.krylov import KrylovTasks

DOUBLE = torch.float64


@pytest.mark.parametrize(("d", "n", "steps"), [(5, 20, 2), (8, 10, 3), (3, 6, 4)])
@pytest.mark.parametrize("name", ["fixed steps", "conjugate_gradient"])
def test_methods_err_as_among_all_features(d: int, n: int, steps: int, name: str) -> None:
    full = GaussianTasks.isotropic(d, n, dtype=DOUBLE)
    optimum = exact_optimum(full, steps)
    errors = []
    for tasks, seed in ((full, 0), (KrylovTasks(d, n, steps), 1)):
        drawn = tasks.quadratics(50_000, torch.Generator().manual_seed(seed))
        if name == "conjugate_gradient":
            weights = steps_of(name, steps)(drawn.h, drawn.b)[-1:]
        else:
            method = replace(optimum, preconditioner=torch.eye(drawn.b.shape[1], dtype=DOUBLE)).method()
            weights = method.solver(layers=False)(drawn.h.contiguous(), drawn.b.contiguous())
        errors.append(weight_errors(weights, drawn, tasks.factor)[0])
    logs = [error.clamp(min=1e-25).log() for error in errors]
    for values in (errors, logs):
        spread = math.hypot(*(float(one.std()) / math.sqrt(len(one)) for one in values))
        assert abs(float(values[0].mean() - values[1].mean())) < 4 * spread


def test_one_task_is_the_same_in_its_krylov_space() -> None:
    """Projected on an orthonormal basis of its Krylov space, a task has a tridiagonal H and the same errors."""
    drawn = GaussianTasks.isotropic(9, 30, dtype=DOUBLE).quadratics(5, torch.Generator().manual_seed(0))
    h, w = drawn.h.contiguous(), drawn.weights.contiguous()
    powers = [w]
    for _ in range(3):
        powers.append((h @ powers[-1][..., None])[..., 0])
    basis = torch.linalg.qr(torch.stack(powers, dim=-1)).Q
    small = basis.mT @ h @ basis
    off = small - torch.triu(torch.tril(small, 1), -1)
    assert float(off.abs().max()) < 1e-12
    b, target = (h @ w[..., None])[..., 0], (basis.mT @ w[..., None])[..., 0]
    found = steps_of("conjugate_gradient", 3)(h, b)
    reduced = steps_of("conjugate_gradient", 3)(small, (small @ target[..., None])[..., 0])
    for k in range(3):
        one = (found[k] - w).square().sum(-1)
        other = (reduced[k] - target).square().sum(-1)
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-20)


def test_tokens_carry_the_statistics() -> None:
    tasks = KrylovTasks(7, 40, 3)
    quadratics = tasks.quadratics(6, torch.Generator().manual_seed(0))
    batch = tasks.compressed(6, torch.Generator().manual_seed(0))
    x, y = batch.z[:, :4, :4], batch.z[:, :4, 4]
    torch.testing.assert_close(x.mT @ x / 4, quadratics.h)
    torch.testing.assert_close((x.mT @ y[..., None])[..., 0] / 4, quadratics.b)
    assert torch.equal(batch.weights, quadratics.weights)
    assert torch.equal(batch.z[:, 4:, :4], torch.eye(4, dtype=DOUBLE).expand(6, 4, 4))
    assert (batch.context, batch.query_scale) == (4, 4.0)


def test_sizes_are_checked() -> None:
    assert KrylovTasks(3, 5, 10).axes == 3
    with pytest.raises(ValueError, match="n must be at least 5"):
        KrylovTasks(10, 4, 4)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        KrylovTasks(10, 4, -1)
    with pytest.raises(TypeError, match="dtype"):
        KrylovTasks(10, 20, 1, torch.float16)
