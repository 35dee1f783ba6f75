"""torch.compile without graph breaks, forward and backward, and torch.export."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from memformer_kernels import (
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.nn import Memformer, MemformerLayer
from tests.marks import slow_but
from tests.memformer_kernels.cases import draw_tokens, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path

CASE = make_case(rule="gated_heads", structure="block", tasks=3, tokens=6, layers=2, context=4)
RAGGED = torch.tensor([2, 3, 4])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _compiled(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)


def _assert_same(function: Callable[..., Any], *tensors: Tensor, backend: str = "aot_eager") -> None:
    """Results and gradients of the compiled function are those of the eager one."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    plain, compiled = function(*inputs), _compiled(function, backend)(*inputs)
    torch.testing.assert_close(compiled, plain, equal_nan=False)

    def gradients(results: Any) -> tuple[Tensor, ...]:
        flat = results if isinstance(results, tuple) else (results,)
        return torch.autograd.grad(sum(x.square().sum() for x in flat), inputs)

    torch.testing.assert_close(gradients(compiled), gradients(plain))


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "gram": (lambda z: context_gram(z, 4), (CASE.z,)),
    "ragged gram": (lambda z: context_gram(z, RAGGED), (CASE.z,)),
    "layer": (
        lambda z, q, r, gamma, beta: memformer_layer(z, q, None, [r, r], gamma, beta, context=4),
        (CASE.z, CASE.q[0], normal(seeded(1), 3, 1, 6, 4), normal(seeded(2), 3, 1, 6, 4), normal(seeded(3), 4)),
    ),
    "first-order method": (
        lambda h, b, a, gamma: lfom_solve(h, b, a, gamma, w0=b, layers=True),
        (
            normal(seeded(4), 3, 2, 2),
            normal(seeded(5), 3, 2),
            normal(seeded(6), 2, 2, 2),
            normal(seeded(7), 2, 2, 1),
        ),
    ),
    "proximal steps": (
        lambda h, b, a, level: lfom_solve(h, b, a, level=level, lower=0.0, layers=True),
        (
            normal(seeded(4), 3, 2, 2),
            normal(seeded(5), 3, 2),
            normal(seeded(6), 2, 2, 2),
            normal(seeded(7), 2, 1, scale=0.1),
        ),
    ),
}


def _network_function(name: str, path: Path) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    assert CASE.p is not None
    assert CASE.gamma is not None
    assert CASE.gate is not None
    parameters = (CASE.q, CASE.p, CASE.gamma, CASE.gate)

    def stack(z: Tensor, q: Tensor, p: Tensor, gamma: Tensor, gate: Tensor) -> Tensor:
        return memformer_stack(z, q, p, gamma, None, gate, context=4, **path.options)

    def ragged(z: Tensor, q: Tensor, p: Tensor, gamma: Tensor, gate: Tensor) -> Tensor:
        return memformer_stack(z, q, p, gamma, None, gate, context=RAGGED, **path.options)

    def predict(z: Tensor, q: Tensor, p: Tensor, gamma: Tensor, gate: Tensor) -> Tensor:
        return memformer_predict(z, q, p, gamma, None, gate, context=3, queries=2, layers=True, **path.options)

    def loss(z: Tensor, target: Tensor, q: Tensor, p: Tensor, gamma: Tensor, gate: Tensor) -> Tensor:
        return memformer_loss(z, target, q, p, gamma, None, gate, context=4, **path.options)

    functions: dict[str, Callable[..., Any]] = {"stack": stack, "ragged": ragged, "predict": predict, "loss": loss}
    target = (normal(seeded(8), 3, 2),) if name == "loss" else ()
    return functions[name], (CASE.z, *target, *parameters)


@pytest.mark.parametrize("path", slow_but(lambda *path: path == ("cpu", "gram"), PATHS), ids=str)
@pytest.mark.parametrize("name", ["stack", "ragged", "predict", "loss"])
def test_networks(name: str, path: Path) -> None:
    function, tensors = _network_function(name, path)
    _assert_same(function, *tensors)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, tensors = FUNCTIONS[name]
    _assert_same(function, *tensors)


@pytest.mark.slow
def test_loss_through_inductor() -> None:
    function, tensors = _network_function("loss", PATHS[0])
    _assert_same(function, *tensors, backend="inductor")


@pytest.mark.parametrize("rule", ["linear", "recursive", "lfom_residual", "gated_heads"])
def test_module(rule: str) -> None:
    model = Memformer(3, 2, heads=2, rule=rule, structure="block", tokens=6, dtype=torch.float64)

    def losses(module: nn.Module, z: Tensor) -> Tensor:
        return module(z).square().sum() + model.predict(z, layers=True).sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    losses(compiled, CASE.z).backward()
    made = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    losses(model, CASE.z).backward()
    for ours, parameter in zip(made, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


def test_layer_modules() -> None:
    layers = nn.ModuleList(MemformerLayer(3, registers=index, momentum=True, dtype=torch.float64) for index in range(3))

    def chain(z: Tensor) -> Tensor:
        registers: list[Tensor] = []
        for layer in layers:
            z, register = layer(z, registers)
            registers.append(register)
        return z

    _assert_same(chain, CASE.z)


@pytest.mark.parametrize("path", slow_but(PATHS[:1], PATHS), ids=str)
def test_five_batch_sizes_compile_at_most_twice(path: Path) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(z: Tensor, target: Tensor, q: Tensor) -> Tensor:
        return memformer_loss(z, target, q, CASE.p, CASE.gamma, context=4, **path.options)

    compiled = _compiled(loss, counter)
    q = CASE.q.clone().requires_grad_()
    for tasks in (3, 5, 8, 64, 17):
        z, target = draw_tokens(seeded(tasks), tasks, 6, 4), normal(seeded(tasks), tasks, 2)
        (made,) = torch.autograd.grad(compiled(z, target, q), q)
        (exact,) = torch.autograd.grad(loss(z, target, q), q)
        torch.testing.assert_close(made, exact)
    assert counter.frame_count <= 2


def test_errors_are_raised_from_compiled_code() -> None:
    compiled = _compiled(lambda z, lengths, q: memformer_stack(z, q, context=lengths))
    torch.testing.assert_close(compiled(CASE.z, RAGGED, CASE.q), memformer_stack(CASE.z, CASE.q, context=RAGGED))
    with pytest.raises(ValueError, match=r"context: .* from 0 to 4"):
        compiled(CASE.z, torch.tensor([0, 3, 4]), CASE.q)


def test_vmap_compiles() -> None:
    def losses(q: Tensor, z: Tensor, target: Tensor) -> Tensor:
        def loss(z: Tensor, target: Tensor) -> Tensor:
            return memformer_loss(z[None], target[None], q, CASE.p, context=4)

        return torch.func.vmap(loss)(z, target)

    _assert_same(losses, CASE.q, CASE.z, normal(seeded(9), 3, 2))


@pytest.mark.parametrize("rule", ["linear", "lfom", "gated_heads"])
def test_export(rule: str) -> None:
    model = Memformer(3, 2, heads=2, rule=rule)
    z = CASE.z.float()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (z,), dynamic_shapes={"z": {0: batch}})
    larger = torch.cat([z, z])
    torch.testing.assert_close(program.module()(larger), model(larger))
