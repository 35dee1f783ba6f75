"""Whole training steps by the CUDA library's trainer, on virtual devices that launch them in different ways."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.virtual_cuda.devices import AMPERE, HOPPER, SMALL
from benchmarks.gpu.virtual_cuda.virtual import Virtual
from memformer_kernels import Adam, GaussianStatistics
from memformer_kernels.training import cuda
from tests.memformer_kernels.training.runs import state, tensors

HOT = GaussianStatistics(3, 8, 300, query="integrated")


def run(models: int, steps: int, launches: str = "auto") -> list[Tensor]:
    """The losses, and what training leaves."""
    trained = state(models, dtype=torch.float32)
    losses = torch.full((steps, models), torch.nan, dtype=torch.float64)
    cuda.train(trained, HOT, Adam(0.01, clip=1.0), None, losses, launches=launches)
    return [losses, *tensors(trained)]


@pytest.mark.parametrize("models", [1, 3])
def test_devices_that_launch_steps_otherwise_make_the_same_bits(virtual: Virtual, models: int) -> None:
    """Blocks that meet, in clusters; a graph and a rest of single launches, in two orders; a smaller device."""
    first = run(models, 33, launches="persistent")
    assert any(launched.shape.cluster is not None for launched in virtual.runtime.launched)
    virtual.runtime.launched.clear()
    for order in (0, 1):
        virtual.use(HOPPER, order)
        second = run(models, 33, launches="replay")
        assert all(map(torch.equal, first, second))
    assert len(virtual.runtime.launched) > 2 * 33
    virtual.use(SMALL)
    assert all(map(torch.equal, first, run(models, 33)))


@pytest.mark.slow
def test_blocks_of_older_gpus_meet_in_a_cooperative_grid(virtual: Virtual) -> None:
    expected = run(1, 6, launches="persistent")
    virtual.use(AMPERE)
    virtual.runtime.launched.clear()
    assert all(map(torch.equal, expected, run(1, 6, launches="persistent")))
    assert any(launched.shape.cooperative for launched in virtual.runtime.launched)
