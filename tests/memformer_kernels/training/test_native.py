"""The native trainer against its definition in plain PyTorch, and against itself on other threads and in company."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    availability,
    train_steps,
)
from memformer_kernels.training import definition, native
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D, N, alone, model, state, tensors

pytestmark = pytest.mark.skipif(not availability.available("cpu"), reason="the native library was not built")
STATISTICS = GaussianStatistics(D, N, 50, query="integrated")


def _given(dtype: torch.dtype = torch.float64, padding: int = 0) -> FixedTasks:
    """60 tasks with one query behind so many tokens of padding, which hold NaN."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, N + 1, D, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(60, D, 1, generator=generator, dtype=torch.float64)
    z = torch.cat([x, y], -1)
    z[:, N:, D] = 0
    z = torch.cat([z[:, :N], torch.full((60, padding, D + 1), math.nan), z[:, N:]], 1)
    return FixedTasks(z.to(dtype), y[:, N:, 0].to(dtype), N)


def _error(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).norm() / expected.norm())


def _dense(models: int) -> TrainState:
    generator = torch.Generator().manual_seed(5)
    side = D + 1
    corner = torch.zeros(side, side, dtype=torch.float64)
    corner[-1, -1] = 1.0

    def one() -> dict[str, Tensor]:
        small = 0.05 * torch.randn(2, 3, 2, side, side, generator=generator, dtype=torch.float64)
        return {"q": small[0] - 0.1, "p": small[1] + 0.5 * corner, "gamma": torch.ones(3, 2, 1, 1, dtype=torch.float64)}

    return TrainState.of([one() for _ in range(models)], seeds=3)


CASES = {
    "lfom on statistics": (lambda: state(2), STATISTICS, Adam(0.01, clip=1.0)),
    "noise, queries, factors": (
        lambda: state(2, rule="cgd"),
        GaussianStatistics(D, N, 50, queries=2, noise=0.2, factor=FACTOR, weights=WEIGHTS, resample_every=3),
        AdamW([0.01, 0.003], weight_decay=0.1, clip=0.5, clip_by="model", schedule=Schedule("cosine", steps=200)),
    ),
    "block on tokens": (
        lambda: state(1, structure="block"),
        GaussianTokens(D, N, 50, noise=0.1),
        SGD(0.01, momentum=0.9, nesterov=True, weight_decay=1e-3, clip=0.1),
    ),
    "block on statistics": (
        lambda: state(2, structure="block"),
        GaussianStatistics(D, N, 50, query="integrated", factor=FACTOR),
        Adam(0.003, clip=1.0, weight_decay=0.01),
    ),
    "dense, heads": (lambda: _dense(2), GaussianTokens(D, N, 40), SGD(0.003, clip=0.2)),
    "full batch": (state, _given(), SGD(0.05, clip=1.0)),
    "padded full batch": (state, _given(padding=3), SGD(0.05, clip=1.0)),
    "padded epochs": (lambda: _dense(1), dataclasses.replace(_given(padding=2), batch=20), SGD(0.003, clip=0.2)),
    "epochs": (
        lambda: state(2),
        dataclasses.replace(_given(), batch=20),
        Adam(0.01, schedule=Schedule("step", decay_every=50)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_200_steps_of_the_definition(name: str) -> None:
    make, sampler, optimizer = CASES[name]
    made, expected = make(), make()
    trace = train_steps(made, sampler, 200, optimizer=optimizer, backend="cpu")
    defined = train_steps(expected, sampler, 200, optimizer=optimizer, backend="torch")
    assert torch.isfinite(defined).all()
    assert float(((trace - defined).abs() / defined.abs()).max()) < 1e-8
    for left, right in zip(tensors(made), tensors(expected), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)
    assert made.step == 200
    assert not torch.equal(made.parameters["q"], make().parameters["q"])


@pytest.mark.parametrize("sampler", [STATISTICS, GaussianTokens(D, N, 50, noise=0.1)], ids=["statistics", "tokens"])
@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_float32_errs_as_the_definition_does(sampler: Sampler, structure: str) -> None:
    """After 30 steps, trace and parameters: at most three times the definition's float32 error, or 1e-6."""
    optimizer = Adam(0.01, clip=1.0)
    exact = state(1, structure=structure)
    reference = train_steps(exact, sampler, 30, optimizer=optimizer, backend="torch")
    runs = []
    for backend in ("cpu", "torch"):
        run = state(1, structure=structure, dtype=torch.float32)
        trace = train_steps(run, sampler, 30, optimizer=optimizer, backend=backend)
        errors = [_error(trace, reference)]
        errors += [_error(value.double(), exact.parameters[name]) for name, value in run.parameters.items()]
        runs.append(errors)
    for own, twins in zip(*runs, strict=True):
        assert own <= max(3 * twins, 1e-6)


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_nothing(count: int, dtype: torch.dtype) -> None:
    """Three blocks of tasks; with 6 models a thread takes whole models, with one it takes parts."""
    sampler, before = dataclasses.replace(STATISTICS, batch=2500), torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            run = state(count, dtype=dtype)
            trace = train_steps(run, sampler, 6, optimizer=Adam(0.01), backend="cpu")
            runs.append([trace, *tensors(run)])
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(other, runs[0], strict=True))


def test_company_changes_nothing() -> None:
    """Models of different depths and rates, together and each alone."""
    models = [model(layers, seed) for seed, layers in enumerate((1, 3, 2))]
    together = TrainState.of(models, seeds=[5, 6, 7])
    singles = [alone(together, index) for index in range(3)]
    rates = [0.02, 0.01, 0.005]
    trace = train_steps(together, STATISTICS, 20, optimizer=Adam(rates, clip=1.0), backend="cpu")
    for index, single in enumerate(singles):
        single.masks = {name: mask[index : index + 1] for name, mask in together.masks.items()}
        own = train_steps(single, STATISTICS, 20, optimizer=Adam(rates[index], clip=1.0), backend="cpu")
        assert torch.equal(own[:, 0], trace[:, index])
        for name, value in single.parameters.items():
            assert torch.equal(value[0], together.parameters[name][index])


def test_one_trace_however_it_is_cut() -> None:
    whole, parts = state(2), state(2)
    sampler = dataclasses.replace(STATISTICS, resample_every=2)
    expected = train_steps(whole, sampler, 7, optimizer=Adam(0.01), backend="cpu")
    traces = [train_steps(parts, sampler, steps, optimizer=Adam(0.01), backend="cpu") for steps in (3, 0, 3, 1)]
    assert torch.equal(torch.cat(traces), expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))


@pytest.mark.parametrize("optimizer", [Adam(0.01), SGD(0.01)], ids=["adam", "sgd"])
def test_steps_that_are_not_finite_are_skipped(optimizer: Optimizer) -> None:
    """A model that overflows is left as it is and stops at the limit; the other trains as if alone."""
    run = state(2)
    run.parameters["q"][0] *= 1e120
    expected, before = copy.deepcopy(run), copy.deepcopy(run)
    trace = train_steps(run, STATISTICS, 5, optimizer=optimizer, max_skipped=3, backend="cpu")
    defined = train_steps(expected, STATISTICS, 5, optimizer=optimizer, max_skipped=3, backend="torch")
    assert run.skipped.tolist() == expected.skipped.tolist() == [5, 0]
    assert not torch.isfinite(trace[:, 0]).any()
    assert torch.isnan(trace[3:, 0]).all()
    torch.testing.assert_close(trace[:, 1], defined[:, 1], rtol=1e-10, atol=0)
    for left, right, old in zip(tensors(run)[:-1], tensors(expected)[:-1], tensors(before)[:-1], strict=True):
        assert torch.equal(left[0], old[0])
        torch.testing.assert_close(left[1], right[1], rtol=1e-9, atol=1e-12)


def test_sums_of_any_blocks() -> None:
    """Blocks of 1024 tasks by themselves are those of all, and those of the definition; idle models get zeros."""
    sampler, run = dataclasses.replace(STATISTICS, batch=2500), state(2)
    whole = native.block_sums(run, sampler, range(3), [True, True])
    expected = definition.block_sums(run, sampler, range(3), [True, True])
    assert _error(whole, expected) < 1e-12
    assert torch.equal(native.block_sums(run, sampler, range(1, 3), [True, True]), whole[:, 1:])
    idle = native.block_sums(run, sampler, range(3), [False, True])
    assert torch.equal(idle[1], whole[1])
    assert not idle[0].any()


def test_integrated_queries_are_the_mean_of_sampled_ones() -> None:
    """The same model on 2^17 tasks each: the losses agree within 5 standard errors of the sampled one."""
    held, batch = state(), 2**17
    losses = []
    for query in ("integrated", "sampled"):
        sampler = GaussianStatistics(D, N, batch, query=query, factor=FACTOR)
        sums = native.block_sums(held, sampler, range(batch // 1024), [True])[0, :, -1] / 1024
        losses.append((float(sums.mean()), float(sums.std()) / math.sqrt(len(sums))))
    (integrated, less), (sampled, more) = losses
    assert less < more
    assert abs(integrated - sampled) < 5 * more
