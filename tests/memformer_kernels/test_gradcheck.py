"""Derivatives against finite differences in float64: every rule, structure and granularity, and every function."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from memformer_kernels import (
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.testing import Case
from tests.marks import slow_but
from tests.memformer_kernels.cases import GRANULARITIES, NAMED_STRUCTURES, RULES, leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_backend, on_every_path

RAGGED = torch.tensor([1, 3])
EVERY_NETWORK = slow_but(
    lambda path, rule, granularity, structure: path.backend != "torch" or structure == "block",
    [
        (path, rule, granularity, structure)
        for path in PATHS
        for rule in RULES
        for granularity in (("scalar",) if rule == "linear" else GRANULARITIES)
        for structure in NAMED_STRUCTURES
        if path.algorithm == "token" or granularity in ("scalar", "feature")
    ],
)
SOME_NETWORKS: dict[str, dict[str, Any]] = {
    "linear, dense": {"rule": "linear", "structure": "dense"},
    "cgd, response-only": {"rule": "cgd", "granularity": "scalar", "structure": "response-only"},
    "lfom, response-only": {"structure": "response-only"},
    "lfom, block": {"structure": "block"},
    "gated heads, dense": {"rule": "gated_heads", "structure": "dense"},
    "ragged": {"context": RAGGED},
    "recursive, full": {"rule": "recursive", "granularity": "full"},
    "lfom, token, response-only": {"granularity": "token", "structure": "response-only"},
}


def _small(**sizes: Any) -> Case:
    sizes = {"tasks": 2, "tokens": 4, "width": 3, "layers": 2, "heads": 2, "context": 2, **sizes}
    return make_case(**sizes)


ON_PATHS = [(name, path) for name, sizes in SOME_NETWORKS.items() for path in PATHS if path.serves(_small(**sizes))]


def _network(case: Case, path: Path) -> tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
    """Tokens and all layers' predictions as a function of the case's leaves."""
    values = leaves(case)
    for value in values.values():
        value.requires_grad_()

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        own = replace(case, **dict(zip(values, tensors, strict=True)))
        tokens = memformer_stack(own.z, own.q, *own.parameters, context=case.context, **path.options)
        predictions = memformer_predict(
            own.z, own.q, *own.parameters, context=case.context, queries=case.queries, layers=True, **path.options
        )
        return tokens, predictions

    return run, tuple(values.values())


def _leaf(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, *shape, scale=0.5).requires_grad_()


@pytest.mark.parametrize(("path", "rule", "granularity", "structure"), EVERY_NETWORK, ids=str)
def test_every_network(path: Path, rule: str, granularity: str, structure: str) -> None:
    run, values = _network(_small(rule=rule, granularity=granularity, structure=structure, tasks=1, tokens=3), path)
    assert gradcheck(run, values)


# Whatever the backend, forward mode and second derivatives are those of one set of formulas.
SOME_PATHS = slow_but(lambda name, path: path.backend == "cpu" and "gated" not in name, ON_PATHS)


@pytest.mark.parametrize(("name", "path"), SOME_PATHS, ids=str)
def test_forward_mode(name: str, path: Path) -> None:
    run, values = _network(_small(**SOME_NETWORKS[name]), path)
    assert gradcheck(
        run,
        values,
        check_forward_ad=True,
        check_undefined_grad=True,
    )


@pytest.mark.parametrize(("name", "path"), SOME_PATHS, ids=str)
def test_second_derivatives(name: str, path: Path) -> None:
    run, values = _network(_small(**SOME_NETWORKS[name]), path)
    assert gradgradcheck(run, values, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@on_every_path
def test_loss(path: Path) -> None:
    case = _small(rule="gated_heads", queries=1, tokens=5)
    target = normal(seeded(1), 2, 1).requires_grad_()
    values = leaves(case)
    for value in values.values():
        value.requires_grad_()

    def loss(target: Tensor, *tensors: Tensor) -> Tensor:
        own = replace(case, **dict(zip(values, tensors, strict=True)))
        return memformer_loss(own.z, target, own.q, *own.parameters, context=2, queries=1, **path.options)

    assert gradcheck(loss, (target, *values.values()), check_forward_ad=True)
    assert gradgradcheck(loss, (target, *values.values()), fast_mode=True)


@on_every_backend
@pytest.mark.parametrize("structure", NAMED_STRUCTURES)
@pytest.mark.parametrize("coefficients", ["none", "feature", "full per head"])
@pytest.mark.parametrize("past", [0, 2])
def test_layer(backend: str, structure: str, coefficients: str, past: int) -> None:
    case = _small(structure=structure, tasks=1)
    q = case.q[0].requires_grad_()
    p = None if case.p is None else case.p[0].requires_grad_()
    generator = seeded(2)
    kept = 2 if coefficients == "full per head" else 1
    registers = [_leaf(generator, 1, kept, 4, 3) for _ in range(past)]
    gamma = beta = None
    if coefficients == "feature":
        gamma, beta = _leaf(generator, past + 1, 1, 1, 3), _leaf(generator, 3)
    elif coefficients == "full per head":
        gamma, beta = _leaf(generator, past + 1, 2, 4, 3), _leaf(generator, 2, 4, 3)
    optional = [tensor for tensor in (p, gamma, beta) if tensor is not None]

    def run(z: Tensor, q: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(others[past:])
        p_, gamma_, beta_ = (None if x is None else next(given) for x in (p, gamma, beta))
        return memformer_layer(z, q, p_, others[:past], gamma_, beta_, context=2, backend=backend)

    values = (case.z.requires_grad_(), q, *registers, *optional)
    assert gradcheck(run, values, check_forward_ad=True)
    assert gradgradcheck(run, values, fast_mode=True)


@on_every_backend
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("coefficients", ["none", "scalar", "feature", "shared"])
@pytest.mark.parametrize("start", [False, True])
def test_first_order_method(backend: str, layers: bool, coefficients: str, start: bool) -> None:
    generator = seeded(3)
    h, b, a = _leaf(generator, 2, 2, 2), _leaf(generator, 2, 2), _leaf(generator, 3, 2, 2)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "scalar": ((3, 3, 1), (3, 1)),
        "feature": ((3, 3, 2), (2,)),
        "shared": ((1, 3, 2), (1, 2)),
    }
    memory = [_leaf(generator, *shape) for shape in shapes.get(coefficients, ())]
    w0 = [_leaf(generator, 2, 2)] if start else []

    def run(h: Tensor, b: Tensor, a: Tensor, *others: Tensor) -> Tensor:
        gamma, beta = others[: len(memory)] or (None, None)
        first = others[-1] if start else None
        return lfom_solve(h, b, a, gamma, beta, w0=first, layers=layers, backend=backend)

    values = (h, b, a, *memory, *w0)
    assert gradcheck(run, values, check_forward_ad=True)
    assert gradgradcheck(run, values, fast_mode=True)


def test_gradient_of_an_asymmetric_quadratic_is_dense() -> None:
    """h is read in full: its gradient is not symmetrised."""
    generator = seeded(4)
    h, b, a = _leaf(generator, 1, 3, 3), _leaf(generator, 1, 3), _leaf(generator, 2, 3, 3)
    (grad,) = torch.autograd.grad(lfom_solve(h, b, a).sum(), h)
    assert (grad - grad.mT).norm() > 0.1 * grad.norm()


@pytest.mark.parametrize("context", [2, RAGGED], ids=["int", "ragged"])
def test_gram(context: int | Tensor) -> None:
    z = _leaf(seeded(5), 2, 4, 3)
    assert gradcheck(lambda z: context_gram(z, context), (z,), check_forward_ad=True)
    assert gradgradcheck(lambda z: context_gram(z, context), (z,), check_fwd_over_rev=True)


@on_every_path
def test_hessian_agrees_with_its_transpose_and_forward_over_reverse(path: Path) -> None:
    case = _small(rule="lfom_shared")
    target = normal(seeded(6), 2, 2)

    def loss(q: Tensor) -> Tensor:
        return memformer_loss(case.z, target, q, *case.parameters, context=2, **path.options)

    size = case.q.numel()
    reverse = torch.func.jacrev(torch.func.grad(loss))(case.q).reshape(size, size)
    mixed = torch.func.hessian(loss)(case.q).reshape(size, size)
    assert torch.autograd.functional.hessian(loss, case.q).reshape(size, size).allclose(reverse, rtol=1e-10)
    assert reverse.allclose(reverse.T, rtol=1e-10)
    assert reverse.allclose(mixed, rtol=1e-10)
    assert reverse.norm() > 0
