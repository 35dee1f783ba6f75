"""Strided, transposed, sliced and expanded tensors give what their contiguous twins give, and stay untouched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from tests.memformer_kernels.cases import make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_path

TASKS, TOKENS, WIDTH, LAYERS, HEADS = 4, 6, 3, 2, 2


def _inputs(function: str) -> tuple[Tensor, ...]:
    case = make_case(tasks=TASKS, tokens=TOKENS, width=WIDTH, layers=LAYERS, heads=HEADS, rule="recursive")
    assert case.p is not None
    assert case.beta is not None
    generator = seeded(1)
    gamma = normal(generator, LAYERS, LAYERS, 1, 1, WIDTH)
    network = (case.z, case.q, case.p, gamma, case.beta)
    return {
        "stack": network,
        "predict": network,
        "loss": (*network, normal(generator, TASKS, 2)),
        "layer": (case.z, case.q[0], case.p[0], normal(generator, TASKS, 1, TOKENS, WIDTH), gamma[0], case.beta[0, :1]),
        "gram": (case.z,),
        "solve": (
            normal(generator, TASKS, 3, 3, scale=0.3),
            normal(generator, TASKS, 3),
            normal(generator, LAYERS, 3, 3, scale=0.3),
            normal(generator, LAYERS, LAYERS, 3),
            normal(generator, LAYERS, 3),
            normal(generator, TASKS, 3),
        ),
    }[function]


def _call(function: str, path: Path, *t: Tensor) -> tuple[Tensor, ...]:
    results: Any
    if function == "stack":
        results = memformer_stack(*t, context=3, **path.options)
    elif function == "predict":
        results = memformer_predict(*t, context=3, queries=2, layers=True, **path.options)
    elif function == "loss":
        results = memformer_loss(t[0], t[5], *t[1:5], context=3, queries=2, **path.options)
    elif function == "layer":
        results = memformer_layer(t[0], t[1], t[2], [t[3]], t[4], t[5], context=3, backend=path.backend)
    elif function == "gram":
        results = context_gram(t[0], 3)
    else:
        results = lfom_solve(*t[:5], w0=t[5], layers=True, backend=path.backend)
    return results if isinstance(results, tuple) else (results,)


FUNCTIONS = ("stack", "predict", "loss", "layer", "gram", "solve")


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _strided(tensor: Tensor) -> Tensor:
    """Every second entry along the first and last axes of a larger tensor, which holds NaN elsewhere."""
    larger = tensor.new_full((2 * tensor.shape[0], *tensor.shape[1:-1], 2 * tensor.shape[-1]), torch.nan)
    view = larger[::2, ..., 1::2]
    view.copy_(tensor)
    return view


def _sliced(tensor: Tensor) -> Tensor:
    """The middle of a larger tensor, at an odd offset."""
    larger = tensor.new_full((tensor.shape[0] + 2, *(size + 3 for size in tensor.shape[1:])), torch.nan)
    view = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
    view.copy_(tensor)
    return view


def _expanded(tensor: Tensor) -> Tensor:
    """The first entry for all: a stride of 0."""
    return tensor[:1].expand_as(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "strided": _strided,
    "sliced": _sliced,
    "expanded": _expanded,
}


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS)
@on_every_path
def test_inputs(function: str, layout: str, path: Path) -> None:
    views = [LAYOUTS[layout](tensor).detach().requires_grad_() for tensor in _inputs(function)]
    assert not all(view.is_contiguous() for view in views)
    twins = [view.detach().contiguous().requires_grad_() for view in views]
    made, expected = _call(function, path, *views), _call(function, path, *twins)
    _close(made, expected)
    made_grads = torch.autograd.grad(sum(x.square().sum() for x in made), views)
    _close(made_grads, torch.autograd.grad(sum(x.square().sum() for x in expected), twins))


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(),
    "mean over the first axis": lambda x: x.mean(0).square().sum(),
    "slice": lambda x: x[..., -1:].sum(),
    "every second": lambda x: x[::2].square().sum(),
    "transpose": lambda x: (x.transpose(0, -1) * torch.arange(x.numel()).view(x.transpose(0, -1).shape)).sum(),
    "cat": lambda x: torch.cat([x, 2 * x, x], -1).cumsum(-1).square().sum(),
    "expand": lambda x: x.expand(3, *x.shape).sum(),
    "one entry": lambda x: x.flatten()[0],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "loss"])
@on_every_path
def test_grad_outputs(function: str, reader: str, path: Path) -> None:
    """The gradient that arrives is expanded, sliced or transposed; its contiguous twin gives the same."""
    inputs = [tensor.clone().requires_grad_() for tensor in _inputs(function)]
    results = _call(function, path, *inputs)
    scalar = sum(READERS[reader](result) for result in results)
    arriving = torch.autograd.grad(scalar, results, retain_graph=True)
    made = torch.autograd.grad(scalar, inputs, retain_graph=True)
    twins = [gradient.clone(memory_format=torch.contiguous_format) for gradient in arriving]
    _close(made, torch.autograd.grad(results, inputs, twins))


@pytest.mark.parametrize("function", FUNCTIONS)
@on_every_path
def test_results_are_new_and_inputs_unchanged(function: str, path: Path) -> None:
    inputs = [tensor.clone().requires_grad_() for tensor in _inputs(function)]
    before = [tensor.detach().clone() for tensor in inputs]
    results = _call(function, path, *inputs)
    gradients = torch.autograd.grad(sum(x.square().sum() for x in results), inputs)
    owners = [tensor.untyped_storage().data_ptr() for tensor in (*inputs, *results, *gradients)]
    assert len(set(owners)) == len(owners), "two tensors share memory"
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(tensor, old)
    assert all(result.is_contiguous() for result in results)
    with torch.no_grad():
        for result in (*results, *gradients):
            result.fill_(7.0)
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_of_some_arguments_alone(function: str) -> None:
    path = PATHS[0]
    everything = [tensor.clone().requires_grad_() for tensor in _inputs(function)]
    expected = torch.autograd.grad(sum(x.square().sum() for x in _call(function, path, *everything)), everything)
    for place, gradient in enumerate(expected):
        inputs = [x.detach().requires_grad_(index == place) for index, x in enumerate(everything)]
        scalar = sum(x.square().sum() for x in _call(function, path, *inputs))
        _close(torch.autograd.grad(scalar, inputs[place])[0], gradient)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_graph_without_gradients(function: str) -> None:
    inputs = _inputs(function)
    assert not any(x.requires_grad for x in _call(function, PATHS[0], *inputs))
    for tensor in inputs:
        tensor.requires_grad_()
    with torch.no_grad():
        plain = _call(function, PATHS[0], *inputs)
    assert not any(x.requires_grad for x in plain)
    with torch.inference_mode():
        _close(_call(function, PATHS[0], *inputs), plain)
