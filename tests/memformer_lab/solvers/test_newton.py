"""Newton's iteration by written weights: the same numbers as the iteration, by as many layers as is said."""

from __future__ import annotations

import pytest
import torch

from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.solvers.newton import carried_inverse, newton_inverse, newton_network, newton_tokens
from memformer_lab.tasks.gaussian import GaussianTasks

ALPHA = 0.02


def _drawn(tasks: GaussianTasks, queries: int = 3) -> torch.Tensor:
    return tasks.tokens(50, torch.Generator().manual_seed(0), queries=queries).z


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 12, 20])
@pytest.mark.parametrize(
    "tasks",
    [
        GaussianTasks.isotropic(5, 20, dtype=torch.float64),
        GaussianTasks.nonisotropic(20, dtype=torch.float64),
        GaussianTasks(3, 9, (1.0, 0.1, 0.03), 1, noise=0.5, dtype=torch.float64),
        GaussianTasks(1, 4, (1.0,), dtype=torch.float64),
    ],
    ids=["isotropic", "non-isotropic", "ill-conditioned", "one feature"],
)
def test_the_network_is_the_iteration(tasks: GaussianTasks, iterations: int) -> None:
    z = _drawn(tasks)
    s, b = quadratics_of(z, tasks.n)
    expected = newton_inverse(s, iterations, ALPHA)
    with torch.no_grad():
        model = newton_network(tasks.d, iterations, ALPHA)
        inverse = carried_inverse(model, z, tasks.n)
        predicted = model.predict(newton_tokens(z), context=tasks.n)
    assert _apart(inverse, expected) < 1e-10
    answers = (z[:, tasks.n :, :-1] @ (expected @ b.unsqueeze(-1))).squeeze(-1)
    assert predicted.shape == (50, 3)
    assert _apart(predicted, answers) < 1e-10


def test_its_size_is_what_the_text_says() -> None:
    model = newton_network(5, 7, ALPHA)
    arguments = model.stack_arguments()
    assert (model.layers, model.heads, model.d + 1) == (7 + 2, 1, 2 * 5 + 1)
    assert (arguments["gamma"], arguments["beta"], arguments["gate"]) == (None, None, None)


def test_it_converges_to_least_squares() -> None:
    tasks = GaussianTasks.isotropic(4, 40, dtype=torch.float64)
    z = _drawn(tasks)
    s, b = quadratics_of(z, 40)
    with torch.no_grad():
        predicted = newton_network(4, 16, 0.1).predict(newton_tokens(z), context=40)
    answers = (z[:, 40:, :-1] @ torch.linalg.solve(s, b).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(predicted, answers, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "said"), [((0, 1, 0.1), "d=0"), ((2, -1, 0.1), "iterations=-1"), ((2, 1, 0.0), "alpha=0.0")]
)
def test_arguments_are_checked(arguments: tuple[int, int, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"expected d >= 1, iterations >= 0 and a positive finite alpha.*{said}"):
        newton_network(*arguments)


def test_making_one_draws_nothing() -> None:
    before = torch.random.get_rng_state()
    newton_network(3, 2, ALPHA)
    assert torch.equal(torch.random.get_rng_state(), before)
