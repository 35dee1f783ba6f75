"""The rows of the table: each operation and each module as a model of float64, and data with one entry per sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memformer_kernels import (
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    memformer_stack,
    register_update,
)
from memformer_kernels.nn import LayerMemory, Memformer, MemformerAttention, MemformerLayer, RegisterMemory

TOKENS, FEATURES, LAYERS, HEADS = 7, 3, 2, 2
WIDTH = FEATURES + 1

# What a program does whose own modules call the functions, so that torch.fx takes them for leaves.
torch.fx.wrap("context_gram")
torch.fx.wrap("lfom_solve")
torch.fx.wrap("linear_attention")
torch.fx.wrap("memformer_layer")
torch.fx.wrap("memformer_loss")
torch.fx.wrap("memformer_predict")
torch.fx.wrap("memformer_prefix_loss")
torch.fx.wrap("memformer_prefix_predict")
torch.fx.wrap("memformer_stack")
torch.fx.wrap("register_update")


class Call(nn.Module):
    """A function of data and of parameters that are this module's."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        scales = (0.4 * torch.randn(shape, dtype=torch.float64) for shape in shapes)
        self.weights = nn.ParameterList(nn.Parameter(scale) for scale in scales)

    def forward(self, *data: Tensor) -> Any:
        return self.function(*data, *self.weights)


class Chain(nn.Module):
    """Layers that pass their registers on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        registers: list[Tensor] = []
        for layer in self.layers:
            z, register = layer(z, registers)
            registers.append(register)
        return z


class Remembering(nn.Module):
    """A `LayerMemory` behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.memory = LayerMemory(WIDTH, 1, dtype=torch.float64)

    def forward(self, z: Tensor, register: Tensor) -> Tensor:
        made: tuple[Tensor, Tensor] = self.memory(z, self.layer(z), [register])
        return made[0]


class Deep(nn.Module):
    """A stack of blocks with a `RegisterMemory`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(LAYERS))
        self.memory = RegisterMemory(WIDTH, LAYERS, dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        return self.memory.run(self.blocks, z)


def _shaken(module: nn.Module) -> nn.Module:
    """Away from the start, where many coefficients are 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@dataclass(frozen=True)
class Subject:
    """make: the model. shapes: of one sample's data. mean: whether the result is a mean over samples."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    mean: bool = False

    def model(self) -> nn.Module:
        """A model that is the same every time."""
        torch.manual_seed(0)
        return _shaken(self.make())

    def data(self, samples: int) -> tuple[Tensor, ...]:
        """Data that is the same every time."""
        generator = torch.Generator().manual_seed(samples)
        return tuple(
            0.5 * torch.randn(samples, *shape, generator=generator, dtype=torch.float64) for shape in self.shapes
        )


_Q = (LAYERS, HEADS, FEATURES, FEATURES)
_GAMMA = (LAYERS, LAYERS, 1, 1, WIDTH)
_Z = (TOKENS, WIDTH)
_HEADS = (TOKENS, HEADS, 3)

SUBJECTS: dict[str, Subject] = {
    "memformer_stack": Subject(lambda: Call(lambda *x: memformer_stack(*x), _Q, _Q, _GAMMA), (_Z,)),
    "memformer_predict": Subject(lambda: Call(lambda *x: memformer_predict(*x), _Q, _Q, _GAMMA), (_Z,)),
    "memformer_loss": Subject(lambda: Call(lambda *x: memformer_loss(*x), _Q, _Q, _GAMMA), (_Z, (1,)), mean=True),
    "memformer_prefix_predict": Subject(lambda: Call(lambda *x: memformer_prefix_predict(*x), _Q, _Q, _GAMMA), (_Z,)),
    "memformer_prefix_loss": Subject(
        lambda: Call(lambda z, target, q, gamma: memformer_prefix_loss(z, target, q, None, gamma), _Q, _GAMMA),
        (_Z, (TOKENS - 1,)),
        mean=True,
    ),
    "memformer_layer": Subject(
        lambda: Call(lambda z, r, q, p, gamma: memformer_layer(z, q, p, [r], gamma), _Q[1:], _Q[1:], (2, 1, 1, WIDTH)),
        (_Z, (1, *_Z)),
    ),
    "context_gram": Subject(lambda: Call(lambda z, scale: context_gram(z * scale), (WIDTH,)), (_Z,)),
    "lfom_solve": Subject(
        lambda: Call(lambda *x: lfom_solve(*x), (LAYERS, FEATURES, FEATURES), (LAYERS, LAYERS, FEATURES)),
        ((FEATURES, FEATURES), (FEATURES,)),
    ),
    "linear_attention": Subject(
        lambda: Call(lambda q, k, v, scale: linear_attention(q * scale, k, v, causal=True), (3,)),
        (_HEADS, _HEADS, _HEADS),
    ),
    "register_update": Subject(
        lambda: Call(lambda z, one, two, gamma: register_update(z, [one, two], gamma), (2, WIDTH)), (_Z, _Z, _Z)
    ),
    "nn.Memformer": Subject(
        lambda: Memformer(FEATURES, LAYERS, heads=HEADS, rule="gated_heads", structure="block", dtype=torch.float64),
        (_Z,),
    ),
    "nn.MemformerLayer": Subject(
        lambda: Chain(*(MemformerLayer(FEATURES, registers=n, momentum=True, dtype=torch.float64) for n in range(2))),
        (_Z,),
    ),
    "nn.MemformerAttention": Subject(
        lambda: Chain(
            *(
                MemformerAttention(
                    WIDTH, HEADS, memory="lfom", registers=n, causal=True, norm=True, prenorm=True, dtype=torch.float64
                )
                for n in range(2)
            )
        ),
        (_Z,),
    ),
    "nn.LayerMemory": Subject(Remembering, (_Z, _Z)),
    "nn.RegisterMemory": Subject(Deep, (_Z,)),
}


def results(made: Any) -> tuple[Tensor, ...]:
    """What a model made, as a tuple."""
    return made if isinstance(made, tuple) else (made,)


def scalar(made: Any) -> Tensor:
    """A number that depends on every entry of what a model made."""
    return sum((x * x).sum() + x.sum() for x in results(made))  # type: ignore[return-value]


def outcome(model: Callable[..., Any], data: tuple[Tensor, ...], parameters: list[Tensor]) -> list[Tensor]:
    """Results, and gradients of data and parameters."""
    given = [x.detach().clone().requires_grad_() for x in data]
    made = model(*given)
    return [*(x.detach() for x in results(made)), *torch.autograd.grad(scalar(made), [*given, *parameters])]
