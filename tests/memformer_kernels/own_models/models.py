"""Small models of the blocks, for the tests of what their users rely on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memformer_kernels.nn import MemformerAttention, RegisterMemory

DIM = 16


class Stack(nn.Module):
    """Three layers of attention that pass their registers on."""

    def __init__(self, causal: bool = False, memory: str = "lfom", **options: Any) -> None:
        super().__init__()
        settings: dict[str, Any] = {"prenorm": True, "norm": True, "bias": True, **options}
        self.layers = nn.ModuleList(
            MemformerAttention(DIM, 2, causal=causal, memory=memory, registers=index, **settings) for index in range(3)
        )

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        registers: list[Tensor] = []
        for layer in self.layers:
            z, register = layer(z, registers, mask=mask)
            registers.append(register)
        return z


class Block(nn.Module):
    """A standard block: it adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = z + self.inner(z)
        return made


class Remembering(nn.Module):
    """Standard blocks with a register memory around them."""

    def __init__(self, memory: str = "lfom") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.memory = RegisterMemory(DIM, 3, memory=memory)

    def forward(self, z: Tensor) -> Tensor:
        return self.memory.run(self.blocks, z)


MODELS = ("full", "causal", "blocks")


def model(name: str, seed: int = 0) -> nn.Module:
    """A model away from its start, where many coefficients are 0 or 1."""
    torch.manual_seed(seed)
    made = {"full": Stack, "causal": lambda: Stack(causal=True), "blocks": Remembering}[name]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def tokens(batch: int = 2, count: int = 9, seed: int = 1) -> Tensor:
    return torch.randn(batch, count, DIM, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.float().square().sum(), list(module.parameters())))


def assert_same(made: Sequence[Tensor], exact: Sequence[Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for ours, value in zip(made, exact, strict=True):
        torch.testing.assert_close(ours, value, rtol=rtol, atol=atol * max(1.0, float(value.detach().abs().max())))
