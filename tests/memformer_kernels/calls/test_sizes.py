"""The smallest and the largest sizes: no tasks, no queries, one of everything, many layers, many tasks."""

from dataclasses import replace
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
from memformer_kernels.testing import FLOAT64_ERROR, Case, float64_violations, public, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.cases import STRUCTURES, leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_backend, on_every_path

RULES = ("linear", "recursive", "lfom", "gated_heads")


def _needing_gradients(case: Case) -> Case:
    for value in leaves(case).values():
        value.requires_grad_()
    return case


def _assert_zero(gradients: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ragged", [False, True])
@on_every_path
def test_no_tasks(rule: str, structure: str, ragged: bool, path: Path) -> None:
    context: Any = torch.zeros(0, dtype=torch.int64) if ragged else 4
    case = _needing_gradients(make_case(rule=rule, structure=structure, tasks=0, context=context))
    inputs = list(leaves(case).values())
    network = (case.q, *case.parameters)
    queries = 1 if ragged else 3
    tokens = memformer_stack(case.z, *network, context=context, **path.options)
    assert tokens.shape == (0, 7, 4)
    predictions = memformer_predict(case.z, *network, context=context, **path.options)
    assert predictions.shape == (0, queries)
    after_layers = memformer_predict(case.z, *network, context=context, layers=True, **path.options)
    assert after_layers.shape == (3, 0, queries)
    loss = memformer_loss(case.z, torch.zeros(0, queries).double(), *network, context=context, **path.options)
    assert loss.shape == ()
    assert loss.isnan()
    for result in (tokens, predictions, after_layers, loss):
        _assert_zero(torch.autograd.grad(result.sum(), inputs), inputs)


@on_every_backend
def test_no_tasks_elsewhere(backend: str) -> None:
    z = torch.zeros(0, 5, 3, dtype=torch.float64, requires_grad=True)
    gram = context_gram(z, 3)
    assert gram.shape == (0, 3, 3)
    _assert_zero(torch.autograd.grad(gram.sum(), z), [z])
    case = _needing_gradients(make_case(tasks=0, tokens=5, width=3))
    past = torch.zeros(0, 1, 5, 3, dtype=torch.float64, requires_grad=True)
    q = case.q[0].detach().requires_grad_()
    gamma = torch.ones(2, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    moved, register = memformer_layer(case.z, q, None, [past], gamma, context=3, backend=backend)
    assert moved.shape == (0, 5, 3)
    assert register.shape == (0, 1, 5, 3)
    inputs = [case.z, q, past, gamma]
    _assert_zero(torch.autograd.grad(moved.sum() + register.sum(), inputs), inputs)
    quadratics = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((0, 3, 3), (0, 3))]
    a = torch.ones(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert lfom_solve(*quadratics, a, backend=backend).shape == (0, 3)
    iterates = lfom_solve(*quadratics, a, layers=True, backend=backend)
    assert iterates.shape == (2, 0, 3)
    _assert_zero(torch.autograd.grad(iterates.sum(), [*quadratics, a]), [*quadratics, a])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("context", [7, 4, "ragged"])
@on_every_path
def test_no_queries(rule: str, context: int | str, path: Path) -> None:
    """No predictions: their loss is NaN, as torch's mean is, and every gradient is zero."""
    lengths: Any = torch.tensor([7, 1, 3]) if context == "ragged" else context
    case = _needing_gradients(make_case(rule=rule))
    network = (case.q, *case.parameters)
    predictions = memformer_predict(case.z, *network, context=lengths, queries=0, **path.options)
    assert predictions.shape == (3, 0)
    target = torch.zeros(3, 0, dtype=torch.float64, requires_grad=True)
    loss = memformer_loss(case.z, target, *network, context=lengths, queries=0, **path.options)
    assert loss.isnan()
    inputs = [*leaves(case).values(), target]
    _assert_zero(torch.autograd.grad(loss, inputs), inputs)
    _assert_zero(torch.autograd.grad(predictions.sum(), inputs[:-1]), inputs[:-1])


ONES: dict[str, dict[str, Any]] = {
    "one token": {"tokens": 1, "context": 1},
    "one context token": {"tokens": 2},
    "one feature": {"width": 2},
    "one layer": {"layers": 1},
    "one head": {"heads": 1},
    "one task": {"tasks": 1},
    "one of everything": {"tasks": 1, "tokens": 1, "width": 2, "layers": 1, "heads": 1, "context": 1},
    "fewer tokens than features": {"tokens": 2, "width": 9},
    "many layers": {"tasks": 2, "tokens": 3, "width": 2, "layers": 64, "heads": 1},
    "wide": {"tasks": 1, "tokens": 5, "width": 70, "layers": 2, "heads": 1},
    "whole context": {"context": 7},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", ONES)
@pytest.mark.parametrize("path", slow_but(lambda *path: path != ("torch", "token"), PATHS), ids=str)
def test_ones(rule: str, size: str, path: Path) -> None:
    for structure in ("response-only", "block", "dense"):
        case = make_case(rule=rule, structure=structure, **ONES[size])
        if size == "many layers":
            # 64 cubic layers, or the sum over all past registers, would grow out of order one.
            case = replace(case, q=case.q / 16)
        assert float64_violations(public(*path), case) == {}


@on_every_path
def test_tokens_of_a_response_alone(path: Path) -> None:
    """D = 1: dense matrices of one entry. There is no feature that a block could mix."""
    case = make_case(structure="dense", width=1, heads=2)
    assert float64_violations(public(*path), case) == {}


def _assert_equals_chunks(path: Path, tasks: int, chunk: int) -> None:
    case = make_case(tasks=tasks, tokens=3, width=3, layers=2, heads=1, structure="response-only").to(torch.float64)
    target = normal(seeded(1), tasks, 1)
    parameters = [case.q, case.gamma]

    def run(rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        predictions = memformer_predict(case.z[rows], case.q, None, case.gamma, **path.options)
        error = (predictions - target[rows]).square().sum()
        return predictions.detach(), torch.autograd.grad(error, parameters)

    whole, gradients = run(slice(0, tasks))
    parts = [run(slice(start, start + chunk)) for start in range(0, tasks, chunk)]
    torch.testing.assert_close(whole, torch.cat([part for part, _ in parts]), rtol=1e-11, atol=1e-13)
    for place, gradient in enumerate(gradients):
        assert relative_error(gradient, sum((part[place] for _, part in parts[1:]), parts[0][1][place])) < FLOAT64_ERROR


@on_every_path
def test_many_tasks_equal_their_chunks(path: Path) -> None:
    """65,536 is past the largest grid in y and z; the odd number leaves a rest in every block size."""
    _assert_equals_chunks(path, 65_536, 32_768)
    _assert_equals_chunks(path, 1_000_003, 300_000)


def test_results_repeat() -> None:
    """The same call gives the same bits."""
    case = make_case(tasks=500).to(torch.float32)

    def run(path: Path) -> tuple[Tensor, ...]:
        loss = memformer_predict(case.z, case.q, *case.parameters, **path.options).square().sum()
        return loss.detach(), *torch.autograd.grad(loss, [case.z, case.q, case.p, case.gamma])

    for path in PATHS:
        for once, again in zip(run(path), run(path), strict=True):
            assert torch.equal(once, again)
