from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch, chi_by_rejection, product
from memformer_lab.tasks.standardised import StandardisedTasks

SAMPLERS = ("tokens", "quadratics", "compressed")
# A two-sided normal tail of 5 standard errors is 6e-7: with a few hundred comparisons, a false alarm has odds < 1e-3.
LIMIT = 5.0


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _statistics(batch: TaskBatch) -> tuple[Tensor, Tensor]:
    known = batch.z[:, : batch.context]
    gram = known.mT @ known / batch.context
    return gram[:, :-1, :-1], gram[:, :-1, -1]


def _draw(tasks: GaussianTasks, sampler: str, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    drawn = getattr(tasks, sampler)(batch, _seeded(seed))
    h, b = (drawn.h, drawn.b) if sampler == "quadratics" else _statistics(drawn)
    return h, b, drawn.weights


def _assert_mean(samples: Tensor, expected: Tensor) -> None:
    error = samples.mean(0) - expected
    assert (error.abs() <= LIMIT * samples.std(0) / math.sqrt(len(samples)) + 1e-12).all(), error


CASES = {
    "odd and even degrees of freedom": GaussianTasks(3, 8, (1.0, 0.5, 2.0), 1, "inverse", 0.7, torch.float64),
    "isotropic weights": GaussianTasks(2, 5, (1.0, 0.3), 4, "isotropic", 0.0, torch.float64),
    "as few examples as features": GaussianTasks(3, 3, (1.0, 0.5, 2.0), 2, "isotropic", 0.3, torch.float64),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tasks", CASES.values(), ids=CASES.keys())
def test_moments_equal_their_closed_forms(tasks: GaussianTasks, sampler: str) -> None:
    """Wishart moments: E H = S, var H_ij = (S_ij^2 + S_ii S_jj) / n, E H W H = (1 + 1/n) S W S + tr(S W) S / n."""
    h, b, w = _draw(tasks, sampler, 40_000, seed=11)
    s, n = tasks.covariance, tasks.n
    prior = torch.linalg.inv(s) if tasks.weights == "inverse" else torch.eye(tasks.d, dtype=torch.float64)
    _assert_mean(w.unsqueeze(2) * w.unsqueeze(1), prior)
    _assert_mean(h, s)
    _assert_mean((h - s) ** 2, (s**2 + s.diagonal().outer(s.diagonal())) / n)
    _assert_mean(b.unsqueeze(2) * w.unsqueeze(1), s @ prior)
    second = (1 + 1 / n) * s @ prior @ s + torch.trace(s @ prior) * s / n + tasks.noise**2 * s / n
    _assert_mean(b.unsqueeze(2) * b.unsqueeze(1), second)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_response_noise_has_covariance_h_over_n(sampler: str) -> None:
    tasks = GaussianTasks(3, 7, (1.0, 0.5, 2.0), 1, "isotropic", 0.7, torch.float64)
    h, b, w = _draw(tasks, sampler, 40_000, seed=3)
    error = b - (h @ w.unsqueeze(-1)).squeeze(-1)
    _assert_mean(error, torch.zeros(3, dtype=torch.float64))
    # Whitened by its own task's H, the noise must be standard normal whatever H is.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(h), error.unsqueeze(-1), upper=False).squeeze(-1)
    white = white * math.sqrt(tasks.n) / tasks.noise
    _assert_mean(white.unsqueeze(2) * white.unsqueeze(1), torch.eye(3, dtype=torch.float64))
    assert stats.kstest(white[:, 0].numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 12, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_feature_has_a_chi_squared_gram(n: int, dtype: torch.dtype) -> None:
    tasks = GaussianTasks(1, n, (2.0,), dtype=dtype)
    h = tasks.quadratics(20_000, _seeded(n)).h.flatten().double()
    assert stats.kstest((n * h / 4).numpy(), "chi2", args=(n,)).pvalue > 1e-4


def test_large_contexts_neither_overflow_nor_underflow() -> None:
    h = GaussianTasks(2, 3000, (1.0, 1.0)).quadratics(500, _seeded()).h
    assert h.isfinite().all()
    assert (h - torch.eye(2)).abs().max() < 0.2


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compressed_tokens_carry_exactly_the_statistics(noise: float, dtype: torch.dtype) -> None:
    tasks = GaussianTasks(4, 9, (1.0, 0.5, 2.0, 0.25), 5, "inverse", noise, dtype)
    quadratics = tasks.quadratics(300, _seeded(8))
    compressed = tasks.compressed(300, _seeded(8))
    h, b = _statistics(compressed)
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(compressed.weights, quadratics.weights, rtol=0, atol=0)
    torch.testing.assert_close(h, quadratics.h, rtol=tolerance, atol=tolerance * 10)
    torch.testing.assert_close(b, quadratics.b, rtol=tolerance, atol=tolerance * 10)
    torch.testing.assert_close(h, h.mT, rtol=0, atol=tolerance)


def test_compressed_queries_give_the_expected_squared_error() -> None:
    tasks = GaussianTasks(4, 9, (1.0, 0.5, 2.0, 0.25), 5, "inverse", 0.3, torch.float64)
    batch = tasks.compressed(50, _seeded())
    guess = torch.randn(50, 4, generator=_seeded(1), dtype=torch.float64)
    queries = batch.z[:, batch.context :]
    errors = (queries[..., :-1] @ guess.unsqueeze(-1)).squeeze(-1) - batch.target
    difference = guess - batch.weights
    expected = torch.einsum("bi,ij,bj->b", difference, tasks.covariance, difference)
    torch.testing.assert_close(batch.query_scale * errors.square().mean(1), expected)
    assert torch.equal(queries[..., -1], torch.zeros(50, 4, dtype=torch.float64))


def test_compressed_loss_has_the_same_mean_and_less_variance() -> None:
    tasks = GaussianTasks.nonisotropic(dtype=torch.float64)

    def losses(batch: TaskBatch) -> Tensor:
        """Squared error after one gradient step with step size 1/2."""
        w = _statistics(batch)[1].unsqueeze(-1) / 2
        predictions = (batch.z[:, batch.context :, :-1] @ w).squeeze(-1)
        return batch.query_scale * (predictions - batch.target).square().mean(1)

    random, integrated = losses(tasks.tokens(50_000, _seeded(1))), losses(tasks.compressed(50_000, _seeded(2)))
    error = (random.var() / 50_000 + integrated.var() / 50_000).sqrt()
    assert (random.mean() - integrated.mean()).abs() < LIMIT * error
    assert integrated.var() < random.var() / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeds_reproduce(sampler: str, dtype: torch.dtype) -> None:
    tasks = GaussianTasks(3, 6, (1.0, 0.5, 2.0), 1, "inverse", 0.1, dtype)
    first, again, other = (_draw(tasks, sampler, 20, seed) for seed in (5, 5, 6))
    for left, right, different in zip(first, again, other, strict=True):
        assert left.dtype == dtype
        assert torch.equal(left, right)
        assert not torch.equal(left, different)


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    tasks = GaussianTasks.nonisotropic(rotation_seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = tasks.tokens(4, _seeded()).z
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(GaussianTasks.nonisotropic(rotation_seed=3).tokens(4, _seeded()).z, first)


def test_token_shapes_and_noise_free_targets() -> None:
    tasks = GaussianTasks(3, 6, (1.0, 0.5, 2.0), 1, "inverse", 0.5, torch.float64)
    batch = tasks.tokens(7, _seeded(), queries=4)
    assert batch.z.shape == (7, 10, 4)
    assert batch.target.shape == (7, 4)
    assert batch.weights.shape == (7, 3)
    assert (batch.context, batch.query_scale) == (6, 1.0)
    responses = (batch.z[..., :-1] @ batch.weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(batch.target, responses[:, 6:])
    assert torch.equal(batch.z[:, 6:, -1], torch.zeros(7, 4, dtype=torch.float64))
    assert (batch.z[:, :6, -1] - responses[:, :6]).abs().min() > 0


def test_compressed_shapes() -> None:
    batch = GaussianTasks.nonisotropic().compressed(7, _seeded())
    assert batch.z.shape == (7, 10, 6)
    assert batch.target.shape == (7, 5)
    assert (batch.context, batch.query_scale) == (5, 5.0)
    assert batch.z.is_contiguous()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_empty_batches(sampler: str) -> None:
    h, b, w = _draw(GaussianTasks.isotropic(3, 4), sampler, 0, seed=0)
    assert (h.shape, b.shape, w.shape) == ((0, 3, 3), (0, 3), (0, 3))


@pytest.mark.parametrize("tasks", [GaussianTasks.isotropic(3, 4), StandardisedTasks(3, 4)])
@pytest.mark.parametrize(("size", "queries"), [(2, 0), (0, 2), (0, 0)])
def test_no_tasks_and_no_queries(tasks: GaussianTasks | StandardisedTasks, size: int, queries: int) -> None:
    batch = tasks.tokens(size, _seeded(), queries=queries)
    assert batch.z.shape == (size, 4 + queries, 4)
    assert batch.target.shape == (size, queries)
    assert batch.weights.shape == (size, 3)


def test_tokens_need_no_more_examples_than_one() -> None:
    assert GaussianTasks.isotropic(5, 1).tokens(2, _seeded()).z.shape == (2, 2, 6)


def test_presets() -> None:
    tasks = GaussianTasks.nonisotropic(n=30, rotation_seed=9)
    assert (tasks.d, tasks.n, tasks.weights, tasks.noise) == (5, 30, "inverse", 0.0)
    spectrum = torch.linalg.eigvalsh(tasks.covariance)
    expected = torch.tensor([1 / 16, 1 / 4, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(spectrum, expected)
    torch.testing.assert_close(tasks.factor @ tasks.factor.T, tasks.covariance)
    assert not torch.equal(tasks.rotation, GaussianTasks.nonisotropic(rotation_seed=10).rotation)
    assert torch.equal(GaussianTasks.isotropic(4, 6).covariance, torch.eye(4, dtype=torch.float64))


def test_rotations_are_haar_distributed() -> None:
    """Under Haar measure the entries have mean 0 and variance 1/d, and U U^T = I."""
    rotations = torch.stack([GaussianTasks(3, 1, (1.0, 1.0, 1.0), seed).rotation for seed in range(2000)])
    identity = torch.eye(3, dtype=torch.float64).expand(2000, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    _assert_mean(rotations, torch.zeros(3, 3, dtype=torch.float64))
    _assert_mean(rotations.square(), torch.full((3, 3), 1 / 3, dtype=torch.float64))


def test_a_task_distribution_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        GaussianTasks.isotropic().n = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": 0, "scales": ()}, "d must be at least 1, got 0"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"scales": (1.0,)}, "scales must be d=2 positive finite numbers"),
        ({"scales": (1.0, 0.0)}, "scales must be d=2 positive finite numbers"),
        ({"scales": (1.0, math.inf)}, "scales must be d=2 positive finite numbers"),
        ({"scales": (1.0, math.nan)}, "scales must be d=2 positive finite numbers"),
        ({"weights": "sparse"}, "weights must be 'inverse' or 'isotropic', got 'sparse'"),
        ({"noise": -1.0}, "noise must be finite and >= 0, got -1.0"),
        ({"noise": math.nan}, "noise must be finite and >= 0, got nan"),
    ],
)
def test_values_outside_their_range_are_errors(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"d": 2, "n": 4, "scales": (1.0, 2.0)} | changes
    with pytest.raises(ValueError, match=message):
        GaussianTasks(**arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64])
def test_other_dtypes_are_errors(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64"):
        GaussianTasks.isotropic(dtype=dtype)
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64"):
        StandardisedTasks(2, 4, dtype=dtype)


@pytest.mark.parametrize("sampler", ["quadratics", "compressed"])
def test_fewer_examples_than_features_have_no_bartlett_decomposition(sampler: str) -> None:
    with pytest.raises(ValueError, match="n must be at least d=5 to sample statistics directly, got n=4"):
        getattr(GaussianTasks.isotropic(5, 4), sampler)(2, _seeded())


def test_negative_sizes_are_errors() -> None:
    tasks, standardised = GaussianTasks.isotropic(), StandardisedTasks(2, 4)
    for sample in (tasks.tokens, tasks.quadratics, tasks.compressed, standardised.tokens):
        with pytest.raises(ValueError, match="batch must be at least 0, got -1"):
            sample(-1, _seeded())
    for draw in (tasks.tokens, standardised.tokens):
        with pytest.raises(ValueError, match="queries must be at least 0, got -2"):
            draw(3, _seeded(), queries=-2)


def test_standardised_contexts_have_unit_columns() -> None:
    batch = StandardisedTasks(4, 12, dtype=torch.float64).tokens(50, _seeded(), queries=3)
    assert batch.z.shape == (50, 15, 5)
    assert (batch.context, batch.query_scale) == (12, 1.0)
    known = batch.z[:, :12]
    torch.testing.assert_close(known.mean(1), torch.zeros(50, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(known.square().mean(1), torch.ones(50, 5, dtype=torch.float64))
    assert torch.equal(batch.z[:, 12:, -1], torch.zeros(50, 3, dtype=torch.float64))


def test_standardised_weights_are_in_scaled_units() -> None:
    batch = StandardisedTasks(4, 12, explained=(1.0, 1.0), dtype=torch.float64).tokens(50, _seeded(), queries=3)
    responses = (batch.z[..., :-1] @ batch.weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(responses[:, :12], batch.z[:, :12, -1])
    torch.testing.assert_close(responses[:, 12:], batch.target)


def test_standardised_correlations_range_from_weak_to_strong() -> None:
    def conditions(tasks: StandardisedTasks) -> Tensor:
        h, _ = _statistics(tasks.tokens(500, _seeded(2)))
        eigenvalues = torch.linalg.eigvalsh(h)
        condition: Tensor = eigenvalues[:, -1] / eigenvalues[:, 0]
        return condition

    independent = conditions(StandardisedTasks(4, 400, own_share=(1.0, 1.0), dtype=torch.float64))
    mixed = conditions(StandardisedTasks(4, 400, dtype=torch.float64))
    assert independent.max() < 2.5
    assert mixed.quantile(0.02) < 2
    assert mixed.quantile(0.98) > 1000
    assert mixed.max() < 5000


def test_standardised_noise_leaves_the_stated_share_explained() -> None:
    batch = StandardisedTasks(3, 2000, explained=(0.3, 0.8), dtype=torch.float64).tokens(400, _seeded())
    known = batch.z[:, :2000]
    residual = known[..., -1:] - known[..., :-1] @ batch.weights.unsqueeze(-1)
    share = 1 - residual.square().mean((1, 2))
    # With 2000 examples a share is measured to about 0.02, and 400 tasks fill the range.
    assert 0.2 < share.min() < 0.4
    assert 0.7 < share.max() < 0.9
    assert (share.mean() - 0.55).abs() < 0.05


def test_standardised_seeds_reproduce() -> None:
    tasks = StandardisedTasks(3, 6)
    first, again, other = (tasks.tokens(5, _seeded(seed), queries=2) for seed in (1, 1, 2))
    assert first.z.dtype == torch.float32
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.z, other.z)


@pytest.mark.parametrize("name", ["own_share", "explained"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (math.nan, 1.0)])
def test_standardised_ranges_are_checked(name: str, span: tuple[float, float]) -> None:
    ranges: dict[str, Any] = {name: span}
    with pytest.raises(ValueError, match=rf"{name} must be a range within \(0, 1\]"):
        StandardisedTasks(2, 4, **ranges)


def test_one_example_cannot_be_standardised() -> None:
    with pytest.raises(ValueError, match="n must be at least 2"):
        StandardisedTasks(2, 1)


@pytest.mark.parametrize(("rows", "d", "batch"), [(1, 1, 1), (3, 3, 7), (2, 5, 4), (6, 2, 0)])
def test_product_equals_the_matrix_products_task_by_task(rows: int, d: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(rows, d, batch, generator=generator, dtype=torch.float64)
    vectors = torch.randn(d, batch, generator=generator, dtype=torch.float64)
    expected = torch.einsum("rdb,db->rb", matrices, vectors)
    torch.testing.assert_close(product(matrices, vectors), expected, rtol=1e-13, atol=1e-13)


def test_product_leaves_its_arguments_alone() -> None:
    matrices, vectors = torch.ones(2, 3, 4), torch.ones(3, 4)
    product(matrices, vectors)
    assert torch.equal(matrices, torch.ones(2, 3, 4))
    assert torch.equal(vectors, torch.ones(3, 4))


@pytest.mark.parametrize("freedom", [2, 5, 300, 100_000])
def test_moments_are_those_of_chi_squared(freedom: int) -> None:
    count = 200_000
    square = chi_by_rejection(freedom, count, torch.Generator().manual_seed(0), torch.float64).square()
    error = (2 * freedom / count) ** 0.5
    assert abs(float(square.mean()) - freedom) < 4 * error
    assert float(square.var()) == pytest.approx(2 * freedom, rel=0.05)
    skewness = float(((square - square.mean()) / square.std()).pow(3).mean())
    assert skewness == pytest.approx((8 / freedom) ** 0.5, abs=0.06)


def test_long_contexts_have_the_right_gram_matrices() -> None:
    tasks = GaussianTasks.isotropic(3, 5000, dtype=torch.float64)
    h = tasks.quadratics(20_000, torch.Generator().manual_seed(1)).h
    assert float((h.mean(0) - torch.eye(3, dtype=torch.float64)).abs().max()) < 1e-3
    assert float(h[:, 0, 0].var()) == pytest.approx(2 / 5000, rel=0.05)


def test_draws_follow_the_generator() -> None:
    one, other = (chi_by_rejection(400, 100, torch.Generator().manual_seed(5), torch.float32) for _ in range(2))
    assert torch.equal(one, other)
    assert one.dtype == torch.float32
