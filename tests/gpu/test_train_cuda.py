"""Whole steps on an NVIDIA GPU: the trace of the CPU and of the definition, the same bits however launched."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    build,
    explain_training,
    train_steps,
)
from memformer_kernels.training import cuda
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import model, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
    pytest.mark.skipif(not build.available("cuda"), reason=build.build_info().backends["cuda"].reason),
]

ERROR = 1e-4
"""Of a loss in float32, over 30 steps."""

HOT = GaussianStatistics(5, 20, 1000, query="integrated")
OPTIMIZER = Adam(0.01, clip=1.0)


def state(models: int = 1, device: str = "cuda", *, layers: int = 4, d: int = 5, **options: Any) -> TrainState:
    made = [model(layers, seed, torch.float32, d=d, **options) for seed in range(models)]
    return TrainState.of(
        [{name: None if x is None else x.to(device) for name, x in one.items()} for one in made], seeds=7
    )


def given(count: int = 700, n: int = 12, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, n + 2, d, generator=generator)
    y = (x @ torch.randn(count, d, 1, generator=generator))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, n:, d] = 0
    return z, y[:, n:]


FACTOR = torch.eye(5) + 0.1
SAMPLERS: dict[str, Sampler] = {
    "hot": HOT,
    "statistics": GaussianStatistics(5, 21, 300, queries=2, noise=0.2, factor=FACTOR, weights=FACTOR, resample_every=3),
    "tokens": GaussianTokens(5, 20, 300, queries=2, noise=0.2, factor=FACTOR),
    "tokens, integrated": GaussianTokens(5, 100, 129, query="integrated"),
    "full batch": FixedTasks(*given(), 12),
    "epochs": FixedTasks(*given(), 12, batch=130),
}


def on_gpu(sampler: Sampler) -> Sampler:
    if isinstance(sampler, FixedTasks):
        return replace(sampler, z=sampler.z.cuda(), target=sampler.target.cuda())
    return sampler


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_trace_of_the_cpu_and_of_the_definition(sampler: Sampler) -> None:
    own = train_steps(state(2), on_gpu(sampler), 30, optimizer=OPTIMIZER, backend="cuda")
    for backend in ("torch", "cpu") if build.available("cpu") else ("torch",):
        theirs = train_steps(state(2, "cpu"), sampler, 30, optimizer=OPTIMIZER, backend=backend)
        torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


@pytest.mark.parametrize(("d", "n", "layers"), [(1, 2, 1), (2, 9, 6), (5, 20, 5), (7, 12, 3), (8, 30, 4)])
def test_sizes(d: int, n: int, layers: int) -> None:
    sampler, optimizer = GaussianStatistics(d, n, 1500, noise=0.1), SGD(0.02, momentum=0.9, clip=1.0)
    own = train_steps(state(1, layers=layers, d=d), sampler, 20, optimizer=optimizer, backend="cuda")
    theirs = train_steps(state(1, "cpu", layers=layers, d=d), sampler, 20, optimizer=optimizer, backend="torch")
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


@pytest.mark.parametrize("batch", [1, 128, 1000, 2048, 20_000, 100_003])
@pytest.mark.parametrize("models", [1, 20])
def test_persistent_and_replayed_steps_are_the_same_bits(models: int, batch: int) -> None:
    """Long enough for a graph and a rest of single launches; and again, since nothing may depend on the moment."""
    sampler = replace(HOT, batch=batch)
    runs = []
    for launches in ("persistent", "replay", "auto", "persistent", "replay"):
        held = state(models)
        losses = torch.empty(37, models, dtype=torch.float64)
        cuda.train(held, sampler, OPTIMIZER, None, losses, launches=launches)
        runs.append([losses, *tensors(held)])
    for other in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], other, strict=True))


def test_calls_continue_each_other() -> None:
    whole, parts = state(3), state(3)
    expected = train_steps(whole, HOT, 40, optimizer=OPTIMIZER)
    found = torch.cat([train_steps(parts, HOT, steps, optimizer=OPTIMIZER) for steps in (1, 0, 33, 6)])
    assert torch.equal(found, expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))


def test_more_steps_than_one_call_of_the_library_takes() -> None:
    held = state(1)
    losses = train_steps(held, replace(HOT, batch=64), cuda._STEPS + 10, optimizer=OPTIMIZER)
    assert held.step == cuda._STEPS + 10
    assert bool(torch.isfinite(losses).all())


def test_a_model_has_the_trace_that_it_has_alone() -> None:
    together = state(30)
    losses = train_steps(together, HOT, 10, optimizer=OPTIMIZER)
    for index in (0, 17, 29):
        alone = state(30)
        single = TrainState.of([alone.model(index)], seeds=7, streams=[index])
        assert torch.equal(train_steps(single, HOT, 10, optimizer=OPTIMIZER)[:, 0], losses[:, index])


@pytest.mark.parametrize("batch", [1000, 50_000], ids=["persistent", "replay"])
def test_steps_that_are_not_finite(batch: int) -> None:
    held = state(3)
    held.parameters["gamma"][1] = 1e30
    before = held.parameters["gamma"][1].clone()
    losses = train_steps(held, replace(HOT, batch=batch), 40, optimizer=OPTIMIZER, max_skipped=3)
    assert held.skipped.tolist() == [0, 40, 0]
    assert torch.equal(held.parameters["gamma"][1], before)
    assert bool(torch.isfinite(losses[:, [0, 2]]).all())
    assert bool(torch.isnan(losses[3:, 1]).all())


@pytest.mark.parametrize("batch", [1000, 50_000], ids=["persistent", "replay"])
def test_on_another_stream(batch: int) -> None:
    """Behind what that stream has to do first, and before what it is given next."""
    sampler = replace(HOT, batch=batch)
    expected = state()
    train_steps(expected, sampler, 40, optimizer=OPTIMIZER)
    held = state()
    scale = torch.full((), 2.0, device="cuda")
    held.parameters["q"] *= 0.5
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        held.parameters["q"] *= scale
        train_steps(held, sampler, 40, optimizer=OPTIMIZER)
        found = held.parameters["q"].clone()
    torch.cuda.synchronize()
    assert torch.equal(found, expected.parameters["q"])


def test_the_state_moves_between_devices() -> None:
    """A run goes on elsewhere with the trace that it has here, to rounding."""
    held = state(2)
    train_steps(held, HOT, 10, optimizer=OPTIMIZER)
    moved = copy.deepcopy(held)
    for group in (moved.parameters, moved.first, moved.second):
        group.update({name: value.cpu() for name, value in group.items()})
    own = train_steps(held, HOT, 10, optimizer=OPTIMIZER)
    theirs = train_steps(moved, HOT, 10, optimizer=OPTIMIZER, backend="torch")
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


def test_what_is_chosen() -> None:
    assert explain_training(state(), HOT, optimizer=OPTIMIZER).backend == "cuda"
    plan = explain_training(state(structure="block"), HOT, optimizer=OPTIMIZER)
    assert plan.backend == "torch"
    assert "response-only" in plan.reason
    with pytest.raises(ValueError, match=r"^backend: expected .*response-only"):
        train_steps(state(structure="block"), HOT, 1, optimizer=OPTIMIZER, backend="cuda")
