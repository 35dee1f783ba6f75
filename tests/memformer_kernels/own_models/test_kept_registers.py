"""What memory across depth keeps, in allocations: for a backward one register a layer, without one what is read."""

import pytest
import torch
from torch import Tensor, nn

from memformer_kernels import register_update
from memformer_kernels.nn import MEMORIES, RegisterMemory
from tests.memformer_kernels.allocations import peak_bytes
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.own_models.options import on_every_backend

SHAPE = (4, 300, 16)


class Shift(nn.Module):
    """Adds a vector: a block whose own backward reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(SHAPE[-1]))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by


def peak(memory: str, layers: int, *, learns: bool) -> float:
    """The most that a run of so many layers holds at a time, in tensors of the tokens' size."""
    z = normal(seeded(0), *SHAPE).float()
    module, blocks = RegisterMemory(SHAPE[-1], layers, memory=memory), [Shift() for _ in range(layers)]
    with torch.set_grad_enabled(learns):
        module.run(blocks, z)
        return peak_bytes(lambda: module.run(blocks, z)) / z.nbytes


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_backward_keeps_one_register_a_layer_and_no_tokens(memory: str) -> None:
    grown = peak(memory, 12, learns=True) - peak(memory, 4, learns=True)
    assert grown == pytest.approx(0 if memory == "none" else 8, abs=0.5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_without_gradients_what_no_layer_reads_is_let_go(memory: str) -> None:
    grown = peak(memory, 12, learns=False) - peak(memory, 4, learns=False)
    assert grown == pytest.approx(8 if memory.startswith("lfom") else 0, abs=0.5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_run_is_what_its_layers_are_one_by_one(memory: str) -> None:
    z, blocks = normal(seeded(1), *SHAPE), [nn.Linear(16, 16, dtype=torch.float64) for _ in range(5)]
    module = RegisterMemory(16, 5, memory=memory, dtype=torch.float64)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    expected, registers = z, []
    for block in blocks:
        expected, register = module(expected, block(expected) - expected, registers)
        registers.append(register)
    assert torch.equal(module.run(blocks, z), expected)


@on_every_backend
def test_an_update_keeps_no_tokens(backend: str) -> None:
    """They may be written over before its backward, as those of a sum may."""
    z, register, gamma = normal(seeded(2), *SHAPE), normal(seeded(3), *SHAPE), torch.ones(1, 16, dtype=torch.float64)
    leaf = z.clone().requires_grad_()
    moved = leaf * 1
    out = register_update(moved, [register], gamma.requires_grad_(), backend=backend)
    expected = z + register
    moved.detach().zero_()
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert gamma.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * expected)
    torch.testing.assert_close(gamma.grad[0], (2 * expected * register).sum((0, 1)))
