"""The native layer on tokens that are too wide for a lane: coefficients, sizes, layouts, orders of summation."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import explain, memformer_layer, reference
from memformer_kernels.testing import FLOAT64_ERROR, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.cases import STRUCTURES, draw_projections, draw_tokens, normal, seeded
from tests.memformer_kernels.native import LAYOUTS, assert_same_bits_on_threads, instruction_set, with_gradients

__all__ = ["instruction_set"]

EPS = torch.finfo(torch.float32).eps


@dataclass
class _Layer:
    """A layer's arguments in float64; registers by their number, gamma and beta by their shapes or None."""

    width: int
    tokens: int
    tasks: int = 3
    structure: str = "block"
    heads: int = 1
    past: int = 2
    gamma: tuple[int, ...] | None = (3, 1, 1, 1)
    beta: tuple[int, ...] | None = None
    context: int | Tensor | None = None
    arguments: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        random = seeded(self.width)
        q, p = draw_projections(random, self.structure, 1, self.heads, self.width)
        per_head = any(x is not None and len(x) > 2 and x[-3] > 1 for x in (self.gamma, self.beta))
        kept = self.heads if per_head else 1
        self.arguments = {
            "z": draw_tokens(random, self.tasks, self.tokens, self.width),
            "q": q[0],
            "p": None if p is None else p[0],
            "gamma": None if self.gamma is None else normal(random, *self.gamma, scale=0.5),
            "beta": None if self.beta is None else normal(random, *self.beta, scale=0.5),
        }
        shape = (self.tasks, kept, self.tokens, self.width)
        self.registers = [normal(random, *shape, scale=self.width**-0.5) for _ in range(self.past)]

    def made(self, function: Any, dtype: torch.dtype, registers: list[Tensor] | None = None) -> list[Tensor]:
        """The tokens, the new register and the gradients of all that is given, in this dtype."""
        own = {name: None if x is None else x.detach().to(dtype).requires_grad_() for name, x in self.arguments.items()}
        past = [x.detach().to(dtype).requires_grad_() for x in (self.registers if registers is None else registers)]
        results = function(**own, registers=past, context=self.context)
        leaves = [x for x in (*own.values(), *past) if x is not None and x.numel()]
        grads = [normal(seeded(9 + k), *x.shape).to(x.dtype) for k, x in enumerate(results)]
        found = torch.autograd.grad(results, leaves, grads, allow_unused=True)
        return [*results, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))]

    def native(self, dtype: torch.dtype) -> list[Tensor]:
        chosen = explain(**self.arguments, registers=self.registers, context=self.context, backend="cpu")
        assert chosen[0:3:2] == ("cpu", "wide token")
        return self.made(lambda **own: memformer_layer(**own, backend="cpu"), dtype)

    def assert_right(self) -> None:
        exact = [x.detach() for x in self.made(reference.layer, torch.float64)]
        for made, value in zip(self.native(torch.float64), exact, strict=True):
            assert relative_error(made.detach(), value) < FLOAT64_ERROR
        for made, value in zip(self.native(torch.float32), exact, strict=True):
            assert relative_error(made.detach(), value) < 30 * EPS


def _coefficients(heads: int, tokens: int, width: int) -> dict[str, dict[str, Any]]:
    return {
        "linear": {"gamma": None, "past": 0},
        "newest only, after others": {"gamma": None},
        "cgd": {"gamma": (1, 1, 1, 1), "past": 1, "beta": (1,)},
        "momentum without gamma": {"gamma": None, "past": 1, "beta": (width,)},
        "recursive": {"gamma": (2, 1, 1, 1), "past": 1, "beta": (heads, tokens, width)},
        "beta without a past": {"gamma": (1, 1, 1, 1), "past": 0, "beta": (1, 1, width)},
        "lfom": {"gamma": (3, 1, 1, width)},
        "shared by registers": {"gamma": (1, 1, 1, width)},
        "per token": {"gamma": (3, 1, tokens, 1), "beta": (1, tokens, 1)},
        "full": {"gamma": (3, 1, tokens, width)},
        "gated heads": {"gamma": (3, heads, 1, width), "beta": (heads, 1, 1)},
    }


NAMES = list(_coefficients(1, 1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_coefficient(instruction_set: str, name: str) -> None:
    _Layer(21, 70, heads=2, **_coefficients(2, 70, 21)[name]).assert_right()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure(structure: str) -> None:
    _Layer(19, 30, structure=structure, heads=2, beta=(1,)).assert_right()


@pytest.mark.parametrize("width", [17, 18, 31, 32, 33, 64, 65, 127])
def test_every_width(instruction_set: str, width: int) -> None:
    _Layer(width, width + 6, tasks=2, gamma=(3, 1, 1, width)).assert_right()


@pytest.mark.parametrize("width", [255, 256])
def test_the_widest(width: int) -> None:
    _Layer(width, 9, tasks=1, past=1, gamma=(2, 1, 1, width)).assert_right()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 63, 64, 65, 129, 200])
def test_every_length(tokens: int) -> None:
    _Layer(20, tokens, tasks=2, context=tokens, gamma=(3, 1, tokens, 20), beta=(1, tokens, 1)).assert_right()


@pytest.mark.parametrize("context", [1, 17, 70, torch.tensor([1, 70, 33]), torch.tensor([65, 64, 63])], ids=str)
def test_contexts(context: int | Tensor) -> None:
    _Layer(18, 70, context=context, gamma=(3, 1, 1, 18)).assert_right()


@pytest.mark.parametrize("tasks", [1, 33])
def test_any_number_of_tasks(tasks: int) -> None:
    _Layer(17, 10, tasks=tasks, beta=(1,)).assert_right()


def test_no_tasks() -> None:
    layer = _Layer(17, 10, tasks=0, beta=(1,))
    made = layer.made(lambda **own: memformer_layer(**own, backend="cpu"), torch.float32)
    assert not any(x.any() for x in made)


@pytest.mark.parametrize("width", slow_but([18], [33, 64]))
def test_float32_errs_as_its_twin(width: int) -> None:
    layer = _Layer(width, 40, tasks=1024, gamma=(2, 1, 1, width), past=1, beta=(1, 1, width))
    exact = [x.detach() for x in layer.made(reference.layer, torch.float64)]
    twin = layer.made(reference.layer, torch.float32)
    for k, (made, value) in enumerate(zip(layer.native(torch.float32), exact, strict=True)):
        assert relative_error(made.detach(), value) < (2 if k < 2 else 3) * relative_error(twin[k].detach(), value)


def test_the_same_bits_for_any_number_of_threads() -> None:
    layer = _Layer(17, 20, tasks=1100, gamma=(3, 1, 1, 17), beta=(1,))
    assert_same_bits_on_threads(lambda: layer.native(torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    plain = _Layer(18, 21, tasks=5)
    z = LAYOUTS[layout](plain.arguments["z"].float())
    registers = [LAYOUTS[layout](x[:, 0].float())[:, None] for x in plain.registers]
    shared = {name: None if x is None else x.float() for name, x in plain.arguments.items() if name != "z"}
    made = []
    for tokens, past in ((z, registers), (z.contiguous().clone(), [x.contiguous().clone() for x in registers])):
        leaf = tokens.detach().requires_grad_()
        made.append(with_gradients(memformer_layer(leaf, registers=past, **shared, backend="cpu"), [leaf]))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("wanted", ["z", "q", "p", "gamma", "beta", "first register", "last register"])
def test_each_gradient_alone(wanted: str) -> None:
    """What is asked for alone has the bits that it has among all."""
    layer = _Layer(19, 30, gamma=(3, 1, 1, 19), beta=(1,))
    names = ["z", "q", "p", "gamma", "beta"]
    tensors = [*(layer.arguments[name].float() for name in names), *(x.float() for x in layer.registers)]
    made = []
    for alone in (False, True):
        own = [x.detach().clone() for x in tensors]
        index = [*names, "first register", "last register"].index(wanted)
        for k, x in enumerate(own):
            x.requires_grad_(not alone or k == index)
        z, q, p, gamma, beta, *past = own
        results = memformer_layer(z, q, p, past, gamma, beta, backend="cpu")
        made.append(with_gradients(results, [own[index]]))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_tokens(dtype: torch.dtype) -> None:
    layer = _Layer(18, 21, gamma=(3, 1, 1, 18))
    for name in ("q", "p", "gamma"):
        layer.arguments[name] = layer.arguments[name].to(dtype)
    layer.arguments["z"] = layer.arguments["z"].to(dtype)
    layer.registers = [x.to(dtype) for x in layer.registers]
    exact = layer.made(reference.layer, torch.float64)
    for made, value in zip(layer.made(lambda **own: memformer_layer(**own, backend="cpu"), dtype), exact, strict=True):
        assert made.dtype == dtype
        assert relative_error(made.detach(), value.detach()) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", slow_but(["lfom", "recursive"], NAMES))
def test_derivatives(name: str) -> None:
    layer = _Layer(17, 3, tasks=2, context=2, **_coefficients(1, 3, 17)[name])
    names = [key for key, x in layer.arguments.items() if x is not None]
    tensors = [*(layer.arguments[key] for key in names), *layer.registers]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        own = dict(zip(names, tensors, strict=False))
        return memformer_layer(**own, registers=list(tensors[len(names) :]), context=2, backend="cpu")

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in tensors], fast_mode=True)


def test_dispatch_by_size() -> None:
    def chosen(width: int, tokens: int) -> tuple[str, str]:
        return explain(torch.zeros(1, tokens, width), torch.zeros(1, width, width), None)[0:3:2]

    assert chosen(16, 128) == ("cpu", "tiny token")
    assert chosen(17, 20) == chosen(256, 20) == chosen(17, 1000) == ("cpu", "wide token")
    assert chosen(257, 20) == ("torch", "large")
    assert chosen(16, 129) == ("torch", "tile")
