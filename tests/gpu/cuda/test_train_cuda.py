"""Whole steps on a GPU: the trace of the CPU and of the definition, the same bits however launched."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    availability,
    explain_training,
    train_steps,
)
from memformer_kernels.training import cuda
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.gpu.gpus import Gpu
from tests.marks import slow_but
from tests.memformer_kernels.training.runs import model, tensors

ERROR = 1e-4
"""Of a loss in float32, over 30 steps."""

OPTIMIZER = Adam(0.01, clip=1.0)


def hot(batch: int = 1000) -> GaussianStatistics:
    return GaussianStatistics(5, 20, batch, query="integrated")


def state(models: int, device: str, *, layers: int = 4, d: int = 5, **options: Any) -> TrainState:
    made = [model(layers, seed, torch.float32, d=d, **options) for seed in range(models)]
    return TrainState.of(
        [{name: None if x is None else x.to(device) for name, x in one.items()} for one in made], seeds=7
    )


def fixed(batch: int | None, count: int, *, padding: int = 0, resample_every: int = 1) -> FixedTasks:
    """Tasks with two queries behind so many tokens of padding, which hold NaN."""
    n, d, generator = 12, 5, torch.Generator().manual_seed(0)
    x = torch.randn(count, n + 2, d, generator=generator)
    y = (x @ torch.randn(count, d, 1, generator=generator))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, n:, d] = 0.25
    z = torch.cat([z[:, :n], torch.full((count, padding, d + 1), torch.nan), z[:, n:]], 1)
    return FixedTasks(z, y[:, n:].clone(), n, batch=batch, resample_every=resample_every)


def drawn(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tasks (batch, 14, 6) with two queries, the same on any device."""
    device, own = generator.device, torch.Generator().manual_seed(generator.initial_seed())
    x = torch.randn(batch, 14, 5, generator=own)
    y = x @ torch.randn(batch, 5, 1, generator=own)
    target = y[:, 12:, 0].clone()
    y[:, 12:] = 0
    return torch.cat([x, y], -1).to(device), target.to(device)


FACTOR = torch.eye(5) + 0.1
SAMPLERS: dict[str, Sampler] = {
    "hot": hot(),
    "statistics": GaussianStatistics(5, 21, 300, queries=2, noise=0.2, factor=FACTOR, weights=FACTOR, resample_every=3),
    "tokens": GaussianTokens(5, 20, 300, queries=2, noise=0.2, factor=FACTOR),
    "tokens, integrated": GaussianTokens(5, 100, 129, query="integrated", resample_every=2),
    "full batch": fixed(None, 700),
    "epochs": fixed(130, 700, resample_every=2),
    "padded full batch": fixed(None, 700, padding=3),
    "padded epochs": fixed(130, 700, padding=2),
    "drawn": DrawnTasks(drawn, 5, 12, 300, queries=2, resample_every=2),
}
SMALL: dict[str, Sampler] = {
    **{name: replace(sampler, batch=40) for name, sampler in SAMPLERS.items()},
    "full batch": fixed(None, 70),
    "epochs": fixed(32, 70, resample_every=2),
    "padded full batch": fixed(None, 70, padding=3),
    "padded epochs": fixed(32, 70, padding=2),
}
"""The same for a virtual GPU."""


def on_gpu(sampler: Sampler, gpu: Gpu) -> Sampler:
    if isinstance(sampler, FixedTasks):
        return replace(sampler, z=sampler.z.to(gpu.device), target=sampler.target.to(gpu.device))
    return sampler


def definitions(gpu: Gpu) -> tuple[str, ...]:
    """Backends that a GPU is held against. What lies on the CPU counts as on a virtual GPU where there is one."""
    return ("torch", "cpu") if availability.available("cpu") and not gpu.virtual else ("torch",)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_trace_of_the_cpu_and_of_the_definition(name: str, gpu: Gpu) -> None:
    sampler, steps = (SMALL if gpu.virtual else SAMPLERS)[name], gpu.size(30, 5)
    ours = state(2, gpu.device)
    own = train_steps(ours, on_gpu(sampler, gpu), steps, optimizer=OPTIMIZER, backend="cuda")
    for backend in definitions(gpu):
        defined = state(2, "cpu")
        theirs = train_steps(defined, sampler, steps, optimizer=OPTIMIZER, backend=backend)
        torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)
        for made, expected in zip(tensors(ours), tensors(defined), strict=True):
            torch.testing.assert_close(made.cpu(), expected, rtol=1e-3, atol=1e-5)


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(0.02, clip=0.5, schedule=Schedule("cosine", warmup=2, steps=6)),
    "adam, decay": Adam(0.02, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.01, clip=0.3, clip_by="model"),
    "adamw": AdamW(0.01, weight_decay=0.1, clip=0.1, clip_by="matrix", schedule=Schedule("step", decay_every=2)),
    "sgd": SGD(0.02, weight_decay=0.01),
    "nesterov": SGD(0.02, momentum=0.9, nesterov=True, clip=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_optimisers(optimizer: Optimizer, gpu: Gpu) -> None:
    sampler, steps = hot(gpu.size(1000, 40)), gpu.size(20, 4)
    own = train_steps(state(1, gpu.device), sampler, steps, optimizer=optimizer, backend="cuda")
    theirs = train_steps(state(1, "cpu"), sampler, steps, optimizer=optimizer, backend="torch")
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


SIZES = ((1, 1, 1), (1, 2, 1), (2, 9, 6), (5, 5, 4), (5, 9, 5), (5, 21, 4), (7, 12, 3), (8, 30, 4))


@pytest.mark.parametrize(("d", "n", "layers"), slow_but((SIZES[0], SIZES[3], SIZES[-1]), SIZES))
def test_sizes(d: int, n: int, layers: int, gpu: Gpu) -> None:
    sampler, steps = GaussianStatistics(d, n, gpu.size(1500, 50), noise=0.1), gpu.size(20, 3)
    optimizer = SGD(0.02, momentum=0.9, clip=1.0)
    own = train_steps(state(1, gpu.device, layers=layers, d=d), sampler, steps, optimizer=optimizer, backend="cuda")
    theirs = train_steps(state(1, "cpu", layers=layers, d=d), sampler, steps, optimizer=optimizer, backend="torch")
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


@pytest.mark.parametrize("batch", slow_but((2048,), (1, 128, 1000, 2048, 20_000, 100_003)))
@pytest.mark.parametrize("models", [1, 20])
def test_persistent_and_replayed_steps_are_the_same_bits(models: int, batch: int, gpu: Gpu) -> None:
    """Long enough for a graph and a rest of single launches; and again, since nothing may depend on the moment."""
    models, sampler = gpu.size(models, min(models, 3)), hot(gpu.size(batch, batch // 100 + 1))
    runs = []
    for launches in ("persistent", "replay", "auto", "persistent", "replay"):
        held = state(models, gpu.device)
        losses = torch.empty(37, models, dtype=torch.float64)
        cuda.train(held, sampler, OPTIMIZER, None, losses, launches=launches)
        runs.append([losses, *tensors(held)])
    for other in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], other, strict=True))


def test_calls_continue_each_other(gpu: Gpu) -> None:
    whole, parts = (state(3, gpu.device) for _ in range(2))
    sampler, longest = hot(gpu.size(1000, 40)), gpu.size(33, 3)
    expected = train_steps(whole, sampler, longest + 7, optimizer=OPTIMIZER)
    found = torch.cat([train_steps(parts, sampler, steps, optimizer=OPTIMIZER) for steps in (1, 0, longest, 6)])
    assert torch.equal(found, expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))


def test_more_steps_than_one_call_of_the_library_takes(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    most = gpu.size(cuda._STEPS, 4)
    monkeypatch.setattr(cuda, "_STEPS", most)
    monkeypatch.setattr(cuda, "_FIRST_STEPS", gpu.size(cuda._FIRST_STEPS, 3))
    held = state(1, gpu.device)
    losses = train_steps(held, hot(64), most + 10, optimizer=OPTIMIZER)
    assert held.step == most + 10
    assert bool(torch.isfinite(losses).all())


def test_a_model_has_the_trace_that_it_has_alone(gpu: Gpu) -> None:
    models, steps, sampler = gpu.size(30, 3), gpu.size(10, 2), hot(gpu.size(1000, 40))
    together = state(models, gpu.device)
    losses = train_steps(together, sampler, steps, optimizer=OPTIMIZER)
    for index in (0, models // 2, models - 1):
        alone = state(models, gpu.device)
        single = TrainState.of([alone.model(index)], seeds=7, streams=[index])
        assert torch.equal(train_steps(single, sampler, steps, optimizer=OPTIMIZER)[:, 0], losses[:, index])


@pytest.mark.parametrize("launches", ["persistent", "replay"])
def test_steps_that_are_not_finite(launches: str, gpu: Gpu) -> None:
    held, steps = state(3, gpu.device), gpu.size(40, 6)
    held.parameters["gamma"][1] = 1e30
    before = held.parameters["gamma"][1].clone()
    losses = torch.empty(steps, 3, dtype=torch.float64)
    cuda.train(held, hot(gpu.size(1000, 40)), OPTIMIZER, 3, losses, launches=launches)
    assert held.skipped.tolist() == [0, steps, 0]
    assert torch.equal(held.parameters["gamma"][1], before)
    assert bool(torch.isfinite(losses[:, [0, 2]]).all())
    assert bool(torch.isnan(losses[3:, 1]).all())


@pytest.mark.parametrize("batch", [1000, 50_000], ids=["persistent", "replay"])
def test_on_another_stream(batch: int, nvidia: Gpu) -> None:
    """Behind what that stream has to do first, and before what it is given next."""
    expected = state(1, "cuda")
    train_steps(expected, hot(batch), 40, optimizer=OPTIMIZER)
    held = state(1, "cuda")
    scale = torch.full((), 2.0, device="cuda")
    held.parameters["q"] *= 0.5
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        held.parameters["q"] *= scale
        train_steps(held, hot(batch), 40, optimizer=OPTIMIZER)
        found = held.parameters["q"].clone()
    torch.cuda.synchronize()
    assert torch.equal(found, expected.parameters["q"])


def test_the_state_moves_between_devices(gpu: Gpu) -> None:
    """A run goes on elsewhere with the trace that it has here, to rounding."""
    held, steps, sampler = state(2, gpu.device), gpu.size(10, 3), hot(gpu.size(1000, 40))
    train_steps(held, sampler, steps, optimizer=OPTIMIZER)
    moved = copy.deepcopy(held)
    for group in (moved.parameters, moved.first, moved.second):
        group.update({name: value.cpu() for name, value in group.items()})
    own = train_steps(held, sampler, steps, optimizer=OPTIMIZER)
    theirs = train_steps(moved, sampler, steps, optimizer=OPTIMIZER, backend="torch")
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0)


def test_what_is_chosen(gpu: Gpu) -> None:
    chosen, block = state(1, gpu.device), state(1, gpu.device, structure="block")
    assert explain_training(chosen, hot(), optimizer=OPTIMIZER).backend == "cuda"
    plan = explain_training(block, hot(), optimizer=OPTIMIZER)
    assert plan.backend == "torch"
    assert "response-only" in plan.reason
    with pytest.raises(ValueError, match=r"^backend: expected .*response-only"):
        train_steps(block, hot(), 1, optimizer=OPTIMIZER, backend="cuda")
