from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import build_model, evaluate
from memformer_lab.solvers.estimates import Chunks, Estimate, Tally, estimate, tally
from memformer_lab.solvers.first_order import drawer, first_order_method
from memformer_lab.solvers.judging import (
    model_errors,
    network_errors,
    preconditioned_steps,
    solver_errors,
    steps_of,
    weight_errors,
)
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import seed_for

CONFIG = TrainingConfig(layers=3)


def _disturbed(**changes: Any) -> tuple[Memformer, TrainingConfig]:
    """A model none of whose parameters is at its start, in float64."""
    config = dataclasses.replace(CONFIG, **changes)
    model = build_model(config).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return model, config


def _exponential(batch: int, generator: torch.Generator) -> Tensor:
    return -torch.rand(2, batch, generator=generator, dtype=torch.float64).log() * torch.tensor([[1.0], [3.0]])


@pytest.mark.parametrize(
    "changes",
    [{"rule": rule} for rule in ("linear", "cgd", "lfom", "lfom_shared", "lfom_residual", "gated_heads")]
    + [{"granularity": "scalar"}, {"rule": "cgd", "granularity": "feature"}],
)
def test_the_method_of_a_response_only_model_is_its_prediction(changes: dict[str, Any]) -> None:
    model, _ = _disturbed(**changes)
    tasks = GaussianTasks.nonisotropic(dtype=torch.float64).compressed(50, torch.Generator().manual_seed(0))
    method = first_order_method(model)
    assert method is not None
    gram = context_gram(tasks.z, tasks.context) / tasks.context
    weights = method.solver(layers=True)(gram[:, :-1, :-1], gram[:, :-1, -1])
    predictions = (tasks.z[:, tasks.context :, :-1] @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(predictions, model.predict(tasks.z, context=tasks.context, layers=True))
    torch.testing.assert_close(method.solver(layers=False)(gram[:, :-1, :-1], gram[:, :-1, -1])[0], weights[-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"structure": "block"},
        {"structure": "dense"},
        {"granularity": "token"},
        {"rule": "recursive"},
        {"heads": 2, "rule": "gated_heads"},
    ],
)
def test_other_models_are_no_first_order_method(changes: dict[str, Any]) -> None:
    assert first_order_method(_disturbed(**changes)[0]) is None


def test_the_integrated_query_is_the_mean_over_many_queries() -> None:
    """(w - w*)^T Sigma (w - w*) against 400,000 drawn queries: within five standard errors."""
    sampler = GaussianTasks.nonisotropic(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    quadratics = sampler.quadratics(1, generator)
    weights = conjugate_gradient(quadratics.h, quadratics.b, 2)
    exact = weight_errors(weights, quadratics, sampler.factor)
    queries = torch.randn(400_000, 5, generator=generator, dtype=torch.float64) @ sampler.factor.T
    squares = ((weights - quadratics.weights)[:, 0] @ queries.T).square()
    spread = squares.std(1) / math.sqrt(squares.shape[1])
    assert ((squares.mean(1) - exact[:, 0]).abs() < 5 * spread).all()


@pytest.mark.parametrize("layers", [False, True])
def test_solving_and_predicting_give_the_same_errors(layers: bool) -> None:
    model, config = _disturbed(n=12)
    model.float()
    solved = model_errors([model], config.sampler(), layers=layers)(3000, torch.Generator().manual_seed(2))
    predicted = network_errors([model], drawer([model], config.sampler()), layers=layers)(
        3000, torch.Generator().manual_seed(2)
    )
    assert solved.shape == predicted.shape == (3 if layers else 1, 3000)
    torch.testing.assert_close(solved, predicted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{"structure": "block"}, {"structure": "dense"}, {"rule": "recursive"}, {}])
def test_by_layer_the_last_is_the_model(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    model = build_model(config)
    by_layer = evaluate(model, config, tasks=500, layers=True)
    assert len(by_layer) == 3
    (last,) = evaluate(model, config, tasks=500)
    assert dataclasses.astuple(by_layer[-1]) == pytest.approx(dataclasses.astuple(last), rel=1e-4)
    assert by_layer[0].log_mean > by_layer[2].log_mean


def test_the_best_single_layer_reaches_its_closed_form() -> None:
    """-A = ((n+1)/n + d/n)^-1 Sigma^-1 gives ln(d (d+1) / (n+d+1)) = 0.143 on tasks with w* ~ N(0, Sigma^-1)."""
    config = dataclasses.replace(CONFIG, layers=1, rule="linear")
    sampler = config.sampler()
    assert isinstance(sampler, GaussianTasks)
    model = build_model(config)
    with torch.no_grad():
        model.q[0, 0] = -sampler.covariance.inverse() * 20 / (20 + 1 + 5)
    (found,) = evaluate(model, config, tasks=200_000)
    assert found.low < math.log(30 / 26) < found.high
    assert found.high - found.low < 0.02


def test_conjugate_gradient_reaches_its_figures() -> None:
    """0.69, 0.14, -0.60, -1.61, to the 0.02 that 200,000 tasks and two decimals allow."""
    sampler = GaussianTasks.nonisotropic()
    found = estimate(solver_errors(sampler, [lambda h, b: conjugate_gradient(h, b, 4)]), 200_000, 0)
    assert [one.log_mean for one in found] == pytest.approx([0.69, 0.14, -0.60, -1.61], abs=0.02)
    assert [one.log_median for one in found] == pytest.approx([0.37, -0.37, -1.37, -2.80], abs=0.03)


def test_solvers_share_their_tasks() -> None:
    sampler = GaussianTasks.nonisotropic()
    once = solver_errors(sampler, [lambda h, b: conjugate_gradient(h, b, 2)])(100, torch.Generator().manual_seed(3))
    twice = solver_errors(sampler, [lambda h, b: conjugate_gradient(h, b, 1), lambda h, b: conjugate_gradient(h, b, 2)])
    rows = twice(100, torch.Generator().manual_seed(3))
    assert torch.equal(rows[1:], once)
    assert torch.equal(rows[0], rows[1])


def test_estimates_of_a_known_distribution() -> None:
    """Exponential errors of mean 1 and 3: the mean, the median ln 2, and an interval of 2 * 1.96 / sqrt(N)."""
    tasks = 300_000
    one, three = estimate(_exponential, tasks, 0)
    assert one.tasks == three.tasks == tasks
    for found, mean in ((one, 1.0), (three, 3.0)):
        assert found.low < found.log_mean < found.high
        assert found.low < math.log(mean) < found.high
        assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(tasks), rel=0.1)
        assert found.log_median == pytest.approx(math.log(mean * math.log(2)), abs=0.012)


@pytest.mark.slow
def test_intervals_cover_the_mean() -> None:
    """100 intervals of 95% miss more than 13 times with odds of 5 * 10^-4."""
    misses = 0
    for seed in range(50):
        for found, mean in zip(estimate(_exponential, 2000, seed), (1.0, 3.0), strict=True):
            misses += not found.low < math.log(mean) < found.high
    assert misses <= 13


@pytest.mark.parametrize("tasks", [1, 2, 999, 1000, 2999, 20_001, 45_678])
def test_every_task_is_drawn_once(tasks: int) -> None:
    drawn = []

    def ones(batch: int, generator: torch.Generator) -> Tensor:
        drawn.append(batch)
        return torch.ones(1, batch)

    (found,) = estimate(ones, tasks, 0)
    assert sum(drawn) == tasks == found.tasks
    assert max(drawn) <= 20_000
    assert (found.log_mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.log_median == pytest.approx(0.0, abs=0.01)
    assert 500 <= len(tally(ones, Chunks(45_678, 0), range(3)).sizes) <= 2000


def test_pieces_add_up_to_the_whole() -> None:
    chunks = Chunks(70_000, 4)
    whole = tally(_exponential, chunks, range(len(chunks)))
    pieces = tally(_exponential, chunks, range(1)) + tally(_exponential, chunks, range(1, len(chunks)))
    assert np.array_equal(whole.sums, pieces.sums)
    assert whole.estimates(4) == pieces.estimates(4) == estimate(_exponential, 70_000, 4)


def test_seeds_give_other_tasks_and_training_draws_none_of_them() -> None:
    assert estimate(_exponential, 5000, 0) == estimate(_exponential, 5000, 0)
    assert estimate(_exponential, 5000, 0) != estimate(_exponential, 5000, 1)
    seeds = {seed_for("training", 0), *(seed_for("evaluation", 0, index) % 2**32 for index in range(500))}
    assert len(seeds) == 501


def test_an_infinite_error_shows_in_the_mean_and_not_in_the_median() -> None:
    errors = torch.ones(2, 3000)
    errors[0, 17], errors[1, 5] = math.inf, math.nan
    for found in Tally.of(errors, block=3).estimates(0):
        assert (found.log_mean, found.low, found.high) == (math.inf, math.inf, math.inf)
        assert found.log_median == pytest.approx(0.0, abs=0.01)


def test_errors_of_zero() -> None:
    (found,) = Tally.of(torch.zeros(1, 50), block=1).estimates(0)
    assert found.log_mean == found.low == found.high == -math.inf
    assert found.log_median < -80
    assert isinstance(found, Estimate)


@pytest.mark.parametrize(("tasks", "seed", "name"), [(0, 0, "tasks"), (-5, 0, "tasks"), (10, -1, "seed")])
def test_bad_arguments(tasks: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        evaluate(build_model(CONFIG), CONFIG, tasks=tasks, seed=seed)


def test_a_preconditioned_optimiser_is_that_optimiser_on_whitened_tasks() -> None:
    tasks = GaussianTasks(4, 12, (1.0, 0.5, 2.0, 0.1), 3, "inverse", dtype=torch.float64)
    drawn = tasks.quadratics(20, torch.Generator().manual_seed(0))
    factor, inverse = tasks.factor, torch.linalg.inv(tasks.covariance)
    root = torch.linalg.inv(factor)
    whitened = steps_of("conjugate_gradient", 3)(root @ drawn.h @ root.T, drawn.b @ root.T)
    found = preconditioned_steps("conjugate_gradient", inverse, 3)(drawn.h, drawn.b)
    torch.testing.assert_close(found, whitened @ root, rtol=1e-7, atol=1e-9)
    plain = preconditioned_steps("conjugate_gradient", 3.0 * torch.eye(4, dtype=torch.float64), 3)(drawn.h, drawn.b)
    torch.testing.assert_close(plain, steps_of("conjugate_gradient", 3)(drawn.h, drawn.b), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_errors_that_are_mostly_no_numbers_have_no_small_median(wrong: float) -> None:
    (found,) = Tally.of(torch.tensor([[1.0] * 20 + [wrong] * 30]), block=1).estimates(0)
    assert found.log_mean == found.log_median == math.inf
