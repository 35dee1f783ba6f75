"""What the native trainer draws: the words, uniforms, normals and tasks of the definition, on every instruction set."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from memformer_kernels import FixedTasks, GaussianStatistics, GaussianTokens, availability, library
from memformer_kernels.training import draws
from memformer_kernels.training.philox import normals, task_words, uniforms
from memformer_kernels.training.samplers import GaussianSampler
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D

pytestmark = pytest.mark.skipif(not availability.available("cpu"), reason="the native library was not built")
SEED, STREAM, DRAW, TASKS = 0x123456789ABCDEF, 0xFFFFFFFE, 70000, 37
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(params=library.status("cpu").instruction_sets, autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    library.load("cpu")
    widest = torch.ops.memformer_native.instruction_set()
    try:
        torch.ops.memformer_native.use_instruction_set(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield
    torch.ops.memformer_native.use_instruction_set(widest)


def _numbers(
    kind: str, dtype: torch.dtype, tasks: int = TASKS, blocks: int = 3, seed: int = SEED, draw: int = DRAW
) -> Tensor:
    made = torch.empty(tasks, 4 * blocks, dtype=torch.float64)
    stream = STREAM if seed else 0
    torch.ops.memformer_native.random_numbers(kind, seed, stream, draw, dtype == torch.float64, made)
    return made


def _cells(sampler: GaussianSampler | FixedTasks, dtype: torch.dtype, tasks: int, count: int) -> Tensor:
    made = torch.empty(tasks, count, dtype=dtype)
    gaussian = isinstance(sampler, GaussianSampler)
    factors = (sampler.weights, sampler.factor) if isinstance(sampler, GaussianSampler) else (None, None)
    torch.ops.memformer_native.sample_tasks(
        torch.tensor([SEED]),
        torch.tensor([STREAM]),
        "statistics" if isinstance(sampler, GaussianStatistics) else "tokens" if gaussian else "fixed",
        sampler.d,
        tasks,
        sampler.tokens,
        sampler.n if isinstance(sampler, GaussianSampler) else sampler.context,
        0 if isinstance(sampler, GaussianSampler) and sampler.query == "integrated" else 2,
        False,
        *(sampler.noise_range if isinstance(sampler, GaussianSampler) else (0.0, 0.0)),
        *(None if factor is None else factor.to(dtype)[None].contiguous() for factor in factors),
        *((None, None) if isinstance(sampler, GaussianSampler) else (sampler.z, sampler.target)),
        None,
        DRAW,
        made,
    )
    return made


@DTYPES
def test_words(dtype: torch.dtype) -> None:
    """The published answer for a counter and a key of zeros, and the definition's words of all tasks."""
    zero = _numbers("words", dtype, 1, 1, seed=0, draw=0)[0]
    assert [int(word) for word in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    expected = task_words(SEED, STREAM, DRAW, range(TASKS), 0, 3)
    assert torch.equal(_numbers("words", dtype), expected.double())


@DTYPES
@pytest.mark.parametrize("draw", [2**32 - 1, 2**32, 2**32 + DRAW, 2**63 - 1])
def test_words_past_32_bits_of_draws(dtype: torch.dtype, draw: int) -> None:
    expected = task_words(SEED, STREAM, draw, range(TASKS), 0, 3)
    assert torch.equal(_numbers("words", dtype, draw=draw), expected.double())


@DTYPES
def test_uniforms_and_normals(dtype: torch.dtype) -> None:
    """Uniforms are equal; a normal errs by a few units in the last place of its radius, as float64 itself does."""
    words = task_words(SEED, STREAM, DRAW, range(2000), 0, 3)
    drawn = uniforms(words, dtype)
    assert torch.equal(_numbers("uniforms", dtype, 2000), drawn.double())
    made = _numbers("normals", dtype, 2000)
    exact = normals(words, torch.float64) if dtype == torch.float64 else _normals_of(drawn.double())
    radius = exact.reshape(-1, 2).norm(dim=1, keepdim=True)
    error = (made.reshape(-1, 2) - exact.reshape(-1, 2)).abs() / radius
    assert float(error.max()) < (4 if dtype == torch.float64 else 2) * torch.finfo(dtype).eps


def _normals_of(drawn: Tensor) -> Tensor:
    pairs = drawn.reshape(-1, 2)
    radius, angle = (-2 * pairs[:, 0].log()).sqrt(), 2 * torch.pi * pairs[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).reshape(drawn.shape)


def _lower(matrix: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(*matrix.shape[-2:])
    return matrix[:, rows, columns]


def _expected(sampler: GaussianSampler | FixedTasks, dtype: torch.dtype) -> Tensor:
    drawn = draws.draw_tasks(sampler, draws.Stream(SEED, STREAM, dtype), DRAW, range(TASKS))
    labelled = drawn.z[:, : drawn.context]
    gram = labelled.transpose(1, 2) @ labelled / drawn.context
    asked = drawn.z[:, drawn.z.shape[1] - drawn.target.shape[1] :]
    if isinstance(sampler, GaussianStatistics):
        gram[:, -1, -1] = 0.0
    if isinstance(sampler, GaussianSampler) and sampler.query == "integrated":
        factor = torch.eye(sampler.d, dtype=dtype) if sampler.factor is None else sampler.factor.to(dtype)
        return torch.cat([_lower(gram), drawn.target @ factor.inverse()], 1)
    return torch.cat([_lower(gram), torch.cat([asked, drawn.target[..., None]], 2).flatten(1)], 1)


SAMPLERS = [
    pytest.param(GaussianStatistics(D, 8, TASKS, queries=2), id="statistics"),
    pytest.param(GaussianStatistics(5, 21, TASKS, queries=2, noise=0.3), id="noise"),
    pytest.param(GaussianStatistics(5, 21, TASKS, queries=2, noise=(0.1, 0.9)), id="noise of each task"),
    pytest.param(GaussianStatistics(16, 16, TASKS, queries=2), id="widest"),
    pytest.param(GaussianStatistics(D, 70, TASKS, query="integrated", factor=FACTOR, weights=WEIGHTS), id="integrated"),
    pytest.param(GaussianTokens(D, 8, TASKS, queries=2), id="tokens"),
    pytest.param(
        GaussianTokens(D, 70, TASKS, queries=2, noise=0.3, factor=FACTOR, weights=WEIGHTS), id="tokens of many blocks"
    ),
    pytest.param(GaussianTokens(5, 33, TASKS, query="integrated", noise=0.1), id="tokens, integrated"),
    pytest.param(GaussianTokens(5, 33, TASKS, queries=2, noise=(0.0, 2.0)), id="tokens, noise of each task"),
]


@DTYPES
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tasks(sampler: GaussianSampler, dtype: torch.dtype) -> None:
    """A vector that is not full is among them: 37 tasks. Float32 is judged on the same float32 uniforms."""
    expected = _expected(sampler, dtype)
    made = _cells(sampler, dtype, TASKS, expected.shape[1])
    error = (made - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < (2e-14 if dtype == torch.float64 else 2e-5)


@DTYPES
@pytest.mark.parametrize("context", [38, 35, 1])
def test_given_tasks(dtype: torch.dtype, context: int) -> None:
    """Tokens between the context and the two queries are padding, and hold NaN."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(TASKS, 40, 5, generator=generator, dtype=torch.float64).to(dtype)
    z[:, context:38] = torch.nan
    target = torch.randn(TASKS, 2, generator=generator, dtype=torch.float64).to(dtype)
    sampler = FixedTasks(z, target, context)
    expected = _expected(sampler, dtype)
    made = _cells(sampler, dtype, TASKS, expected.shape[1])
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-14 if dtype == torch.float64 else 2e-6)


@DTYPES
def test_statistics_of_a_hundred_million_examples(dtype: torch.dtype) -> None:
    """H = chi^2(n) / n, in 5 errors: longer sums of exponents than float32 counts exactly."""
    n = 10**8
    h = _cells(GaussianStatistics(1, n, 8, query="integrated"), dtype, 8, 4)[:, 0]
    assert float((h - 1).abs().max()) < 5 * (2 / n) ** 0.5


def test_moments_of_statistics() -> None:
    """n H ~ Wishart(I, n): E H = I, var H_ij = (1 + [i = j]) / n, E H H = (n + d + 1) / n I, in 5 errors."""
    tasks, d, n = 60000, 4, 7
    cells = _cells(GaussianStatistics(d, n, tasks, query="integrated"), torch.float64, tasks, 19)
    rows, columns = torch.tril_indices(d, d)
    h = torch.empty(tasks, d, d, dtype=torch.float64)
    h[:, rows, columns] = h[:, columns, rows] = cells[:, : len(rows)]
    w, b = cells[:, -d:], cells[:, 10:14]
    torch.testing.assert_close(b, (h @ w[..., None])[..., 0], rtol=0, atol=1e-13)
    eye = torch.eye(d, dtype=torch.float64)
    for sample, mean in ((h, eye), ((h - eye).square(), (1 + eye) / n), (h @ h, (n + d + 1) / n * eye)):
        error = sample.std(0) / tasks**0.5
        assert float(((sample.mean(0) - mean).abs() / error).max()) < 5
