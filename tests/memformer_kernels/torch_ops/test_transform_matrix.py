"""Every transform over every operation, eager and compiled, on the native backend and on PyTorch's.

What is right is what the transform makes of the plain formulas of `reference`, which knows no operation of ours.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad, functional, gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_map

from memformer_kernels import (
    availability,
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    reference,
)
from memformer_kernels.functional import linear_attention, register_update
from tests.marks import slow_but
from tests.memformer_kernels.cases import normal, seeded

Function = Callable[..., Any]


class Call(NamedTuple):
    """A public function of tensors alone, the same in plain PyTorch, and tensors."""

    ours: Function
    plain: Function
    tensors: tuple[Tensor, ...]


def _random(seed: int, *shape: int) -> Tensor:
    return normal(seeded(seed), *shape, scale=0.5)


def _plain_loss(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor) -> Tensor:
    return (reference.predict(z, q, None, gamma, context=2)[-1] - target).square().mean()


Z, TARGET, Q, P, GAMMA = (
    _random(1, 2, 4, 3),
    _random(2, 2, 2),
    _random(3, 2, 1, 2, 2),
    _random(4, 2, 1, 2, 2),
    _random(5, 2, 2, 1, 1, 1),
)
CALLS = {
    "context_gram": Call(
        lambda z: context_gram(z, 2), lambda z: z[:, :2].transpose(1, 2) @ z[:, :2], (_random(6, 2, 3, 2),)
    ),
    "stack": Call(
        lambda z, q, p: memformer_stack(z, q, p, context=2),
        lambda z, q, p: reference.stack(z, q, p, context=2),
        (Z, Q, P),
    ),
    "predict": Call(
        lambda z, q, gamma: memformer_predict(z, q, None, gamma, context=2),
        lambda z, q, gamma: reference.predict(z, q, None, gamma, context=2)[-1],
        (Z, Q, GAMMA),
    ),
    "loss": Call(
        lambda z, target, q, gamma: memformer_loss(z, target, q, None, gamma, context=2),
        _plain_loss,
        (Z, TARGET, Q, GAMMA),
    ),
    "layer": Call(
        lambda z, q, r, gamma: memformer_layer(z, q, None, [r], gamma, context=2),
        lambda z, q, r, gamma: reference.layer(z, q, None, [r], gamma, context=2),
        (_random(7, 2, 3, 2), _random(8, 1, 1, 1), _random(9, 2, 1, 3, 2), _random(10, 2, 1, 1, 2)),
    ),
    "lfom_solve": Call(
        lambda h, b, a, gamma: lfom_solve(h, b, a, gamma),
        lambda h, b, a, gamma: reference.lfom_solve(h, b, a, gamma)[-1],
        (_random(11, 2, 2, 2), _random(12, 2, 2), _random(13, 2, 2, 2), _random(14, 2, 2, 1)),
    ),
    "proximal_solve": Call(
        lambda h, b, a, level: lfom_solve(h, b, a, level=level, lower=-0.4),
        lambda h, b, a, level: reference.lfom_solve(h, b, a, level=level, lower=-0.4)[-1],
        (_random(11, 2, 2, 2), _random(12, 2, 2), _random(13, 2, 2, 2), 0.1 * _random(21, 2, 1).abs()),
    ),
    "linear_attention": Call(
        lambda q, k, v: linear_attention(q, k, v, causal=True),
        lambda q, k, v: reference.linear_attention(q, k, v, causal=True),
        tuple(_random(15 + place, 1, 3, 2, 2) for place in range(3)),
    ),
    "register_update": Call(
        lambda z, r, gamma: register_update(z, [r], gamma),
        lambda z, r, gamma: reference.register_update(z, [r], gamma),
        (_random(18, 2, 2, 3), _random(19, 2, 2, 3), _random(20, 1, 2, 1)),
    ),
}


def _parts(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _squares(function: Function) -> Function:
    """The scalar whose derivatives are taken; cubes keep the second ones from being constant."""
    return lambda *tensors: sum((x * x + x * x * x).sum() for x in _parts(function(*tensors)))


def _directions(tensors: Any, seed: int) -> Any:
    parts = _parts(tensors)
    made = tuple(
        torch.linspace(-1, 1 + place, x.numel(), dtype=x.dtype).add(seed).sin().reshape(x.shape)
        for place, x in enumerate(parts)
    )
    return made if isinstance(tensors, tuple) else made[0]


def _everything(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


def _copies(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two slices along a new first axis."""
    return tuple(torch.stack([x, x + y]) for x, y in zip(tensors, _directions(tensors, 40), strict=True))


def _none(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """No slice along a new first axis."""
    return tuple(x.new_empty(0, *x.shape) for x in tensors)


def _first_entries(function: Function, count: int) -> Function:
    """So many entries of every result."""
    return lambda *tensors: tuple(x.flatten()[:count] for x in _parts(function(*tensors)))


def _last(function: Function, tensors: tuple[Tensor, ...]) -> Function:
    """A scalar of the last tensor alone."""
    return lambda last: _squares(function)(*tensors[:-1], last)


def _push(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return jvp(function, tensors, _directions(tensors, 30))


def _pull(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    results, pull = vjp(function, *tensors)
    return pull(_directions(results, 50))


def _gradients(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return grad(_squares(function), _everything(tensors))(*tensors)


# Each takes a function and its tensors.
TRANSFORMS: dict[str, Function] = {
    "jvp": _push,
    "jacfwd": lambda f, x: jacfwd(f, _everything(x))(*x),
    "grad": _gradients,
    "vjp": _pull,
    "jacrev": lambda f, x: jacrev(f, _everything(x))(*x),
    "hessian": lambda f, x: hessian(_last(f, x))(x[-1]),
    "jacrev of grad": lambda f, x: jacrev(grad(_last(f, x)))(x[-1]),
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(_last(f, x)))(x[-1]),
    "jvp of grad": lambda f, x: _push(lambda *x: _gradients(f, x), x),
    "grad of jvp": lambda f, x: _gradients(lambda *x: _push(f, x)[1], x),
    "vmap": lambda f, x: vmap(f)(*_copies(x)),
    "vmap of the last": lambda f, x: vmap(lambda last: f(*x[:-1], last))(_copies(x)[-1]),
    "vmap of grad": lambda f, x: vmap(lambda *x: _gradients(f, x))(*_copies(x)),
    "vmap of jvp": lambda f, x: vmap(lambda *x: _push(f, x))(*_copies(x)),
    "grad of vmap": lambda f, x: _gradients(lambda *x: vmap(f)(*x), _copies(x)),
    "jvp of vmap": lambda f, x: _push(lambda *x: vmap(f)(*x), _copies(x)),
    "vmap of vmap of grad": lambda f, x: vmap(lambda *x: vmap(lambda *x: _gradients(f, x))(*_copies(x)))(*_copies(x)),
    "vmap over none": lambda f, x: vmap(f)(*_none(x)),
    "vmap of the last over none": lambda f, x: vmap(lambda last: f(*x[:-1], last))(_none(x)[-1]),
    "grad of vmap over none": lambda f, x: _gradients(lambda *x: vmap(lambda z: f(z, *x[1:]))(_none(x)[0]), x),
    "jvp of vmap over none": lambda f, x: _push(lambda *x: vmap(lambda z: f(z, *x[1:]))(_none(x)[0]), x),
    "vmap over none of vmap": lambda f, x: vmap(lambda *x: vmap(f)(*_copies(x)))(*_none(x)),
    "vmap of vmap over none": lambda f, x: vmap(lambda *x: vmap(f)(*_none(x)))(*_copies(x)),
    "jacrev of no results": lambda f, x: jacrev(_first_entries(f, 0), _everything(x))(*x),
    "jacfwd of no results": lambda f, x: jacfwd(_first_entries(f, 0), _everything(x))(*x),
}


# These take what makes slices of tensors, along a new first axis, as well.


def _vjp_of_each(function: Function, tensors: tuple[Tensor, ...], slices: Function) -> Any:
    return vmap(lambda *x: _pull(function, x))(*slices(tensors))


def _vjp_along_each(function: Function, tensors: tuple[Tensor, ...], slices: Function) -> Any:
    """By torch.autograd's own vmap, as is_grads_batched=True takes it, which itself refuses to start on none."""
    leaves = tuple(x.clone().requires_grad_() for x in tensors)
    results = _parts(function(*leaves))
    return _vmap(lambda *grads: torch.autograd.grad(results, leaves, grads))(*slices(results))


def _jvp_along_each(function: Function, tensors: tuple[Tensor, ...], slices: Function) -> Any:
    """By torch.autograd's own vmap, as jacobian(vectorize=True, strategy="forward-mode") takes it."""

    def push(*tangents: Tensor) -> Any:
        with forward_ad.dual_level():
            made = function(*map(forward_ad.make_dual, tensors, tangents))
            return tuple(forward_ad.unpack_dual(x).tangent for x in _parts(made))

    return _vmap(push)(*slices(tensors))


def _batched(function: Function, tensors: tuple[Tensor, ...], create_graph: bool = False) -> Any:
    """Three gradients of every result at once."""
    leaves = tuple(x.clone().requires_grad_() for x in tensors)
    results = _parts(function(*leaves))
    grads = _directions(tuple(x.expand(3, *x.shape) for x in results), 60)
    made = torch.autograd.grad(results, leaves, grads, is_grads_batched=True, create_graph=create_graph)
    return torch.autograd.grad(sum((x * x).sum() for x in made), leaves) if create_graph else made


def _batched_twice(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    """Batched gradients of batched gradients."""

    def rows(last: Tensor) -> Tensor:
        return functional.jacobian(lambda x: _last(function, tensors)(x).expand(2), last, True, vectorize=True)

    return functional.jacobian(rows, tensors[-1], vectorize=True)


# torch.autograd's own batched gradients, which are not torch.func's.
BATCHED: dict[str, Function] = {
    "jacobian": lambda f, x: functional.jacobian(f, x, vectorize=True),
    "forward jacobian": lambda f, x: functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "hessian": lambda f, x: functional.hessian(_last(f, x), x[-1], vectorize=True),
    "forward hessian": lambda f, x: functional.hessian(
        _last(f, x), x[-1], vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "gradients": _batched,
    "gradients of gradients": lambda f, x: _batched(_squares(f), x, create_graph=True),
    "gradients twice": _batched_twice,
}
# What the quick tests compile: two transforms, the cheapest to compile, of operations of every kind.
QUICK = {(name, transform) for name in ("loss", "layer", "lfom_solve") for transform in ("jvp", "vmap of grad")}
EVERY = slow_but(QUICK, itertools.product(CALLS, TRANSFORMS))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" stands for."""
    if request.param == "torch":
        monkeypatch.setitem(availability._faults, "cpu", "not today")
    elif not availability.available("cpu"):
        pytest.skip("the native library is not built")


def _same(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CALLS)
def test_eager(name: str, transform: str) -> None:
    ours, plain, tensors = CALLS[name]
    _same(TRANSFORMS[transform](ours, tensors), TRANSFORMS[transform](plain, tensors))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("derivatives", [_vjp_of_each, _vjp_along_each, _jvp_along_each])
@pytest.mark.parametrize("name", CALLS)
def test_derivatives_of_no_slice(name: str, derivatives: Function) -> None:
    """PyTorch cannot take all of the plain formulas': those of one slice say the shapes."""
    ours, plain, tensors = CALLS[name]
    none = derivatives(ours, tensors, _none)
    one = derivatives(plain, tensors, lambda x: tuple(y[None] for y in x))
    _same(none, tree_map(lambda x: x[:0], one))


@pytest.mark.usefixtures("backend")
def test_gradients_of_a_loss_for_each_of_no_task() -> None:
    loss = grad(lambda q, z, target: memformer_loss(z[None], target[None], q))
    none = vmap(loss, (None, 0, 0))(Q, torch.zeros(0, 4, 3).double(), torch.zeros(0, 1).double())
    assert none.shape == (0, *Q.shape)


@pytest.mark.parametrize("backend", slow_but(["cpu"], ["cpu", "torch"]), indirect=True)
@pytest.mark.parametrize(("name", "transform"), EVERY)
def test_compiled(backend: None, name: str, transform: str) -> None:
    ours, plain, tensors = CALLS[name]
    compiled = torch.compile(lambda *x: TRANSFORMS[transform](ours, x), backend="aot_eager", fullgraph=True)
    _same(compiled(*tensors), TRANSFORMS[transform](plain, tensors))


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap of grad"])
@pytest.mark.parametrize("name", ["loss", "stack"])
def test_other_compilers(name: str, transform: str, compiler: str) -> None:
    ours, plain, tensors = CALLS[name]
    compiled = torch.compile(lambda *x: TRANSFORMS[transform](ours, x), backend=compiler, fullgraph=True)
    _same(compiled(*tensors), TRANSFORMS[transform](plain, tensors))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("transform", BATCHED)
@pytest.mark.parametrize("name", CALLS)
def test_batched_by_autograd(name: str, transform: str) -> None:
    ours, plain, tensors = CALLS[name]
    _same(BATCHED[transform](ours, tensors), BATCHED[transform](plain, tensors))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", CALLS)
def test_gradcheck_of_batched_gradients(name: str) -> None:
    leaves = tuple(x.clone().requires_grad_() for x in CALLS[name].tensors)
    assert gradcheck(
        CALLS[name].ours,
        leaves,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )
