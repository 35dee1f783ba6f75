"""Comparison models, constrained Memformers, further solvers and task families."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import gamma

from memformer_kernels import memformer_predict
from memformer_lab.experiments.common import Variant, excess, half_widths, judged, network, solver_of
from memformer_lab.experiments.prompts import (
    algorithm_predictions,
    best_match,
    draw_prompts,
    memformer_predictions,
    similarity,
)
from memformer_lab.experiments.second_order_data import turned
from memformer_lab.experiments.sequence_models import (
    AttentionStack,
    CausalTransformer,
    FeedForwardMemformer,
    RecurrentModel,
)
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import Estimate
from memformer_lab.solvers.optimizers import bfgs, conjugate_gradient, gradient_descent, ols, online_gradient_descent
from memformer_lab.tasks.families import FAMILIES, family_tokens
from memformer_lab.tasks.gaussian import GaussianTasks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("heads", [1, 3])
def test_linear_attention_is_the_linear_transformer(heads: int) -> None:
    torch.manual_seed(0)
    stack = AttentionStack(3, 2, "linear", heads=heads).double()
    batch = GaussianTasks.isotropic(3, 10, dtype=torch.float64).tokens(7, _generator(), queries=2)
    expected = memformer_predict(batch.z, stack.q, stack.p, context=10)
    torch.testing.assert_close(stack.predict(batch.z, 10), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_other_attention_reads_the_context_alone(attention: str) -> None:
    torch.manual_seed(0)
    stack = AttentionStack(3, 2, attention, heads=2, feed_forward=True)  # type: ignore[arg-type]
    z = torch.randn(4, 12, 4, generator=_generator())
    changed = z.clone()
    changed[:, 11] += 1
    found, other = stack.predict(z, 10), stack.predict(changed, 10)
    assert torch.equal(found[:, 0], other[:, 0])
    assert not torch.equal(found[:, 1], other[:, 1])
    order = torch.randperm(10, generator=_generator())
    shuffled = torch.cat([z[:, order], z[:, 10:]], dim=1)
    torch.testing.assert_close(stack.predict(shuffled, 10), found)


def test_two_softmax_heads_are_linear_attention_where_scores_are_small() -> None:
    """softmax(s) - softmax(-s) is 2 (s - mean s) / n to second order: linear attention on centred scores."""
    torch.manual_seed(0)
    stack = AttentionStack(3, 1, "softmax", heads=2).double()
    z = torch.randn(5, 12, 4, generator=_generator(), dtype=torch.float64)
    scale, q, p = 1e-3, torch.randn(4, 4, generator=_generator(1)), torch.randn(4, 4, generator=_generator(2))
    with torch.no_grad():
        stack.q.copy_(torch.stack([scale * q, -scale * q])[None])
        stack.p.copy_(torch.stack([p, -p])[None])
        scores = z @ (scale * q.double()) @ z[:, :10].mT
        moved = 2 / 10 * (scores - scores.mean(-1, keepdim=True)) @ (z[:, :10] @ p.double().T)
        found = stack.predict(z, 10) + z[:, 10:, -1]
    torch.testing.assert_close(found, -moved[:, 10:, -1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_a_feed_forward_block_begins_as_nothing_and_serves_every_token(structure: str) -> None:
    torch.manual_seed(0)
    start = memformer(0, 3, 2, rule="linear", structure=structure, dtype=torch.float64)
    model = FeedForwardMemformer(start).double()
    batch = GaussianTasks.isotropic(3, 10, dtype=torch.float64).tokens(7, _generator(), queries=2)
    with torch.no_grad():
        expected = start.predict(batch.z, context=10, layers=True)
        torch.testing.assert_close(model.predict(batch.z, context=10, layers=True), expected)
        model.feed_forward.down.normal_(generator=_generator(1))
        z = batch.z
        p = torch.zeros(2, 4, 4, dtype=torch.float64)
        p[:, 3, 3] = 1
        if start.p is not None:
            p[:, :3, :3] = start.p[:, 0]
        for layer in range(2):
            known = z[:, :10]
            z = z + z[..., :3] @ start.q[layer, 0] @ known[..., :3].mT @ known @ p[layer].T / 10
            z = z + (z @ model.feed_forward.up[layer]).relu() @ model.feed_forward.down[layer]
        torch.testing.assert_close(model.predict(batch.z, context=10), -z[:, 10:, 3])
    assert not torch.allclose(-z[:, 10:, 3], expected[-1])


def test_a_feed_forward_block_goes_with_one_head_and_no_memory() -> None:
    for arguments in ({"rule": "lfom"}, {"rule": "linear", "heads": 2}):
        with pytest.raises(ValueError, match="start must have the rule 'linear' and 1 head"):
            FeedForwardMemformer(memformer(0, 3, 2, **arguments))


@pytest.mark.parametrize("build", [lambda: CausalTransformer(3, 8, 2, 10), lambda: RecurrentModel(3, 8)])
def test_sequence_models_do_not_see_what_they_predict(build: object) -> None:
    torch.manual_seed(0)
    model = build()  # type: ignore[operator]
    x, y = torch.randn(2, 10, 3, generator=_generator()), torch.randn(2, 10, generator=_generator(1))
    later = y.clone()
    later[:, 4:] += 1
    with torch.no_grad():
        found, other = model(x, y), model(x, later)
    assert found.shape == (2, 10)
    torch.testing.assert_close(found[:, :5], other[:, :5])
    assert (found[:, 5:] - other[:, 5:]).abs().min() > 0


@pytest.mark.parametrize("memory", [None, 2])
def test_quasi_newton_with_exact_searches_is_conjugate_gradients(memory: int | None) -> None:
    tasks = GaussianTasks.isotropic(4, 12, dtype=torch.float64)
    drawn = tasks.quadratics(30, _generator())
    h, b = drawn.h.contiguous(), drawn.b.contiguous()
    torch.testing.assert_close(bfgs(h, b, 4, memory), conjugate_gradient(h, b, 4), rtol=1e-6, atol=1e-8)
    still = bfgs(h, torch.zeros_like(b), 3, memory)
    assert torch.equal(still, torch.zeros_like(still))


def test_online_gradient_descent_sees_one_example_after_another() -> None:
    x, y = torch.randn(3, 5, 2, generator=_generator()), torch.randn(3, 5, generator=_generator(1))
    rows = online_gradient_descent(x, y, 0.1)
    torch.testing.assert_close(rows[0], 0.1 * y[:, :1] * x[:, 0])
    changed = y.clone()
    changed[:, 3:] = 9.0
    assert torch.equal(online_gradient_descent(x, changed, 0.1)[:3], rows[:3])


def test_predictions_by_prompt_length() -> None:
    tasks = GaussianTasks.isotropic(3, 8)
    x, y = draw_prompts(tasks, 6, _generator())
    assert x.shape == (6, 9, 3)
    found = algorithm_predictions(
        x, y, (2, 8), {"gradient_descent": (1, 4), "conjugate_gradient": (3,), "l_bfgs": (3,)}
    )
    assert found["gradient_descent"].shape == (2, 2, 6)
    exact = (x[:, 8].double() * ols(*_statistics(x[:, :8].double(), y[:, :8].double()))).sum(-1)
    torch.testing.assert_close(found["ols"][0, 1], exact)
    torch.testing.assert_close(exact, y[:, 8].double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["conjugate_gradient"][0], found["ols"][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["l_bfgs"], found["conjugate_gradient"], rtol=1e-6, atol=1e-8)
    online = online_gradient_descent(x.double(), y.double(), 0.1)[7]
    torch.testing.assert_close(found["online"][0, 1], (online * x[:, 8].double()).sum(-1))
    descent = gradient_descent(*_statistics(x[:, :2].double(), y[:, :2].double()), 4)
    torch.testing.assert_close(found["gradient_descent"][1, 0], (descent[3] * x[:, 2].double()).sum(-1))
    model = network(0, 3, 2, rule="lfom")
    predicted = memformer_predictions(model, x, y, (2, 8))
    z = torch.cat([x, y.unsqueeze(-1)], dim=-1)
    z[:, 8, -1] = 0
    with torch.no_grad():
        torch.testing.assert_close(predicted[1], model.predict(z, context=8)[:, 0])


def _statistics(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.shape[1]
    return x.mT @ x / n, (x * y.unsqueeze(-1)).sum(1) / n


def test_similarity_is_a_cosine_of_errors() -> None:
    truth = torch.randn(5, 4, generator=_generator())
    errors = torch.randn(5, 4, generator=_generator(1))
    assert similarity(truth + errors, truth + 3 * errors, truth) == pytest.approx(1.0)
    assert similarity(truth + errors, truth - errors, truth) == pytest.approx(-1.0)
    assert math.isnan(similarity(truth, truth + errors, truth))


def test_the_best_match_is_the_iterate_itself() -> None:
    truth = torch.randn(4, 50, generator=_generator(), dtype=torch.float64)
    iterates = truth + torch.randn(6, 4, 50, generator=_generator(1), dtype=torch.float64)
    place, value = best_match(truth + 2 * (iterates[3] - truth), iterates, truth)
    assert (place, value) == (3, pytest.approx(1.0))
    lost = iterates.clone()
    lost[0] = math.nan
    assert best_match(iterates[3], lost, truth)[0] == 3


def test_turned_covariances_keep_their_spectrum_and_have_no_direction() -> None:
    drawn = turned(100.0, 3, 400)(200, _generator())
    x = drawn.z[:, :400, :-1].double()
    covariances = x.mT @ x / 400
    spectrum = torch.linalg.eigvalsh(covariances).mean(0)
    torch.testing.assert_close(spectrum, torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64), rtol=0.1, atol=0)
    mean = covariances.mean(0)
    torch.testing.assert_close(mean, 0.37 * torch.eye(3, dtype=torch.float64), rtol=0.25, atol=0.06)
    responses = (drawn.z[:, :400, :-1] @ drawn.weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(responses, drawn.z[:, :400, -1], rtol=1e-3, atol=1e-4)
    assert float(drawn.target.square().mean()) == pytest.approx(3.0, rel=0.25)


def test_a_scalar_preconditioner_stays_one() -> None:
    scalar = network(0, 3, 2, rule="linear", preconditioner="scalar")
    before = scalar.q.clone()
    fit_on_tasks(scalar, GaussianTasks.isotropic(3, 10), Recipe(20, 32), 0)
    assert torch.equal(scalar.q, before)
    assert torch.equal(before[0, 0], -0.5 * torch.eye(3))
    assert scalar.gamma is not None
    assert scalar.gamma.shape == (2, 1, 1, 1)
    assert not bool((scalar.gamma == 1).any())
    with pytest.raises(ValueError, match="that is 'lfom'"):
        network(0, 3, 2, rule="lfom_residual", preconditioner="scalar")


def test_registers_beyond_the_newest_are_never_read() -> None:
    model = network(0, 3, 4, rule="lfom", registers=2)
    assert model.gamma is not None
    with torch.no_grad():
        model.gamma.normal_(generator=_generator())
    batch = GaussianTasks.isotropic(3, 10).tokens(5, _generator())
    before = model.predict(batch.z)
    with torch.no_grad():
        model.gamma[3, :2] += 1
        model.gamma[2, 0] += 1
    assert torch.equal(model.predict(batch.z), before)
    with torch.no_grad():
        model.gamma[3, 2] += 1
    assert not torch.equal(model.predict(batch.z), before)


def test_one_register_is_no_memory() -> None:
    wide = network(0, 3, 3, rule="lfom", registers=1)
    plain = Variant(3, 3, rule="linear")
    with torch.no_grad():
        plain.q.copy_(wide.q)
    batch = GaussianTasks.isotropic(3, 10).tokens(5, _generator())
    torch.testing.assert_close(wide.predict(batch.z), plain.predict(batch.z))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_have_their_scale_and_hide_the_answer(name: str) -> None:
    batch = family_tokens(name, 4000, _generator(), d=5, n=20, queries=2)
    assert batch.z.shape == (4000, 22, 6)
    assert (batch.z[:, 20:, -1] == 0).all()
    expected = dict.fromkeys(("logistic", "sphere", "gamma-scaled"), 1.0).get(name, 5.0)
    assert float(batch.target.square().mean()) == pytest.approx(expected, rel=0.15)
    again = family_tokens(name, 4000, _generator(), d=5, n=20, queries=2)
    assert torch.equal(again.z, batch.z)


def test_spheres_are_those_of_the_landscape_paper() -> None:
    """Unit vectors, and unit vectors times the root of Gamma(0.1, 10): by its mean, variance and share near 0."""
    plain = family_tokens("sphere", 500, _generator(), d=5, n=20).z[..., :-1]
    torch.testing.assert_close(plain.norm(dim=-1), torch.ones(500, 21))
    scaled = family_tokens("gamma-scaled", 20_000, _generator(), d=5, n=20).z[..., :-1]
    square = scaled.double().square().sum(-1)
    assert float(square.mean()) == pytest.approx(1.0, rel=0.03)
    assert float(square.var()) == pytest.approx(10.0, rel=0.1)
    assert float((square < 1e-3).double().mean()) == pytest.approx(gamma.cdf(1e-3, 0.1, scale=10), abs=0.01)
    directions = scaled[square > 0.1] / square[square > 0.1].sqrt().unsqueeze(-1)
    assert float(directions.mean(0).abs().max()) < 0.01


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of linear, sphere"):
        family_tokens("cubic", 1, _generator(), d=2, n=3)


def test_solvers_are_of_first_order_methods_alone() -> None:
    with pytest.raises(ValueError, match="expected a response-only one whose heads share their coefficients"):
        solver_of(network(0, 3, 2, structure="block"))


def test_a_curve_beside_its_optimum_has_the_widest_interval_over_tasks() -> None:
    rows = [[Estimate(10, -1.0, -1.2, -0.9, -2.0)], [Estimate(10, -1.1, -1.2, -1.0, -2.0)]]
    found = judged("LFOM", (4,), rows, [Estimate(10, -1.5, -1.6, -1.4, -2.0)])
    assert found.column(4) == [-1.0, -1.1]
    assert found.sampling == pytest.approx((0.15,))
    assert excess(found).column(4) == pytest.approx([0.5, 0.4])
    assert half_widths([[Estimate(10, math.inf, math.inf, math.inf, 0.0)]]) == [0.0]
