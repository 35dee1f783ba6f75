"""torch.func's transforms over the public functions equal the loops and Jacobians they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from memformer_kernels import (
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.nn import Memformer
from tests.memformer_kernels.cases import form_of, make_case, normal, seeded
from tests.memformer_kernels.paths import Path, on_every_path

Function = Callable[..., Any]
MAPPED = 3
CASE = make_case(tasks=2, tokens=5, width=3, layers=2, context=3)
RAGGED = torch.tensor([1, 3])


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-13)


def _loop(function: Function, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...], **options: Any) -> Any:
    """What vmap stands for."""
    size = next(t.shape[dim] for t, dim in zip(tensors, in_dims, strict=True) if dim is not None)
    slices = [
        [t if dim is None else t.select(dim, index) for t, dim in zip(tensors, in_dims, strict=True)]
        for index in range(size)
    ]
    results = [function(*one, **options) for one in slices]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack(results)


def _stacked(*shape: int, seed: int, scale: float = 0.5) -> Tensor:
    return normal(seeded(seed), MAPPED, *shape, scale=scale)


Z = _stacked(2, 5, 3, seed=1)
TARGET = _stacked(2, 2, seed=2)
Q, P = _stacked(2, 2, 2, 2, seed=3), _stacked(2, 2, 2, 2, seed=4)
GAMMA = _stacked(2, 2, 1, 1, 3, seed=5)
H, B, A = _stacked(2, 3, 3, seed=6), _stacked(2, 3, seed=7), _stacked(2, 3, 3, seed=8)
W0, G = _stacked(2, 3, seed=9), _stacked(2, 2, 3, seed=10)
LEVEL = 0.3 * _stacked(2, 3, seed=13).abs()
R, WEIGH = _stacked(2, 1, 5, 3, seed=11), _stacked(2, 1, 5, 3, seed=12)
FUNCTIONS: dict[str, tuple[Function, tuple[Tensor, ...], int]] = {
    "stack": (lambda z, q, p, gamma: memformer_stack(z, q, p, gamma, context=3), (Z, Q, P, GAMMA), 1),
    "ragged": (lambda z, q, p, gamma: memformer_stack(z, q, p, gamma, context=RAGGED), (Z, Q, P, GAMMA), 1),
    "predict": (lambda z, q, p, gamma: memformer_predict(z, q, p, gamma, context=3), (Z, Q, P, GAMMA), 1),
    "layers": (lambda z, q, p, gamma: memformer_predict(z, q, p, gamma, context=3, layers=True), (Z, Q, P, GAMMA), 1),
    "loss": (lambda z, target, q, p: memformer_loss(z, target, q, p, context=3), (Z, TARGET, Q, P), 2),
    "gram": (lambda z: context_gram(z, 3), (Z,), 1),
    "layer": (lambda z, r, q, weigh: memformer_layer(z, q, None, [r], weigh, context=3), (Z, R, Q[:, 0], WEIGH), 2),
    "solve": (lambda h, b, w0, a, gamma: lfom_solve(h, b, a, gamma, w0=w0), (H, B, W0, A, G), 3),
    "proximal steps": (
        lambda h, b, w0, a, level, upper: lfom_solve(h, b, a, w0=w0, level=level, lower=-0.5, upper=upper),
        (H, B, W0, A, LEVEL, 1 + LEVEL),
        3,
    ),
    "ball": (lambda h, b, w0, a, radius: lfom_solve(h, b, a, w0=w0, radius=radius), (H, B, W0, A, LEVEL[..., :1]), 3),
    "iterates": (lambda h, b, w0, a, gamma: lfom_solve(h, b, a, gamma, w0=w0, layers=True), (H, B, W0, A, G), 3),
}


def _maps(name: str) -> dict[str, tuple[int | None, ...]]:
    """Which arguments are mapped, and where: the tasks, the parameters, or both."""
    _, tensors, tasks = FUNCTIONS[name]
    rest = len(tensors) - tasks
    return {
        "tasks": (0,) * tasks + (None,) * rest,
        "some tasks": (None,) * (tasks - 1) + (0,) + (None,) * rest,
        "parameters": (None,) * tasks + (0,) * rest,
        "both": (0,) * len(tensors),
        "other axes": tuple(1 + place % (t.ndim - 1) for place, t in enumerate(tensors)),
    }


@pytest.mark.parametrize("mapped", ["tasks", "some tasks", "parameters", "both", "other axes"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_is_the_loop(name: str, mapped: str) -> None:
    function, tensors, tasks = FUNCTIONS[name]
    in_dims = _maps(name)[mapped]
    if mapped == "parameters" and tasks == len(tensors):
        in_dims = (0,) * tasks
    shared = [t if dim is not None else t[0] for t, dim in zip(tensors, in_dims, strict=True)]
    if mapped == "other axes":
        shared = [t.movedim(0, dim or 0) for t, dim in zip(tensors, in_dims, strict=True)]
    given = tuple(shared)
    _close(vmap(function, in_dims)(*given), _loop(function, in_dims, given))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_of_gradients_is_the_loop(name: str) -> None:
    function, tensors, _ = FUNCTIONS[name]

    def scalar(*arguments: Tensor) -> Tensor:
        results = function(*arguments)
        return sum(x.square().sum() for x in (results if isinstance(results, tuple) else (results,)))

    everything = tuple(range(len(tensors)))
    in_dims = (0,) * len(tensors)
    gradients = grad(scalar, everything)
    _close(vmap(gradients, in_dims)(*tensors), _loop(gradients, in_dims, tensors))
    nested = grad(lambda *arguments: vmap(scalar, in_dims)(*arguments).sum(), everything)(*tensors)
    _close(nested, _loop(gradients, in_dims, tensors))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autograd_through_vmap(name: str) -> None:
    """Ordinary backward over a mapped call: nothing but vmap is a transform here."""
    function, tensors, _ = FUNCTIONS[name]
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]

    def total(run: Function) -> Tensor:
        results = run(*inputs)
        return sum(x.square().sum() for x in (results if isinstance(results, tuple) else (results,)))

    in_dims = (0,) * len(tensors)
    mapped = torch.autograd.grad(total(vmap(function, in_dims)), inputs)
    looped = torch.autograd.grad(total(lambda *xs: _loop(function, in_dims, xs)), inputs)
    _close(mapped, looped)


@on_every_path
def test_nested_vmap(path: Path) -> None:
    def loss(z: Tensor, target: Tensor, q: Tensor) -> Tensor:
        return memformer_loss(z, target, q, P[0], context=3, **path.options)

    over_tasks = vmap(loss, (0, 0, None))
    grid = vmap(lambda q: over_tasks(Z, TARGET, q))(Q)
    assert grid.shape == (MAPPED, MAPPED)
    for row, q in zip(grid, Q, strict=True):
        _close(row, torch.stack([loss(z, target, q) for z, target in zip(Z, TARGET, strict=True)]))
    gradients = vmap(lambda q: vmap(grad(loss, 2), (0, 0, None))(Z, TARGET, q))(Q)
    _close(gradients[2, 1], grad(loss, 2)(Z[1], TARGET[1], Q[2]))


@on_every_path
def test_per_sample_gradients(path: Path) -> None:
    def loss(q: Tensor, z: Tensor, target: Tensor) -> Tensor:
        return memformer_loss(z[None], target[None], q, CASE.p, CASE.gamma, context=3, **path.options)

    target = TARGET[0]
    per_sample = vmap(grad(loss), (None, 0, 0))(CASE.q, CASE.z, target)
    for index in range(2):
        q = CASE.q.clone().requires_grad_()
        alone = memformer_loss(
            CASE.z[index : index + 1], target[index : index + 1], q, CASE.p, CASE.gamma, context=3, **path.options
        )
        (expected,) = torch.autograd.grad(alone, q)
        _close(per_sample[index], expected)


def test_vmap_over_ragged_lengths() -> None:
    lengths = torch.tensor([[1, 2], [3, 4], [2, 2]])
    made = vmap(lambda z, n: memformer_predict(z, CASE.q, context=n))(Z, lengths)
    expected = torch.stack([memformer_predict(z, CASE.q, context=n) for z, n in zip(Z, lengths, strict=True)])
    _close(made, expected)


def test_vmap_over_gates_and_momentum() -> None:
    gate, beta = _stacked(2, seed=13), _stacked(2, 1, 1, 3, seed=14)

    def run(gate: Tensor, beta: Tensor) -> Tensor:
        return memformer_stack(CASE.z, CASE.q, CASE.p, CASE.gamma, beta, gate, context=3)

    _close(vmap(run)(gate, beta), _loop(run, (0, 0), (gate, beta)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobians_agree(name: str) -> None:
    function, tensors, _ = FUNCTIONS[name]
    arguments = tuple(t[0] for t in tensors)
    everything = tuple(range(len(arguments)))
    reverse = jacrev(function, everything)(*arguments)
    forward = jacfwd(function, everything)(*arguments)
    plain = torch.autograd.functional.jacobian(function, arguments)
    if name == "layer":
        plain = tuple(tuple(part) for part in plain)
    _close(reverse, plain)
    _close(forward, plain)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_is_the_transpose_of_vjp(name: str) -> None:
    """<u, J v> = <u^T J, v>."""
    function, tensors, _ = FUNCTIONS[name]
    arguments = tuple(t[0] for t in tensors)
    generator = seeded(15)
    tangents = tuple(normal(generator, *t.shape) for t in arguments)
    outputs, pushed = jvp(function, arguments, tangents)
    _close(outputs, function(*arguments))
    _, pull = vjp(function, *arguments)
    flat = pushed if isinstance(pushed, tuple) else (pushed,)
    cotangents = tuple(normal(generator, *x.shape) for x in flat)
    pulled = pull(cotangents if isinstance(pushed, tuple) else cotangents[0])
    left = sum((u * x).sum() for u, x in zip(cotangents, flat, strict=True))
    right = sum((g * v).sum() for g, v in zip(pulled, tangents, strict=True))
    _close(left, right)


@on_every_path
def test_dual_tensors(path: Path) -> None:
    """Forward-mode AD without torch.func, on some arguments only."""
    tangent = normal(seeded(16), *CASE.q.shape)

    def run(q: Tensor) -> Tensor:
        return memformer_predict(CASE.z, q, CASE.p, CASE.gamma, context=3, **path.options)

    with forward_ad.dual_level():
        primal, pushed = forward_ad.unpack_dual(run(forward_ad.make_dual(CASE.q, tangent)))
        assert pushed is not None
    _close(primal, run(CASE.q))
    _close(pushed, jvp(run, (CASE.q,), (tangent,))[1])


@on_every_path
def test_hessian_of_a_loss(path: Path) -> None:
    def loss(q: Tensor) -> Tensor:
        return memformer_loss(CASE.z, TARGET[0], q, CASE.p, CASE.gamma, context=3, **path.options)

    size = CASE.q.numel()
    exact = jacrev(grad(loss))(CASE.q).reshape(size, size)
    _close(hessian(loss)(CASE.q).reshape(size, size), exact)
    _close(exact, exact.mT.contiguous())
    direction = normal(seeded(17), *CASE.q.shape)
    _close(jvp(grad(loss), (CASE.q,), (direction,))[1].flatten(), exact @ direction.flatten())


@on_every_path
def test_forward_over_forward(path: Path) -> None:
    """torch switches forward mode off where it asks for a tangent: that of the outer one must not be lost."""

    def loss(q: Tensor) -> Tensor:
        return memformer_loss(CASE.z, TARGET[0], q, CASE.p, CASE.gamma, context=3, **path.options)

    exact = jacrev(grad(loss))(CASE.q)
    assert exact.norm() > 0
    _close(jacfwd(jacfwd(loss))(CASE.q), exact)


def test_third_derivatives() -> None:
    def loss(scale: Tensor) -> Tensor:
        return memformer_loss(CASE.z, TARGET[0], scale * CASE.q, CASE.p, CASE.gamma, context=3)

    at = torch.tensor(0.7, dtype=torch.float64)
    third = grad(grad(grad(loss)))(at)
    step = 1e-5
    second = grad(grad(loss))
    difference = (second(at + step) - second(at - step)) / (2 * step)
    torch.testing.assert_close(third, difference, rtol=1e-6, atol=1e-9)


def test_functional_call_of_a_module() -> None:
    model = Memformer(2, 2, rule="gated_heads", heads=2, structure="block", dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], z: Tensor, target: Tensor) -> Tensor:
        predictions = functional_call(model, values, (z[None],), {"context": 3})[:, 3:, -1]
        return (predictions + target).square().mean()

    per_sample = vmap(grad(loss), (None, 0, 0))(parameters, CASE.z, TARGET[0])
    total = loss(parameters, CASE.z[0], TARGET[0, 0]) + loss(parameters, CASE.z[1], TARGET[0, 1])
    for name, expected in zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True):
        _close(per_sample[name].sum(0), expected)
    ensemble = {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    mapped = vmap(lambda values: functional_call(model, values, (CASE.z,)))(ensemble)
    doubled = {name: 2 * value for name, value in parameters.items()}
    _close(mapped, torch.stack([model(CASE.z), functional_call(model, doubled, (CASE.z,))]))


def test_bare_operations_have_tangents() -> None:
    """As compilers and exporters call them: no public function is between."""

    def bare(q: Tensor) -> Tensor:
        options = (3, form_of(CASE, "gram"), 2, [False] * 8, "torch")
        network = (CASE.z, TARGET[0], q, CASE.p, None, None, None, None)
        loss: Tensor = torch.ops.memformer_kernels.loss(*network, *options)[0]
        return loss

    tangent = normal(seeded(18), *CASE.q.shape)
    expected = (grad(bare)(CASE.q) * tangent).sum()
    assert expected != 0
    _close(jvp(bare, (CASE.q,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(bare(forward_ad.make_dual(CASE.q, tangent))).tangent
    _close(pushed, expected)
