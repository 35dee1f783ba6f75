"""`train_steps`: one trace however it is cut, ensembles of independent models, skipped steps, and clear errors."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    explain_training,
    memformer_loss,
    train_steps,
)
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import D, N, alone, drawn, model, state, tensors

OPTIMIZER = Adam(0.02, clip=1.0)


def _given(count: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, N + 1, D, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(count, D, 1, generator=generator, dtype=torch.float64))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, N:, D] = 0
    return z.to(dtype), y[:, N:].to(dtype)


SAMPLERS = [
    pytest.param(GaussianStatistics(D, N, 40, query="integrated"), id="statistics"),
    pytest.param(GaussianStatistics(D, N, 40, queries=2, noise=0.1, resample_every=3), id="statistics-queries"),
    pytest.param(GaussianTokens(D, N, 40, noise=0.1), id="tokens"),
    pytest.param(GaussianTokens(D, 2, 40, queries=N, query="prefixes", noise=0.1), id="prefixes"),
    pytest.param(FixedTasks(*_given(), N), id="full batch"),
    pytest.param(FixedTasks(*_given(), N, batch=5), id="epochs"),
    pytest.param(DrawnTasks(drawn, D, N, 40, resample_every=2), id="drawn"),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_trace_however_it_is_cut(sampler: Sampler) -> None:
    whole, parts = state(2), state(2)
    expected = train_steps(whole, sampler, 7, optimizer=OPTIMIZER, backend="torch")
    traces = [train_steps(parts, sampler, steps, optimizer=OPTIMIZER, backend="torch") for steps in (2, 0, 4, 1)]
    assert torch.equal(torch.cat(traces), expected)
    assert whole.step == parts.step == 7
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))
    assert expected.shape == (7, 2)
    assert expected.dtype == torch.float64


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_training_lowers_the_loss(sampler: Sampler) -> None:
    """Judged on 4096 tasks, or on all that are given."""
    held = state()
    judge = dataclasses.replace(sampler, batch=None if isinstance(sampler, FixedTasks) else 4096)
    before = train_steps(copy.deepcopy(held), judge, 1, optimizer=SGD(0.0), backend="torch")
    train_steps(held, sampler, 60, optimizer=OPTIMIZER, backend="torch")
    after = train_steps(held, judge, 1, optimizer=SGD(0.0), backend="torch")
    assert float(after) < 0.95 * float(before)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("sampler", [SAMPLERS[2], SAMPLERS[3], SAMPLERS[4], SAMPLERS[6]])
def test_inference_mode_changes_nothing(sampler: Sampler, backend: str) -> None:
    """Steps take gradients of their own, wherever the state, the tasks and the call are made."""
    usual = state(2)
    expected = train_steps(usual, sampler, 3, optimizer=OPTIMIZER, backend=backend)
    with torch.inference_mode():
        held = state(2)
        held.step = 0
        if isinstance(sampler, FixedTasks):
            sampler = FixedTasks(sampler.z.clone(), sampler.target.clone(), N)
        losses = [train_steps(held, sampler, 2, optimizer=OPTIMIZER, backend=backend)]
    losses.append(train_steps(held, sampler, 1, optimizer=OPTIMIZER, backend=backend))
    assert torch.equal(torch.cat(losses), expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(held), tensors(usual), strict=True))


def test_a_batch_is_kept_for_the_steps_asked_for() -> None:
    sampler = GaussianStatistics(D, N, 40, resample_every=3)
    losses = train_steps(state(), sampler, 6, optimizer=SGD(0.0), backend="torch")[:, 0]
    assert len(set(losses[:3].tolist())) == 1
    assert len(set(losses.tolist())) == 2


def test_a_batch_of_many_blocks() -> None:
    """2500 tasks are the mean over three blocks: what one call of the loss over all of them gives, to rounding."""
    z, target = _given(2500)
    sampler = FixedTasks(z, target, N)
    held = state()
    expected = memformer_loss(z, target, **held.model(0), context=N)
    losses = train_steps(held, sampler, 1, optimizer=SGD(0.1), backend="torch")
    assert float(losses) == pytest.approx(float(expected), rel=1e-12)


def test_models_of_an_ensemble_are_those_trained_alone() -> None:
    sampler = GaussianStatistics(D, N, 40, query="integrated")
    rates = [0.02, 0.01, 0.05]
    together = state(3)
    singles = [alone(together, index) for index in range(3)]
    losses = train_steps(together, sampler, 5, optimizer=Adam(rates), backend="torch")
    for index, single in enumerate(singles):
        trace = train_steps(single, sampler, 5, optimizer=Adam(rates[index]), backend="torch")
        assert torch.equal(trace[:, 0], losses[:, index])
        for name, value in single.parameters.items():
            assert torch.equal(value[0], together.parameters[name][index])
    assert len(set(losses[0].tolist())) == 3


def test_streams_and_seeds_say_who_sees_the_same_tasks() -> None:
    sampler, same = GaussianStatistics(D, N, 40), model()
    held = TrainState.of([same] * 4, seeds=[1, 1, 1, 2], streams=[0, 0, 1, 0])
    losses = train_steps(held, sampler, 1, optimizer=SGD(0.0), backend="torch")[0].tolist()
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("rule", ["lfom", "linear", "cgd", "recursive"])
def test_shallower_models_are_padded_by_identity_layers(rule: str, structure: str) -> None:
    """Decay, momentum and updates leave the padding alone; the trace is that of the shallow model."""
    options = {"rule": rule, "structure": structure, "granularity": "feature"}
    shallow, deep = model(1, 1, **options), model(3, 2, **options)
    together = TrainState.of([shallow, deep], seeds=4)
    single = TrainState.of([shallow], seeds=4)
    sampler, optimizer = GaussianStatistics(D, N, 40, query="integrated"), Adam(0.05, weight_decay=0.1, clip=1.0)
    losses = train_steps(together, sampler, 10, optimizer=optimizer, backend="torch")
    expected = train_steps(single, sampler, 10, optimizer=optimizer, backend="torch")
    torch.testing.assert_close(losses[:, :1], expected, rtol=1e-12, atol=0)
    q = together.parameters["q"]
    torch.testing.assert_close(q[0, :1], single.parameters["q"][0], rtol=1e-10, atol=1e-12)
    assert bool((q[0, 1:] == 0).all())
    assert bool((q[1] != 0).all())


def test_entries_that_are_not_trainable_stay() -> None:
    """The residual rule: ones on gamma's diagonal."""
    parameters = model(rule="lfom_residual")
    own = torch.eye(3, dtype=torch.bool)[:, :, None, None, None]
    held = TrainState.of([parameters], trainable=[{"gamma": ~own, "q": torch.tensor(False)}])
    train_steps(held, GaussianStatistics(D, N, 40), 5, optimizer=Adam(0.1, weight_decay=0.1, clip=0.1), backend="torch")
    gamma = held.parameters["gamma"][0]
    assert bool((gamma[own.expand_as(gamma)] == 1).all())
    assert torch.equal(held.parameters["q"][0], parameters["q"])
    assert not torch.equal(gamma, parameters["gamma"])


def _poisoned() -> FixedTasks:
    """Six tasks in epochs of one task a step; the fourth is not finite."""
    z, target = _given(6)
    z[3, 0, 0] = math.nan
    return FixedTasks(z, target, N, batch=1, shuffle=False)


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    held = state(2)
    losses = train_steps(held, _poisoned(), 3, optimizer=OPTIMIZER, backend="torch")
    before = copy.deepcopy(held)
    bad = train_steps(held, _poisoned(), 1, optimizer=OPTIMIZER, backend="torch")
    assert bool(losses.isfinite().all())
    assert bool(bad.isnan().all())
    assert held.skipped.tolist() == [1, 1]
    assert held.step == 4
    assert all(torch.equal(x, y) for x, y in zip(tensors(held)[:-1], tensors(before)[:-1], strict=True))
    assert bool(train_steps(held, _poisoned(), 2, optimizer=OPTIMIZER, backend="torch").isfinite().all())
    # Adam counts updates: the step after a skipped one is corrected as if the skipped one had not been.
    assert held.skipped.tolist() == [1, 1]


def test_one_model_that_diverges_leaves_the_others() -> None:
    held = state(2)
    held.parameters["q"][1] *= 1e200
    single = alone(held, 0)
    sampler = GaussianStatistics(D, N, 40)
    losses = train_steps(held, sampler, 4, optimizer=OPTIMIZER, backend="torch")
    expected = train_steps(single, sampler, 4, optimizer=OPTIMIZER, backend="torch")
    assert torch.equal(losses[:, :1], expected)
    assert not bool(losses[:, 1].isfinite().any())
    assert held.skipped.tolist() == [0, 4]
    assert all(bool(value.isfinite().all()) for value in tensors(held))


def test_a_step_that_would_overflow_is_skipped() -> None:
    """Loss and gradients are finite here, the second moment is not."""
    held = state(dtype=torch.float32)
    z, target = _given(dtype=torch.float32)
    sampler = FixedTasks(z, target * 1e19, N)
    losses = train_steps(held, sampler, 1, optimizer=Adam(0.1), backend="torch")
    assert held.skipped.tolist() == [1]
    assert all(bool(value.isfinite().all()) for value in tensors(held))
    assert losses.shape == (1, 1)


def test_a_model_is_stopped_at_the_limit() -> None:
    held = state(1)
    sampler = _poisoned()
    train_steps(held, sampler, 30, optimizer=OPTIMIZER, max_skipped=2, backend="torch")
    assert held.step == 30
    # Skipped at steps 3 and 9, stopped from step 10 on.
    assert held.skipped.tolist() == [22]
    assert bool(train_steps(held, sampler, 2, optimizer=OPTIMIZER, max_skipped=2, backend="torch").isnan().all())


def test_token_axes_are_trained_on_tokens() -> None:
    held = TrainState.of([model(rule="recursive", tokens=N + 1)])
    losses = train_steps(held, GaussianTokens(D, N, 40), 3, optimizer=OPTIMIZER)
    assert bool(losses.isfinite().all())
    plan = explain_training(held, GaussianTokens(D, N, 40), optimizer=OPTIMIZER)
    assert plan.backend == "torch"
    assert "token axis" in plan.reason


def test_dense_models_are_trained_on_tokens() -> None:
    held = TrainState.of([model(structure="dense")])
    losses = train_steps(held, GaussianTokens(D, N, 40), 3, optimizer=OPTIMIZER, backend="torch")
    assert bool(losses.isfinite().all())


STATISTICS = GaussianStatistics(D, N, 4)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: train_steps(None, STATISTICS, 1, optimizer=OPTIMIZER), TypeError, "state"),  # type: ignore[arg-type]
    (lambda: train_steps(state(), None, 1, optimizer=OPTIMIZER), TypeError, "sampler"),  # type: ignore[arg-type]
    (lambda: train_steps(state(), STATISTICS, -1, optimizer=OPTIMIZER), ValueError, "steps"),
    (lambda: train_steps(state(), STATISTICS, 1.0, optimizer=OPTIMIZER), TypeError, "steps"),  # type: ignore[arg-type]
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=0.1), TypeError, "optimizer"),  # type: ignore[arg-type]
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=SGD([0.1, 0.1])), ValueError, "learning_rate"),
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=OPTIMIZER, backend="gpu"), ValueError, "backend"),
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=OPTIMIZER, max_skipped=0), ValueError, "max_skipped"),
    (lambda: train_steps(state(), GaussianStatistics(5, N, 4), 1, optimizer=OPTIMIZER), ValueError, "state"),
    (lambda: train_steps(state(structure="dense"), STATISTICS, 1, optimizer=OPTIMIZER), ValueError, "state"),
    (
        lambda: train_steps(state(granularity="token", tokens=N + 1), STATISTICS, 1, optimizer=OPTIMIZER),
        ValueError,
        "state",
    ),
    (
        lambda: train_steps(state(dtype=torch.float32), FixedTasks(*_given(), N), 1, optimizer=OPTIMIZER),
        TypeError,
        "sampler",
    ),
    (lambda: train_steps(state(), STATISTICS, 2**63, optimizer=OPTIMIZER), ValueError, "steps"),
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=OPTIMIZER, max_skipped=2**63), ValueError, "max_skipped"),
    (lambda: train_steps(state(), STATISTICS, 1, optimizer=OPTIMIZER, group=3), TypeError, "group"),  # type: ignore[arg-type]
    (lambda: GaussianStatistics(5, 2**32 + 20, 1), ValueError, "n"),
    (lambda: GaussianStatistics(5, 2**28, 1), ValueError, "n"),
    (lambda: GaussianTokens(5, 20, 1, queries=2**32 + 1), ValueError, "queries"),
    (lambda: GaussianTokens(2**32 + 5, 20, 1), ValueError, "d"),
    (lambda: GaussianTokens(5, 20, 2**32 + 1), ValueError, "batch"),
    (lambda: GaussianTokens(5, 20, 1, resample_every=2**63), ValueError, "resample_every"),
    (lambda: GaussianStatistics(4, 3, 1), ValueError, "n"),
    (lambda: GaussianTokens(0, 3, 1), ValueError, "d"),
    (lambda: GaussianTokens(2, 3, 0), ValueError, "batch"),
    (lambda: GaussianTokens(2, 3, 1, noise=-1.0), ValueError, "noise"),
    (lambda: GaussianTokens(2, 3, 1, noise=(1.0, 0.5)), ValueError, "noise"),
    (lambda: GaussianTokens(2, 3, 1, noise=(0.0, math.inf)), ValueError, "noise"),
    (lambda: GaussianTokens(2, 3, 1, noise=(-1.0, 1.0)), ValueError, "noise"),
    (lambda: GaussianStatistics(2, 3, 1, noise=(0.5,)), ValueError, "noise"),  # type: ignore[arg-type]
    (lambda: GaussianTokens(2, 3, 1, noise=("a", 1.0)), TypeError, "noise"),  # type: ignore[arg-type]
    (lambda: GaussianTokens(2, 3, 1, noise="much"), TypeError, "noise"),  # type: ignore[arg-type]
    (lambda: GaussianTokens(2, 3, 1, factor=torch.eye(3)), ValueError, "factor"),
    (lambda: GaussianTokens(2, 3, 1, weights=torch.full((2, 2), math.nan)), ValueError, "weights"),
    (lambda: GaussianTokens(2, 3, 1, query="none"), ValueError, "query"),
    (lambda: GaussianTokens(2, 3, 1, query="integrated", queries=2), ValueError, "queries"),
    (lambda: GaussianStatistics(2, 3, 1, query="prefixes"), ValueError, "query"),
    (lambda: FixedTasks(*_given(4), N, query="integrated"), ValueError, "query"),
    (lambda: FixedTasks(*_given(4), N - 1, query="prefixes"), ValueError, "context"),
    (lambda: DrawnTasks(drawn, D, N, 4, query="none"), ValueError, "query"),
    (
        lambda: train_steps(
            state(granularity="token", tokens=N + 1),
            GaussianTokens(D, N, 4, query="prefixes"),
            1,
            optimizer=OPTIMIZER,
        ),
        ValueError,
        "state",
    ),
    (lambda: GaussianTokens(2, 3, 1, resample_every=0), ValueError, "resample_every"),
    (lambda: FixedTasks(*_given(4), N, batch=5), ValueError, "batch"),
    (lambda: FixedTasks(*_given(4), N + 1), ValueError, "context"),
    (lambda: FixedTasks(_given(4)[0], torch.zeros(3, 1, dtype=torch.float64), N), ValueError, "target"),
    (lambda: FixedTasks(_given(4)[0].half(), _given(4)[1], N), ValueError, "z"),
    (lambda: FixedTasks(*_given(4), N, shuffle=1), TypeError, "shuffle"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "name"), BAD, ids=range(len(BAD)))
def test_bad_arguments(call: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=f"^{name}: expected "):
        call()


def test_tasks_beyond_a_librarys_indices_are_left_to_torch() -> None:
    sampler = FixedTasks(torch.zeros(1, 1, 2, dtype=torch.float64).expand(1, 2**31, 2), torch.zeros(1, 1).double(), 1)
    held = TrainState.of([{"q": torch.zeros(1, 1, 1, 1, dtype=torch.float64)}])
    plan = explain_training(held, sampler, optimizer=OPTIMIZER)
    assert plan.backend == "torch"
    assert "2^30 numbers" in plan.reason or "native library is missing" in plan.reason


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_steps_past_32_bits(backend: str) -> None:
    """Every draw has tasks of its own, the same for every backend, at the last of 32 bits and the first beyond."""
    sampler, traces = GaussianStatistics(D, N, 40), []
    for step in (0, 2**32 - 2, 2**33 - 2):
        held, other = state(), state()
        held.step = other.step = step
        trace = train_steps(held, sampler, 4, optimizer=SGD(0.0), backend=backend)[:, 0]
        cut = torch.cat([train_steps(other, sampler, steps, optimizer=SGD(0.0), backend="torch") for steps in (2, 2)])
        torch.testing.assert_close(trace, cut[:, 0], rtol=1e-10, atol=0)
        traces += trace.tolist()
    assert len(set(traces)) == 12
