"""Whole steps of models of every rule, of ensembles, and at the edges: traces and states of the definition."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import SGD, Adam, GaussianStatistics, TrainState, train_steps
from memformer_kernels.training import cuda
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.gpu.gpus import Gpu
from tests.marks import slow_but
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D, N, alone, model, tensors

ERROR = 3e-5
"""Of a loss in float32, over a few steps."""

INTEGRATED = GaussianStatistics(D, N, 70, query="integrated", factor=FACTOR, weights=WEIGHTS)
HOT = GaussianStatistics(5, 20, 300, query="integrated")
ADAM = Adam(0.02, clip=0.5)
DECAYED = Adam(0.02, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.01, clip=0.3, clip_by="model")
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"rule": "linear", "heads": 2},
    "cgd": {"rule": "cgd", "heads": 2},
    "recursive": {"rule": "recursive", "granularity": "feature"},
    "shared": {"rule": "lfom_shared", "granularity": "scalar"},
    "residual": {"rule": "lfom_residual", "granularity": "scalar", "heads": 2},
}
both_ways = pytest.mark.parametrize("launches", ["persistent", "replay"])


def state(gpu: Gpu, models: int = 1, *, layers: int = 3, d: int = D, **options: Any) -> TrainState:
    made = [model(layers, seed, torch.float32, d=d, **options) for seed in range(models)]
    return on(gpu.device, TrainState.of(made, seeds=11))


def on(device: str, held: TrainState) -> TrainState:
    """A copy of a state there."""
    made = copy.deepcopy(held)
    for group in (made.parameters, made.first, made.second, made.masks):
        group.update({name: value.to(device) for name, value in group.items()})
    return made


def train(
    held: TrainState,
    sampler: Sampler,
    steps: int,
    optimizer: Optimizer,
    launches: str = "auto",
    limit: int | None = None,
) -> Tensor:
    losses = torch.full((steps, held.models), torch.nan, dtype=torch.float64)
    cuda.train(held, sampler, optimizer, limit, losses, launches=launches)
    return losses


def check(
    held: TrainState,
    sampler: Sampler,
    optimizer: Optimizer,
    steps: int = 4,
    launches: str = "auto",
    limit: int | None = None,
) -> None:
    """Trace and state are those of the definition."""
    other = on("cpu", held)
    own = train(held, sampler, steps, optimizer, launches, limit)
    theirs = train_steps(other, sampler, steps, optimizer=optimizer, backend="torch", max_skipped=limit)
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0, equal_nan=True)
    for left, right in zip(tensors(held), tensors(other), strict=True):
        torch.testing.assert_close(left.cpu(), right, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_every_model(options: dict[str, Any], gpu: Gpu) -> None:
    check(state(gpu, **options), INTEGRATED, DECAYED)


@both_ways
@pytest.mark.parametrize("every", [1, 2])
def test_draws_past_32_bits(every: int, launches: str, gpu: Gpu) -> None:
    """The draw's upper half changes within a call, at its second step or, with a batch kept, at its third."""
    held = state(gpu, 2)
    held.step = (2**32 - 1) * every
    check(held, replace(INTEGRATED, resample_every=every), SGD(0.02), launches=launches)


def test_the_last_seed_and_stream(gpu: Gpu) -> None:
    held = TrainState.of([model(2, 0, torch.float32)], seeds=2**63 - 1, streams=[2**32 - 1])
    check(on(gpu.device, held), INTEGRATED, ADAM)


def test_the_hot_instance_with_everything(gpu: Gpu) -> None:
    """d = 5 and four layers, traces in registers: noise, queries, factors, and a mixture of rules' parameters."""
    factor = torch.eye(5) + 0.1 * torch.ones(5, 5)
    shaped = GaussianStatistics(5, 12, 140, queries=2, noise=0.3, factor=factor, weights=factor)
    check(state(gpu, layers=4, d=5), shaped, ADAM)
    check(state(gpu, layers=2, d=5, rule="recursive", granularity="scalar"), HOT, ADAM)


@pytest.mark.parametrize("batch", [1, 128, 129, 1024, 2049])
def test_batches(batch: int, gpu: Gpu) -> None:
    """Units and blocks of tasks, whole and not, of which some have no tasks."""
    check(state(gpu, layers=1), replace(INTEGRATED, batch=batch), SGD(0.05), 2)


@pytest.mark.slow
def test_more_than_one_group_of_blocks(gpu: Gpu) -> None:
    """17 blocks of 1024 tasks: persistent and replayed agree in every bit, and with the definition."""
    held, other = (state(gpu, layers=1, d=1) for _ in range(2))
    sampler = GaussianStatistics(1, 2, 16 * 1024 + 5, query="integrated")
    check(held, sampler, SGD(0.05), 1, "persistent")
    losses = train(other, sampler, 1, SGD(0.05), "replay")
    assert torch.equal(held.parameters["q"], other.parameters["q"])
    assert bool(torch.isfinite(losses).all())


def test_ensembles(gpu: Gpu) -> None:
    """Depths, learning rates and streams of their own: each model has the trace that it has alone."""
    models = [model(layers, layers, torch.float32) for layers in (1, 2, 3)]
    together, rates = on(gpu.device, TrainState.of(models, seeds=[3, 4, 3], streams=[0, 7, 1])), (0.01, 0.05, 0.02)
    parts = [alone(together, index) for index in range(3)]
    for index, part in enumerate(parts):
        part.masks = {name: mask[index : index + 1].clone() for name, mask in together.masks.items()}
    losses = train(together, INTEGRATED, 4, Adam(rates, clip=1.0))
    for index, part in enumerate(parts):
        assert torch.equal(train(part, INTEGRATED, 4, Adam(rates[index], clip=1.0))[:, 0], losses[:, index])
    check(on(gpu.device, TrainState.of(models, seeds=5)), INTEGRATED, Adam(rates))


@both_ways
def test_steps_that_are_not_finite(launches: str, gpu: Gpu) -> None:
    """Skipped, counted, stopped at the limit, and nobody else's business; a call that follows goes on."""
    held = state(gpu, 3)
    held.parameters["gamma"][1] = 1e30
    held.parameters["q"][2, 0, 0, 0, 0] = torch.nan
    check(held, INTEGRATED, ADAM, 5, launches, limit=3)
    assert held.skipped.tolist() == [0, 5, 5]
    check(held, INTEGRATED, ADAM, 2, launches, limit=9)


def test_bias_is_corrected_by_the_steps_that_were_taken(gpu: Gpu) -> None:
    """A gradient that overflows in the first steps alone: Adam's count starts where the first step is taken."""
    held = state(gpu)
    held.skipped[0], held.step = 2, 3
    check(held, INTEGRATED, DECAYED, 3)


WIDE: dict[str, tuple[int, GaussianStatistics, dict[str, Any]]] = {
    "any size": (8, GaussianStatistics(8, 10, 40, query="integrated"), {"layers": 12, "rule": "recursive", "heads": 4}),
    "hot": (5, HOT, {"layers": 4, "rule": "linear", "heads": 40}),
}
"""Models whose state or flat parameters do not fit in a block's memory, by the kernel that trains them."""


@pytest.mark.parametrize("name", slow_but(("hot",), tuple(WIDE)))
def test_what_does_not_fit_in_shared_memory(name: str, gpu: Gpu) -> None:
    d, sampler, options = WIDE[name]
    check(state(gpu, d=d, granularity="scalar", **options), sampler, SGD(0.001), 2)
