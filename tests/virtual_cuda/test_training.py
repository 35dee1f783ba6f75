"""Whole training steps by the CUDA library's trainer, on a virtual device: the trace of the definition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.virtual_cuda.devices import AMPERE, HOPPER, SMALL
from benchmarks.virtual_cuda.virtual import Virtual
from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    explain_training,
    train_steps,
)
from memformer_kernels.training import cuda
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, state, tensors

ERROR = 1e-4
"""Of a loss in float32, over a few steps."""

OPTIMIZER = Adam(0.01, clip=1.0)
HOT = GaussianStatistics(3, 8, 200, query="integrated")


def fixed(batch: int | None) -> FixedTasks:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 8, 3, generator=generator)
    y = (x @ torch.randn(70, 3, 1, generator=generator))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, 6:, 3] = 0
    return FixedTasks(z, y[:, 6:].clone(), 6, batch=batch)


SAMPLERS: dict[str, Sampler] = {
    "hot": HOT,
    "statistics": GaussianStatistics(
        3, 8, 60, queries=2, noise=0.2, factor=FACTOR.float(), weights=WEIGHTS.float(), resample_every=3
    ),
    "tokens": GaussianTokens(3, 8, 60, queries=2, noise=0.2, factor=FACTOR.float()),
    "tokens, integrated": GaussianTokens(3, 40, 33, query="integrated"),
    "full batch": fixed(None),
    "epochs": fixed(32),
}


def run(
    models: int, sampler: Sampler, steps: int, optimizer: Optimizer = OPTIMIZER, launches: str = "auto"
) -> list[Tensor]:
    """The losses, and what training leaves."""
    trained = state(models, dtype=torch.float32)
    losses = torch.full((steps, models), torch.nan, dtype=torch.float64)
    cuda.train(trained, sampler, optimizer, None, losses, launches=launches)
    return [losses, *tensors(trained)]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_trace_of_the_definition(virtual: Virtual, sampler: Sampler) -> None:
    own, theirs = (state(2, dtype=torch.float32) for _ in range(2))
    assert explain_training(own, sampler, optimizer=OPTIMIZER).backend == "cuda"
    found = train_steps(own, sampler, 5, optimizer=OPTIMIZER, backend="cuda")
    expected = train_steps(theirs, sampler, 5, optimizer=OPTIMIZER, backend="torch")
    torch.testing.assert_close(found, expected, rtol=ERROR, atol=0)
    for mine, defined in zip(tensors(own), tensors(theirs), strict=True):
        torch.testing.assert_close(mine, defined, rtol=ERROR, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.02, momentum=0.9, nesterov=True), AdamW(0.01, weight_decay=0.1, clip=0.1, clip_by="matrix")],
    ids=["sgd", "adamw"],
)
def test_optimisers(virtual: Virtual, optimizer: Optimizer) -> None:
    own, theirs = (state(1, dtype=torch.float32) for _ in range(2))
    found = train_steps(own, HOT, 4, optimizer=optimizer, backend="cuda")
    torch.testing.assert_close(
        found, train_steps(theirs, HOT, 4, optimizer=optimizer, backend="torch"), rtol=ERROR, atol=0
    )


@pytest.mark.parametrize(("d", "layers"), [(1, 1), (5, 4), (8, 2)])
def test_sizes(virtual: Virtual, d: int, layers: int) -> None:
    sampler, optimizer = GaussianStatistics(d, 2 * d + 1, 50, noise=0.1), SGD(0.02, momentum=0.9, clip=1.0)
    own, theirs = (state(1, d=d, layers=layers, dtype=torch.float32) for _ in range(2))
    found = train_steps(own, sampler, 3, optimizer=optimizer, backend="cuda")
    expected = train_steps(theirs, sampler, 3, optimizer=optimizer, backend="torch")
    torch.testing.assert_close(found, expected, rtol=ERROR, atol=0)


@pytest.mark.parametrize("models", [1, 3])
def test_persistent_and_replayed_steps_are_the_same_bits(virtual: Virtual, models: int) -> None:
    """Long enough for a graph and a rest of single launches; blocks that meet, in clusters, and the device alone."""
    sampler = replace(HOT, batch=300)
    first = run(models, sampler, 33, launches="persistent")
    assert any(launched.shape.cluster is not None for launched in virtual.runtime.launched)
    virtual.runtime.launched.clear()
    for order in (0, 1):
        virtual.use(HOPPER, order)
        second = run(models, sampler, 33, launches="replay")
        assert all(map(torch.equal, first, second))
    assert len(virtual.runtime.launched) > 2 * 33
    virtual.use(SMALL)
    assert all(map(torch.equal, first, run(models, sampler, 33)))


def test_steps_that_are_not_finite(virtual: Virtual) -> None:
    trained = state(3, dtype=torch.float32)
    trained.parameters["gamma"][1] = 1e30
    before = trained.parameters["gamma"][1].clone()
    losses = train_steps(trained, HOT, 6, optimizer=OPTIMIZER, backend="cuda", max_skipped=3)
    assert trained.skipped.tolist() == [0, 6, 0]
    assert torch.equal(trained.parameters["gamma"][1], before)
    assert bool(losses[:, [0, 2]].isfinite().all())
    assert bool(losses[3:, 1].isnan().all())


def test_calls_continue_each_other(virtual: Virtual) -> None:
    whole, parts = (state(2, dtype=torch.float32) for _ in range(2))
    expected = train_steps(whole, HOT, 6, optimizer=OPTIMIZER, backend="cuda")
    found = [train_steps(parts, HOT, steps, optimizer=OPTIMIZER, backend="cuda") for steps in (1, 0, 3, 2)]
    assert torch.equal(torch.cat(found), expected)
    assert all(map(torch.equal, tensors(whole), tensors(parts)))


@pytest.mark.slow
def test_blocks_of_older_gpus_meet_in_a_cooperative_grid(virtual: Virtual) -> None:
    expected = run(1, replace(HOT, batch=300), 6, launches="persistent")
    virtual.use(AMPERE)
    virtual.runtime.launched.clear()
    assert all(map(torch.equal, expected, run(1, replace(HOT, batch=300), 6, launches="persistent")))
    assert any(launched.shape.cooperative for launched in virtual.runtime.launched)
