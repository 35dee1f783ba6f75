"""Samplers draw what they say: token and statistic sampling agree in distribution, and integrated queries are exact.

Every comparison has a fixed seed, and a bound that a right sampler passes with a probability above 0.999 over all its
entries: 5 standard errors for means (Bonferroni over at most 100 entries leaves 6e-5), a level of 10^-5 for each test
of Kolmogorov and Smirnov.
"""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from memformer_kernels import (
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    context_gram,
    memformer_predict,
)
from memformer_kernels.training import draws
from memformer_kernels.training.definition import block_sums
from memformer_kernels.training.draws import Stream, Tasks, draw_tasks, normal_count, order
from memformer_kernels.training.philox import task_words, uniforms
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D, N, model

TASKS = 20_000
STREAM = Stream(5, 0, torch.float64)
OPTIONS = {"noise": 0.3, "factor": FACTOR, "weights": WEIGHTS}


def _draw(kind: type[GaussianTokens] | type[GaussianStatistics], seed: int, **options: object) -> Tasks:
    sampler = kind(D, N, TASKS, **{**OPTIONS, **options})  # type: ignore[arg-type]
    return draw_tasks(sampler, Stream(seed, 0, torch.float64), 0, range(TASKS))


def _moments(tasks: Tasks) -> dict[str, Tensor]:
    """H and b of every task, and their products, as columns."""
    gram = context_gram(tasks.z, tasks.context) / tasks.context
    rows, columns = torch.tril_indices(D, D)
    h, b = gram[:, rows, columns], gram[:, :D, D]
    first = torch.cat([h, b], 1)
    rows, columns = torch.tril_indices(first.shape[1], first.shape[1])
    return {"first": first, "second": first[:, rows] * first[:, columns]}


def _agree(left: Tensor, right: Tensor) -> None:
    """Means over tasks (rows) within 5 standard errors."""
    spread = (left.var(0) / len(left) + right.var(0) / len(right)).sqrt()
    assert bool(((left.mean(0) - right.mean(0)).abs() <= 5 * spread + 1e-15).all())


@pytest.mark.parametrize("n", [N, N + 1, D])
def test_statistics_have_the_moments_of_tokens(n: int) -> None:
    tokens = draw_tasks(GaussianTokens(D, n, TASKS, **OPTIONS), STREAM, 0, range(TASKS))  # type: ignore[arg-type]
    statistics = draw_tasks(GaussianStatistics(D, n, TASKS, **OPTIONS), STREAM, 1, range(TASKS))  # type: ignore[arg-type]
    assert tokens.z.shape == (TASKS, n + 1, D + 1)
    assert statistics.z.shape == (TASKS, D + 1, D + 1)
    left, right = _moments(tokens), _moments(statistics)
    for name in left:
        _agree(left[name], right[name])
    _agree(tokens.target.square(), statistics.target.square())


def test_moments_are_those_of_the_model() -> None:
    """E H = Sigma, E[b w*^T] = Sigma W W^T, and the variance of a target is tr(Sigma W W^T)."""
    sigma, prior = FACTOR @ FACTOR.T, WEIGHTS @ WEIGHTS.T
    for kind in (GaussianTokens, GaussianStatistics):
        tasks = _draw(kind, 9)
        gram = context_gram(tasks.z, tasks.context) / tasks.context
        _agree(gram[:, :D, :D].flatten(1), sigma.flatten().expand(2, -1))
        second = gram[:, :D, D].square()
        # Given X and w*, b is normal with mean H w* and covariance noise^2 H / n; E[H P H] = Sigma P Sigma + (...)/n.
        expected = (
            torch.einsum("ij,jk,ki->i", sigma, prior, sigma)
            + (torch.einsum("ij,jk,ki->i", sigma, prior, sigma) + sigma.diagonal() * torch.trace(sigma @ prior)) / N
            + 0.3**2 * sigma.diagonal() / N
        )
        _agree(second, expected.expand(2, -1))
        _agree(tasks.target.square(), torch.trace(sigma @ prior).expand(2, 1))


def test_marginals_agree() -> None:
    """Kolmogorov and Smirnov on entries of H and b, on the determinant of H, and on predictions."""
    parameters = model()
    marginals = []
    for kind, seed in ((GaussianTokens, 1), (GaussianStatistics, 2)):
        tasks = _draw(kind, seed)
        gram = context_gram(tasks.z, tasks.context) / tasks.context
        predictions = memformer_predict(tasks.z, **parameters, context=tasks.context)
        marginals.append(
            [gram[:, 0, 0], gram[:, 2, 1], gram[:, 2, 2], gram[:, 1, 3], gram[:, :D, :D].det(), predictions[:, 0]]
        )
    for left, right in zip(*marginals, strict=True):
        assert stats.ks_2samp(left.numpy(), right.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("kind", [GaussianTokens, GaussianStatistics])
def test_noise_of_each_task_is_uniform(kind: type[GaussianTokens] | type[GaussianStatistics]) -> None:
    """One level for all examples of a task, uniform over tasks; what else is drawn is that of any other noise."""
    one, own = _draw(kind, 3, noise=1.0), _draw(kind, 3, noise=(0.5, 2.0))
    plain = dataclasses.replace(kind(D, N, TASKS, **OPTIONS), noise=(0.3, 0.3))  # type: ignore[arg-type]
    assert torch.equal(draw_tasks(plain, Stream(3, 0, torch.float64), 0, range(TASKS)).z, _draw(kind, 3).z)
    assert torch.equal(one.target, own.target)
    assert torch.equal(one.z[..., :D], own.z[..., :D])
    # Labels are y + sigma e, and those of noise 1 and 2 tell e.
    e = _draw(kind, 3, noise=2.0).z[:, : one.context, D] - one.z[:, : one.context, D]
    levels = (own.z[:, : one.context, D] - one.z[:, : one.context, D]) / e + 1
    torch.testing.assert_close(levels, levels[:, :1].expand_as(levels), rtol=1e-6, atol=1e-6)
    assert stats.kstest(levels[:, 0].numpy(), stats.uniform(0.5, 1.5).cdf).pvalue > 1e-5
    assert abs(float(torch.corrcoef(torch.stack([levels[:, 0], one.target[:, 0]]))[0, 1])) < 5 / math.sqrt(TASKS)


def test_noise_of_each_task_is_drawn_alike_in_a_block_of_its_own() -> None:
    """Whatever part of a batch is drawn, from the first word of a task's last block, in every prefix too."""
    sampler = GaussianTokens(D, 2, 40, queries=3, query="prefixes", noise=(0.0, 1.0))
    whole, part = (draw_tasks(sampler, STREAM, 7, range(start, 40)) for start in (0, 31))
    assert torch.equal(whole.z[31:], part.z)
    words = task_words(5, 0, 7, range(40), 2**31 - 1, 1)[:, :1]
    assert torch.equal(draws.draw_noise(sampler, STREAM, 7, range(40)), uniforms(words, torch.float64))  # type: ignore[arg-type]
    assert draws.draw_noise(dataclasses.replace(sampler, noise=0.25), STREAM, 7, range(40)) == 0.25


@pytest.mark.parametrize("n", [3, 4, 20])
def test_the_root_is_bartletts(n: int) -> None:
    """K_ii is chi(n - i), and K is standard normal below its diagonal; read from H by its Cholesky factor."""
    tasks = draw_tasks(GaussianStatistics(D, n, TASKS), STREAM, 0, range(TASKS))
    root = torch.linalg.cholesky(context_gram(tasks.z, D)[:, :D, :D] / D * n)
    for i in range(D):
        assert stats.kstest(root[:, i, i].numpy(), stats.chi(n - i).cdf).pvalue > 1e-5
        for j in range(i):
            assert stats.kstest(root[:, i, j].numpy(), "norm").pvalue > 1e-5
    flat = torch.stack([root[:, i, j] for i in range(D) for j in range(i + 1)])
    correlations = torch.corrcoef(flat) - torch.eye(len(flat), dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(TASKS)


def test_uniforms_exist_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the context; statistics are those of all uniforms at once."""
    held: list[int] = []
    words = Stream.words

    def counted(stream: Stream, draw: int, tasks: range, first: int, count: int) -> Tensor:
        held.append(len(tasks) * count)
        return words(stream, draw, tasks, first, count)

    monkeypatch.setattr(Stream, "words", counted)
    for n in (2, 7, 400, 3001):
        for dtype in (torch.float32, torch.float64):
            stream, sampler = Stream(5, 0, dtype), GaussianStatistics(2, n, 3)
            monkeypatch.setattr(draws, "_UNIFORMS", 2**22)
            whole = draw_tasks(sampler, stream, 0, range(3))
            held.clear()
            monkeypatch.setattr(draws, "_UNIFORMS", 100)
            torch.testing.assert_close(draw_tasks(sampler, stream, 0, range(3)).z, whole.z)
            assert max(held[1:], default=0) <= 100


def test_a_context_of_millions() -> None:
    n = 2**22
    z = draw_tasks(GaussianStatistics(1, n, 8), Stream(5, 0, torch.float32), 0, range(8)).z
    assert float((z[:, 0, 0].square() - 1).abs().max()) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_predictions_and_gradients_agree(structure: str) -> None:
    """Their means over tasks, from 40 blocks a sampler; gradients of every parameter."""
    state = TrainState.of([model(2, structure=structure)], seeds=3)
    sums = []
    for kind in (GaussianTokens, GaussianStatistics):
        sampler = kind(D, N, 40 * 1024, **OPTIONS)  # type: ignore[arg-type]
        sums.append(block_sums(state, sampler, range(40), [True])[0] / 1024)
        state.step += 1
    _agree(*sums)
    assert float(sums[0].mean(0).abs().max()) > 1e-2


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("kind", [GaussianTokens, GaussianStatistics])
def test_an_integrated_query_is_the_expectation_over_queries(
    kind: type[GaussianTokens] | type[GaussianStatistics], structure: str
) -> None:
    """Against Monte Carlo over 20,000 queries of each of 20 tasks, task by task within 5 standard errors."""
    queries, count = 20_000, 20
    parameters = model(structure=structure)
    sampler = kind(D, N, count, query="integrated", **OPTIONS)  # type: ignore[arg-type]
    tasks = draw_tasks(sampler, STREAM, 0, range(count))
    exact = (memformer_predict(tasks.z, **parameters, context=tasks.context) - tasks.target).square().sum(1)
    # The columns of C are responses C^T w*, so w* is theirs.
    weights = torch.linalg.solve(FACTOR.T, tasks.target.T).T
    generator = torch.Generator().manual_seed(0)
    asked = torch.randn(count, queries, D, generator=generator, dtype=torch.float64) @ FACTOR.T
    z = torch.cat([tasks.z[:, : tasks.context], torch.nn.functional.pad(asked, (0, 1))], 1)
    errors = memformer_predict(z, **parameters, context=tasks.context) - (asked @ weights[:, :, None])[..., 0]
    squares = errors.square()
    spread = squares.std(1) / math.sqrt(queries)
    assert bool(((squares.mean(1) - exact).abs() < 5 * spread).all())


def test_the_loss_with_integrated_queries_is_lower_in_variance() -> None:
    state = TrainState.of([model(2)], seeds=3)
    losses = {}
    for query in ("sampled", "integrated"):
        sampler = GaussianStatistics(D, N, 20 * 1024, query=query)
        losses[query] = block_sums(state, sampler, range(20), [True])[0, :, -1:] / 1024
        state.step += 1
    _agree(losses["sampled"], losses["integrated"])
    assert float(losses["integrated"].var()) < float(losses["sampled"].var())


@pytest.mark.parametrize("kind", [GaussianTokens, GaussianStatistics])
def test_a_task_is_a_function_of_its_counter(kind: type[GaussianTokens] | type[GaussianStatistics]) -> None:
    sampler = kind(D, N, 32, queries=2, **OPTIONS)  # type: ignore[arg-type]
    whole = draw_tasks(sampler, STREAM, 3, range(32))
    part = draw_tasks(sampler, STREAM, 3, range(7, 19))
    torch.testing.assert_close(part.z, whole.z[7:19], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(part.target, whole.target[7:19], rtol=1e-14, atol=1e-14)
    single = draw_tasks(sampler, Stream(5, 0, torch.float32), 3, range(32))
    torch.testing.assert_close(single.z.double(), whole.z, rtol=0, atol=1e-5)
    for other in (Stream(6, 0, torch.float64), Stream(5, 1, torch.float64)):
        assert float((draw_tasks(sampler, other, 3, range(32)).z - whole.z).abs().max()) > 0.1


def test_prefixes_are_queries_that_join_the_context() -> None:
    sampler = GaussianTokens(D, 2, 50, queries=4, query="prefixes", **OPTIONS)  # type: ignore[arg-type]
    tasks = draw_tasks(sampler, STREAM, 0, range(50))
    plain = draw_tasks(dataclasses.replace(sampler, query="sampled"), STREAM, 0, range(50))
    assert torch.equal(tasks.z[:, :, :D], plain.z[:, :, :D])
    assert torch.equal(tasks.z[:, :2], plain.z[:, :2])
    assert torch.equal(tasks.target, plain.target)
    noise = (tasks.z[:, 2:, D] - tasks.target) / 0.3
    assert 0.7 < float(noise.square().mean()) < 1.3
    held = TrainState.of([model(2)], seeds=5)
    arguments = held.model(0)
    squares = torch.zeros((), dtype=torch.float64)
    for i in range(2, 6):
        question = tasks.z[:, i : i + 1].clone()
        question[..., D] = 0
        made = memformer_predict(torch.cat([tasks.z[:, :i], question], 1), **arguments, context=i)
        squares += (made[:, 0] - tasks.target[:, i - 2]).square().sum()
    torch.testing.assert_close(block_sums(held, sampler, range(1), [True])[0, 0, -1], squares)


def test_the_order_of_normals() -> None:
    """A token task written out from its words."""
    sampler = GaussianTokens(2, 3, 4, noise=0.5)
    words = STREAM.normals(0, range(4), normal_count(sampler))
    assert words.shape == (4, 2 + 4 * 2 + 3)
    tasks = draw_tasks(sampler, STREAM, 0, range(4))
    x = words[:, 2:10].reshape(4, 4, 2)
    torch.testing.assert_close(tasks.z[..., :2], x)
    y = (x * words[:, None, :2]).sum(-1)
    torch.testing.assert_close(tasks.target[:, 0], y[:, 3])
    torch.testing.assert_close(tasks.z[:, :3, 2], y[:, :3] + 0.5 * words[:, 10:])
    assert bool((tasks.z[:, 3, 2] == 0).all())


def test_epochs_take_every_task_once() -> None:
    z, target = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(10, 1)
    sampler = FixedTasks(z, target, 3, batch=3)
    epochs = [torch.cat([order(sampler, STREAM, 3 * epoch + i) for i in range(3)]) for epoch in range(2)]  # type: ignore[misc]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
        assert set(epoch.tolist()) < set(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != list(range(9))
    plain = FixedTasks(z, target, 3, batch=3, shuffle=False)
    assert [order(plain, STREAM, i).tolist() for i in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]  # type: ignore[union-attr]
    assert torch.equal(draw_tasks(plain, STREAM, 1, range(1, 3)).z, z[4:6])
    assert torch.equal(draw_tasks(FixedTasks(z, target, 3), STREAM, 7, range(10)).z, z)


def test_shuffled_positions_are_uniform() -> None:
    """Where each of 10 tasks lands over 400 epochs: chi-squared at a level of 10^-5."""
    sampler = FixedTasks(torch.zeros(10, 4, 3), torch.zeros(10, 1), 3, batch=10)
    counts = torch.zeros(10, 10)
    for epoch in range(400):
        counts[range(10), order(sampler, STREAM, epoch)] += 1
    for row in counts:
        assert stats.chisquare(row.numpy()).pvalue > 1e-5
