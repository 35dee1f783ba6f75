"""One compiled program for several sizes: checks compare sizes that are symbols with those of fixed parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memformer_kernels import (
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
)
from memformer_kernels.nn import MEMORIES, STRUCTURES, Memformer, MemformerAttention, MemformerLayer, RegisterMemory
from tests.marks import slow_but
from tests.memformer_kernels.cases import normal, seeded

TOKENS = {4: 7, 6: 9}
"""N by width D: every size differs between the calls of one program."""
EXACT: dict[str, Any] = {"device": "cpu", "dtype": torch.float64}


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return normal(seeded(seed), *shape, scale=0.2)


class _Holding(nn.Module):
    """A function of tokens that takes its other tensors as parameters, whose sizes a compiler knows."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        self.held = nn.ParameterDict(parameters)

    def forward(self, *tokens: Any) -> Any:
        return self.function(*tokens, **dict(self.held.items()))


def _network(width: int) -> dict[str, Tensor]:
    d = width - 1
    return {
        "q": _draw(2, 2, d, d),
        "p": _draw(2, 2, width, width),
        "gamma": _draw(2, 2, 1, 1, width),
        "beta": _draw(2, TOKENS[width], width),
        "gate": _draw(2, 2),
    }


def _tokens(width: int, count: int = 1) -> list[Tensor]:
    return [_draw(3, TOKENS[width], width, seed=seed) for seed in range(count)]


def _heads(width: int) -> list[Tensor]:
    return [_draw(3, TOKENS[width], 2, width, seed=seed) for seed in range(3)]


Make = Callable[[int], tuple[nn.Module, tuple[Any, ...]]]


def _module(build: Callable[[int], nn.Module], registers: int = 0) -> Make:
    """A module of a width and its arguments: tokens, or tokens, an output and registers."""
    return lambda width: (build(width), (*_tokens(width), [_draw(3, 1, TOKENS[width], width)] * registers))


CASES: dict[str, Make] = {
    "stack": lambda w: (_Holding(lambda z, **n: memformer_stack(z, **n, context=4), **_network(w)), (*_tokens(w),)),
    "predict": lambda w: (_Holding(lambda z, **n: memformer_predict(z, **n, context=4), **_network(w)), (*_tokens(w),)),
    "loss": lambda w: (
        _Holding(lambda z, t, **n: memformer_loss(z, t, **n, context=4, queries=2), **_network(w)),
        (*_tokens(w), _draw(3, 2)),
    ),
    "layer": lambda w: (
        _Holding(
            lambda z, r, **n: memformer_layer(z, registers=[r], **n, context=4),
            q=_draw(2, w, w),
            p=_draw(2, w - 1, w - 1),
            gamma=_draw(2, 2, 1, w),
            beta=_draw(2, 1, w),
        ),
        (*_tokens(w), _draw(3, 2, TOKENS[w], w)),
    ),
    "solve": lambda w: (
        _Holding(lambda h, b, **n: lfom_solve(h, b, **n), a=_draw(2, w, w), gamma=_draw(2, 2, w), beta=_draw(2, w)),
        (_draw(3, w, w), _draw(3, w)),
    ),
    "attention": lambda w: (_Holding(lambda q, k, v: linear_attention(q, k, v, context=4)), (*_heads(w),)),
    "causal attention": lambda w: (_Holding(lambda q, k, v: linear_attention(q, k, v, causal=True)), (*_heads(w),)),
    "update by feature": lambda w: (
        _Holding(lambda z, r, gamma: register_update(z, [r], gamma), gamma=_draw(1, w)),
        (*_tokens(w, 2),),
    ),
    "update by token": lambda w: (
        _Holding(lambda z, r, gamma: register_update(z, [r], gamma), gamma=_draw(1, TOKENS[w], 1)),
        (*_tokens(w, 2),),
    ),
    "Memformer gated": lambda w: (
        Memformer(w - 1, 2, heads=2, rule="gated_heads", **EXACT),
        (*_tokens(w),),
    ),
    "attention layer": lambda w: (
        MemformerAttention(2 * w, 2, memory="lfom", registers=2, causal=True, norm=True, prenorm=True, **EXACT),
        (_draw(3, TOKENS[w], 2 * w), [_draw(3, TOKENS[w], 2 * w)] * 2),
    ),
}
for _structure in STRUCTURES:
    CASES[f"Memformer {_structure}"] = lambda w, s=_structure: (
        Memformer(w - 1, 2, rule="recursive", structure=s, tokens=TOKENS[w], **EXACT),
        (*_tokens(w),),
    )
    CASES[f"MemformerLayer {_structure}"] = _module(
        lambda w, s=_structure: MemformerLayer(w - 1, heads=2, registers=1, momentum=True, structure=s, **EXACT), 1
    )
for _kind in MEMORIES:
    CASES[f"RegisterMemory {_kind}"] = lambda w, m=_kind: (
        RegisterMemory(w, 3, memory=m, **EXACT),
        (*_tokens(w, 2), _tokens(w, 2)),
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# What `make test` compiles: one of each kind of operation, and the modules whose checks look at most sizes.
QUICK = ("loss", "layer", "Memformer gated", "MemformerLayer block", "attention layer", "RegisterMemory lfom")
assert {*QUICK} <= {*CASES}


@pytest.mark.parametrize("dynamic", slow_but([None], [None, True]))
@pytest.mark.parametrize("name", slow_but(QUICK, CASES))
def test_one_program_for_several_widths(name: str, dynamic: bool | None) -> None:
    def call(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return module(*arguments)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="eager")
    for width in TOKENS:
        module, arguments = CASES[name](width)
        torch.testing.assert_close(compiled(module, arguments), module(*arguments))


def _dynamic(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return dict.fromkeys(range(argument.ndim), torch.export.Dim.AUTO)
    return [_dynamic(entry) for entry in argument]


@pytest.mark.parametrize("name", slow_but(["loss", "MemformerLayer block"], CASES))
def test_strict_export_with_automatic_sizes(name: str) -> None:
    module, arguments = CASES[name](4)
    shapes = tuple(map(_dynamic, arguments))
    if isinstance(module, _Holding):
        shapes = (shapes,)
    program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=True)
    torch.testing.assert_close(program.module()(*arguments), module(*arguments))
