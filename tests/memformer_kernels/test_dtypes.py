"""Half-precision tokens, parameters beside them, and autocast: dtypes by the contract, values near the exact ones."""

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
from memformer_kernels.testing import Case, relative_error
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import Path, on_every_backend, on_every_path

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
# What is computed in float32 from values of order one, with room for a hundred roundings.
SINGLE = 100 * torch.finfo(torch.float32).eps


def _kept_in(dtype: torch.dtype) -> float:
    """The error of a result that was computed in float32 and rounded once to `dtype`."""
    return SINGLE + torch.finfo(dtype).eps / 2


def _with_dtypes(case: Case, tokens: torch.dtype, parameters: torch.dtype) -> Case:
    """Leaves in the given dtypes, all of whose values are exact in half precision."""
    rounded = {name: value.detach().to(tokens) for name, value in leaves(case).items()}
    made = {"z": rounded.pop("z"), **{name: value.to(parameters) for name, value in rounded.items()}}
    return Case(**{name: value.clone().requires_grad_() for name, value in made.items()}, context=case.context)


def _results(case: Case, path: Path, scale: float = 1.0) -> dict[str, Tensor]:
    """Outputs of the three network functions, and for each the gradients of all leaves."""
    inputs = leaves(case)
    tokens = memformer_stack(case.z, case.q, *case.parameters, context=case.context, **path.options)
    predictions = memformer_predict(case.z, case.q, *case.parameters, context=case.context, **path.options)
    # Of the tokens' dtype and exact there, so that the gradient that arrives is the same in every dtype.
    target = normal(seeded(1), *predictions.shape).bfloat16().half().to(case.z.dtype)
    weights = normal(seeded(2), *tokens.shape).bfloat16().half()
    loss = memformer_loss(case.z, target, case.q, *case.parameters, context=case.context, **path.options)
    made = {"stack": tokens, "predict": predictions, "loss": loss}
    scalars = {
        "stack": (tokens * weights.to(tokens.dtype)).double().sum(),
        "predict": (predictions * target).sum(),
        "loss": loss * scale,
    }
    for name, scalar in scalars.items():
        for leaf, gradient in zip(inputs, torch.autograd.grad(scalar, list(inputs.values())), strict=True):
            made[f"{name} grad_{leaf}"] = gradient
    return made


@HALVES
@pytest.mark.parametrize("rule", ["linear", "recursive", "lfom", "gated_heads"])
@pytest.mark.parametrize("parameters", ["float32", "half"])
@on_every_path
def test_half_precision_tokens(half: torch.dtype, rule: str, parameters: str, path: Path) -> None:
    """Gram matrices, predictions and losses are float32 in value and not only by name."""
    for structure in ("response-only", "block", "dense"):
        case = make_case(rule=rule, structure=structure, tasks=16, context=4)
        kind = torch.float32 if parameters == "float32" else half
        ours = _with_dtypes(case, half, kind)
        exact = {name: value.detach().double().requires_grad_() for name, value in leaves(ours).items()}
        expected = _results(Case(**exact, context=4), path)
        made = _results(ours, path)
        for name, value in made.items():
            dtype = {"stack": half, "predict": torch.float32, "loss": torch.float32}.get(name)
            if dtype is None:
                dtype = half if name.endswith("grad_z") else kind
            assert value.dtype == dtype, name
            assert relative_error(value.detach(), expected[name].detach()) < _kept_in(dtype), (structure, name)


@on_every_path
def test_a_scaled_loss_keeps_small_half_precision_gradients(path: Path) -> None:
    """Loss scaling must reach the gradients before they are rounded: unscaled, float16 cannot hold these."""
    case = _with_dtypes(make_case(structure="block", tasks=4096, context=6), torch.float16, torch.float16)
    exact = Case(**{name: value.detach().double().requires_grad_() for name, value in leaves(case).items()}, context=6)
    scale = 2.0**14
    made, expected = _results(case, path, scale)["loss grad_z"], _results(exact, path, scale)["loss grad_z"]
    assert (expected.abs() / scale).median() < torch.finfo(torch.float16).tiny
    assert relative_error(made, expected) < _kept_in(torch.float16)


@HALVES
def test_context_gram(half: torch.dtype) -> None:
    z = normal(seeded(3), 8, 40, 5).to(half).requires_grad_()
    gram = context_gram(z, 33)
    assert gram.dtype == torch.float32
    known = z.detach()[:, :33].double()
    assert relative_error(gram.detach(), known.mT @ known) < SINGLE
    (gradient,) = torch.autograd.grad(gram.sum(), z)
    assert gradient.dtype == half


@HALVES
@pytest.mark.parametrize("parameters", ["float32", "half"])
@on_every_backend
def test_layer(half: torch.dtype, parameters: str, backend: str) -> None:
    case = make_case(tasks=8)
    kind = torch.float32 if parameters == "float32" else half
    assert case.p is not None
    generator = seeded(4)
    values = [case.z, normal(generator, 8, 1, 7, 4), case.q[0], case.p[0], normal(generator, 2, 1, 1, 4)]
    tensors = [value.to(half).to(half if place < 2 else kind).requires_grad_() for place, value in enumerate(values)]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]

    def run(z: Tensor, past: Tensor, q: Tensor, p: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return memformer_layer(z, q, p, [past], gamma, gamma[0], context=4, backend=backend)

    weights = normal(generator, 8, 7, 4).bfloat16().half()

    def gradients(results: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        scalar = sum((x * weights.view(8, *(1,) * (x.ndim - 3), 7, 4).to(x.dtype)).double().sum() for x in results)
        return torch.autograd.grad(scalar, inputs)

    made, expected = run(*tensors), run(*exact)
    for ours, value in zip(made, expected, strict=True):
        assert ours.dtype == half
        assert relative_error(ours.detach(), value.detach()) < _kept_in(half)
    for ours, value, tensor in zip(gradients(made, tensors), gradients(expected, exact), tensors, strict=True):
        assert ours.dtype == tensor.dtype
        assert relative_error(ours, value) < _kept_in(tensor.dtype)


@on_every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_one_dtype_throughout(dtype: torch.dtype, path: Path) -> None:
    case = make_case(rule="gated_heads", context=4).to(dtype)
    assert {value.dtype for value in _results(case, path).values()} == {dtype}
    assert context_gram(case.z).dtype == dtype


D16, D32, D64 = torch.float16, torch.float32, torch.float64
MIXED: dict[str, tuple[str, dict[str, torch.dtype]]] = {
    "float32 parameters, float64 tokens": ("q", {"z": D64, "q": D32}),
    "float64 parameters, float32 tokens": ("q", {"z": D32, "q": D64}),
    "float64 parameters, half tokens": ("q", {"z": D16, "q": D64}),
    "half parameters, float32 tokens": ("q", {"z": D32, "q": D16}),
    "bfloat16 parameters, float16 tokens": ("q", {"z": D16, "q": torch.bfloat16}),
    "one float64 coefficient": ("gamma", {"z": D32, "q": D32, "p": D32, "gamma": D64}),
    "one half gate": ("gate", {"z": D32, "q": D32, "p": D32, "gamma": D32, "gate": D16}),
}


@pytest.mark.parametrize("mixture", MIXED)
def test_any_other_mixture_is_an_error(mixture: str) -> None:
    name, dtypes = MIXED[mixture]
    case = make_case(rule="gated_heads", context=4)
    tensors = {key: value.to(dtypes.get(key, dtypes["q"])) for key, value in leaves(case).items()}
    for function in (memformer_stack, memformer_predict):
        with pytest.raises(TypeError, match=rf"{name}: expected .*{tensors[name].dtype}"):
            function(**tensors)


@pytest.mark.parametrize("name", ["target", "registers", "h", "b", "gamma"])
def test_other_arguments_must_fit_too(name: str) -> None:
    case = make_case(context=4).to(torch.float32)
    h, b, a = torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3, 3)
    calls: dict[str, Callable[[], Any]] = {
        "target": lambda: memformer_loss(case.z, torch.zeros(3, 1, dtype=D64), case.q),
        "registers": lambda: memformer_layer(case.z, case.q[0], None, [torch.zeros(3, 1, 7, 4, dtype=D64)]),
        "h": lambda: lfom_solve(h.half(), b.half(), a.half()),
        "b": lambda: lfom_solve(h, b.double(), a),
        "gamma": lambda: lfom_solve(h, b, a, torch.zeros(2, 2, 3, dtype=D16)),
    }
    with pytest.raises(TypeError, match=rf"{name}.*: expected "):
        calls[name]()


AUTOCAST: dict[str, Callable[..., Any]] = {
    "stack": lambda z, q, p, gamma, gate: memformer_stack(z, q, p, gamma, None, gate, context=4),
    "predict": lambda z, q, p, gamma, gate: memformer_predict(z, q, p, gamma, None, gate, context=4),
    "loss": lambda z, q, p, gamma, gate: memformer_loss(z, z[:, 4:, 0], q, p, gamma, None, gate, context=4),
    "layer": lambda z, q, p, gamma, gate: memformer_layer(z, q[0], p[0], [], gamma[0, :1], context=4),
    "gram": lambda z, *_: context_gram(z, 4),
    "solve": lambda z, q, *_: lfom_solve(z[:, :3, :3], z[:, 3, :3], q[:, 0]),
}


@HALVES
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_with_float32_parameters(half: torch.dtype, name: str) -> None:
    """Sums of a Gram matrix need float32: under autocast everything gives what it gives without."""
    case = make_case(rule="gated_heads", tasks=4).to(torch.float32)
    inputs = list(leaves(case).values())

    def gradients(results: Any) -> tuple[Tensor | None, ...]:
        flat = results if isinstance(results, tuple) else (results,)
        return torch.autograd.grad(sum(x.square().sum() for x in flat), inputs, allow_unused=True)

    plain = AUTOCAST[name](*inputs)
    with torch.autocast("cpu", half):
        made = AUTOCAST[name](*inputs)
        inside = gradients(made)
    for ours, exact in zip(*((x if isinstance(x, tuple) else (x,)) for x in (made, plain)), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours.detach(), exact.detach()) < SINGLE
    with torch.autocast("cpu", half):
        again = AUTOCAST[name](*inputs)
    outside, exact_gradients = gradients(again), gradients(plain)
    for one, other, exact_gradient in zip(inside, outside, exact_gradients, strict=True):
        assert (one is None) == (exact_gradient is None)
        if one is not None and other is not None and exact_gradient is not None:
            assert one.dtype == other.dtype == torch.float32
            assert relative_error(one, exact_gradient) < SINGLE
            assert relative_error(other, exact_gradient) < SINGLE


@HALVES
@on_every_path
def test_autocast_meets_what_other_layers_make(half: torch.dtype, path: Path) -> None:
    """Inside a model, tokens come from a linear layer in half precision and parameters are float32."""
    case = make_case(rule="gated_heads", tasks=4, context=4).to(torch.float32)
    mix = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", half):
        z = mix(case.z)
        assert z.dtype == half
        tokens = memformer_stack(z, case.q, *case.parameters, context=4, **path.options)
        predictions = memformer_predict(z, case.q, *case.parameters, context=4, **path.options)
        loss = memformer_loss(z, mix(case.z)[:, 4:, 0], case.q, *case.parameters, context=4, **path.options)
        moved, register = memformer_layer(z, case.q[0], context=4, backend=path.backend)
        again, _ = memformer_layer(moved, case.q[1], None, [register], context=4, backend=path.backend)
        iterates = lfom_solve(mix(case.z)[:, :3, :3], z[:, 3, :3], case.q[:, 0], backend=path.backend)
    assert {x.dtype for x in (tokens, moved, register, again)} == {half}
    assert {x.dtype for x in (predictions, loss, iterates)} == {torch.float32}
    (tokens.float().sum() + predictions.sum() + loss + again.float().sum() + iterates.sum()).backward()
    for parameter in (mix.weight, case.z, case.q, case.p, case.gamma, case.gate):
        assert parameter is not None
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_autocast_rejects_float64_beside_float32() -> None:
    case = make_case(context=4).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="q: expected"):
        memformer_stack(case.z, case.q.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert memformer_stack(case.z.double(), case.q.double()).dtype == torch.float64


@HALVES
@pytest.mark.parametrize("compiled", [False, True])
def test_forward_mode_under_autocast(half: torch.dtype, compiled: bool) -> None:
    case = make_case(structure="block", context=4).to(torch.float32)
    tangent = normal(seeded(5), *case.q.shape).float()

    def run(q: Tensor) -> Tensor:
        return memformer_predict(case.z.detach(), q, context=4)

    def push(q: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(run, (q,), (tangent,))[1]
        return pushed

    exact = push(case.q.detach())
    with torch.autocast("cpu", half):
        made = (torch.compile(push, backend="aot_eager", fullgraph=True) if compiled else push)(case.q.detach())
    assert made.dtype == torch.float32
    assert relative_error(made, exact) < SINGLE


@HALVES
def test_second_derivatives_under_autocast(half: torch.dtype) -> None:
    case = make_case(structure="block", context=4).to(torch.float32)

    def curvature() -> Tensor:
        loss = memformer_predict(case.z, case.q, case.p, context=4).square().sum()
        (slope,) = torch.autograd.grad(loss, case.q, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), case.q)
        return second

    exact = curvature()
    with torch.autocast("cpu", half):
        made = curvature()
    assert made.dtype == torch.float32
    assert relative_error(made, exact) < SINGLE
