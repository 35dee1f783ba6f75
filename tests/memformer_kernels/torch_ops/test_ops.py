"""The registered operations as PyTorch sees them: schemas, fakes, autograd, and their backwards."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from memformer_kernels import memformer_predict, memformer_stack
from memformer_kernels.backends import PROXIMAL_BACKENDS
from memformer_kernels.calls.arguments import form_name
from memformer_kernels.testing import Case
from tests.marks import slow_but
from tests.memformer_kernels.cases import form_of, leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import BACKENDS, PATHS, Path, on_every_backend, on_every_path

OPS = torch.ops.memformer_kernels
NAMES = (
    *("context_gram", "stack", "predict", "loss", "prefix_predict", "prefix_loss", "layer", "lfom_solve"),
    *("proximal_solve", "linear_attention", "register_update"),
)
BACKWARDS = tuple(f"{name}_backward" for name in NAMES if not name.endswith("loss"))
RAGGED = torch.tensor([1, 3, 2])
NETWORKS: dict[str, dict[str, Any]] = {
    "response-only": {"structure": "response-only", "context": 4},
    "block, full": {"granularity": "full", "context": 4},
    "dense, ragged": {"rule": "recursive", "structure": "dense", "context": RAGGED},
    "linear, empty batch": {"rule": "linear", "tasks": 0, "context": 4},
    "single task": {"tasks": 1, "heads": 1, "context": 4},
    "block, weighted": {"context": 4},
}


def _case(name: str) -> Case:
    case = make_case(**{"tokens": 6, "layers": 2, **NETWORKS[name]})
    weighted = name.endswith("weighted")
    return replace(case, weights=normal(seeded(9), *case.z.shape[:2]).square()) if weighted else case


ON_PATHS = slow_but(
    lambda name, path: path.backend != "torch" or name == "block, full",
    [(name, path) for name in NETWORKS for path in PATHS if path.serves(_case(name))],
)


def _network(case: Case, requires_grad: bool = True) -> tuple[list[Tensor | None], int]:
    """An operation's tensors, gates apart, and its context; ragged contexts come as a tensor beside N."""
    for value in leaves(case).values():
        value.requires_grad_(requires_grad)
    lengths = case.context if isinstance(case.context, Tensor) else None
    count = case.context if isinstance(case.context, int) else case.z.shape[1]
    return [case.z, case.q, case.p, case.gamma, case.beta, lengths, case.weights], count


def _needs(tensors: list[Any]) -> list[bool]:
    flat = [x for entry in tensors for x in (entry if isinstance(entry, list) else [entry])]
    return [isinstance(x, Tensor) and x.is_floating_point() for x in flat]


def _layer_form(per_head: bool) -> str:
    return form_name("token", "block" if per_head else "response-only", "full", per_head)


def _layer_tensors(per_head: bool) -> list[Any]:
    generator = seeded(1)
    kept, width = (2, 4) if per_head else (1, 4)
    z = normal(generator, 3, 6, 4).requires_grad_()
    q, p = (normal(generator, 2, 3, 3).requires_grad_() for _ in range(2))
    registers = [normal(generator, 3, kept, 6, 4).requires_grad_() for _ in range(2)]
    gamma = normal(generator, 3, kept, 1, width).requires_grad_()
    beta = normal(generator, kept, 6, 1).requires_grad_()
    weights = normal(generator, 3, 6).square().requires_grad_()
    context = (RAGGED, weights) if per_head else (None, None)
    return [z, q, p if per_head else None, registers, gamma, beta, *context]


def _quadratic_tensors(full: bool) -> list[Any]:
    generator = seeded(2)
    shapes = [(3, 2, 2), (3, 2), (2, 2, 2), (2, 2, 2), (2,), (3, 2)]
    tensors: list[Any] = [normal(generator, *shape).requires_grad_() for shape in shapes]
    return tensors if full else [*tensors[:3], None, None, None]


def _detached(tensors: list[Any]) -> list[Any]:
    return [
        [x.detach() for x in entry] if isinstance(entry, list) else None if entry is None else entry.detach()
        for entry in tensors
    ]


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
def test_stack(name: str, path: Path) -> None:
    case = _case(name)
    tensors, count = _network(case)
    torch.library.opcheck(OPS.stack.default, (*tensors, count, form_of(case, path.algorithm), path.backend))


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
@pytest.mark.parametrize("layers", slow_but([True], [False, True]))
def test_predict(name: str, path: Path, layers: bool) -> None:
    case = _case(name)
    tensors, count = _network(case)
    torch.library.opcheck(
        OPS.predict.default, (*tensors, count, form_of(case, path.algorithm), 2, layers, path.backend)
    )


@pytest.mark.parametrize(("name", "path"), [x for x in ON_PATHS if "empty" not in x.values[0]], ids=str)
@pytest.mark.parametrize("differentiated", slow_but([True], [False, True]))
def test_loss(name: str, path: Path, differentiated: bool) -> None:
    case = _case(name)
    tensors, count = _network(case, differentiated)
    target = normal(seeded(3), case.z.shape[0], 2).requires_grad_(differentiated)
    tensors.insert(1, target)
    needs = [differentiated and needed for needed in _needs(tensors)]
    # The loss of an empty batch is left out: opcheck takes NaN for different from NaN.
    torch.library.opcheck(OPS.loss.default, (*tensors, count, form_of(case, path.algorithm), 2, needs, path.backend))


@on_every_backend
@pytest.mark.parametrize("context", [3, RAGGED], ids=["int", "ragged"])
def test_context_gram(backend: str, context: int | Tensor) -> None:
    z = normal(seeded(4), 3, 4, 2).requires_grad_()
    lengths, count = (context, 4) if isinstance(context, Tensor) else (None, context)
    torch.library.opcheck(OPS.context_gram.default, (z, lengths, count, backend))
    grad = normal(seeded(5), 3, 2, 2)
    torch.library.opcheck(OPS.context_gram_backward.default, (grad, z.detach(), lengths, count, backend, [True, False]))


@on_every_backend
@pytest.mark.parametrize("per_head", [False, True])
def test_layer(backend: str, per_head: bool) -> None:
    tensors = _layer_tensors(per_head)
    torch.library.opcheck(OPS.layer.default, (*tensors, 4, _layer_form(per_head), backend))


@on_every_backend
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_lfom_solve(backend: str, layers: bool, full: bool) -> None:
    torch.library.opcheck(OPS.lfom_solve.default, (*_quadratic_tensors(full), layers, backend))


def _proximal_tensors(ball: bool) -> list[Any]:
    generator = seeded(10)
    if ball:
        return [None, None, None, normal(generator, 2, 1).abs().requires_grad_()]
    bounds = (normal(generator, *shape).abs() for shape in ((2, 2), (), (2,)))
    level, lower, upper = ((sign * x).requires_grad_() for sign, x in zip((0.2, -1, 1), bounds, strict=True))
    return [level, lower, upper, None]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in PROXIMAL_BACKENDS])
@pytest.mark.parametrize("ball", [False, True])
def test_proximal_solve(ball: bool, backend: str) -> None:
    tensors = [*_quadratic_tensors(full=ball), *_proximal_tensors(ball)]
    torch.library.opcheck(OPS.proximal_solve.default, (*tensors, ball, backend))
    grad = normal(seeded(11), 2 if ball else 1, 3, 2)
    options = (ball, backend, _needs(tensors))
    torch.library.opcheck(OPS.proximal_solve_backward.default, (grad, *_detached(tensors), *options))


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
def test_backwards_of_networks(name: str, path: Path) -> None:
    case = _case(name)
    tensors, count = _network(case)
    tensors, needs = _detached(tensors), _needs(tensors)
    generator = seeded(6)
    grad = normal(generator, *case.z.shape)
    torch.library.opcheck(
        OPS.stack_backward.default, (grad, *tensors, count, form_of(case, path.algorithm), path.backend, needs)
    )
    grad = normal(generator, 1, case.z.shape[0], 2)
    options = (count, form_of(case, path.algorithm), 2, False, path.backend, needs)
    torch.library.opcheck(OPS.predict_backward.default, (grad, *tensors, *options))
    assert len(OPS.predict_backward(grad, *tensors, *options)) == sum(needs)


@on_every_backend
def test_backwards_of_layers_and_quadratics(backend: str) -> None:
    generator = seeded(7)
    tensors = _layer_tensors(per_head=True)
    needs = _needs(tensors)
    grads = normal(generator, 3, 6, 4), normal(generator, 3, 2, 6, 4)
    torch.library.opcheck(
        OPS.layer_backward.default, (*grads, *_detached(tensors), 4, _layer_form(per_head=True), backend, needs)
    )
    tensors = _quadratic_tensors(full=True)
    grad = normal(generator, 1, 3, 2)
    options = (False, backend, _needs(tensors))
    torch.library.opcheck(OPS.lfom_solve_backward.default, (grad, *_detached(tensors), *options))


@on_every_backend
def test_register_update(backend: str) -> None:
    """Its backward takes no tokens: their gradient is the result's own."""
    z, *registers = (normal(seeded(place), 3, 4, 2).requires_grad_() for place in range(3))
    gamma = normal(seeded(8), 2, 4).requires_grad_()
    torch.library.opcheck(OPS.register_update.default, (z, registers, gamma, backend))
    grad, read = normal(seeded(9), 3, 4, 2), ([x.detach() for x in registers], gamma.detach())
    torch.library.opcheck(OPS.register_update_backward.default, (grad, *read, backend, [True, False, True]))


@on_every_path
def test_only_needed_gradients_are_made(path: Path) -> None:
    case = make_case(tokens=6, layers=2, context=4)
    tensors, count = _network(case)
    tensors = _detached(tensors)
    grad = normal(seeded(8), 3, 6, 4)
    everything = OPS.stack_backward(
        grad, *tensors, count, form_of(case, path.algorithm), path.backend, [True] * 4 + [False] * 3
    )
    for place in range(4):
        needs = [index == place for index in range(7)]
        (alone,) = OPS.stack_backward(grad, *tensors, count, form_of(case, path.algorithm), path.backend, needs)
        assert torch.equal(alone, everything[place])


@pytest.mark.parametrize("name", [*NAMES, *BACKWARDS])
def test_schema(name: str) -> None:
    schema = getattr(OPS, name).default._schema
    assert not schema.is_mutable
    assert all(value.alias_info is None for value in (*schema.arguments, *schema.returns))
    kinds = [str(argument.type) for argument in schema.arguments]
    tensor_places = [place for place, kind in enumerate(kinds) if "Tensor" in kind]
    assert tensor_places == list(range(len(tensor_places))), "tensors come first"
    assert "backend" in [argument.name for argument in schema.arguments[-2:]]


def test_there_are_no_other_operations() -> None:
    known = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("memformer_kernels::")}
    assert known == {f"memformer_kernels::{name}" for name in (*NAMES, *BACKWARDS)}


def test_schema_names_are_the_mathematics() -> None:
    schema = str(OPS.stack.default._schema)
    tensors = ", ".join(("Tensor z, Tensor q", *(f"Tensor? {x}" for x in ("p", "gamma", "beta", "lengths", "weights"))))
    assert f"({tensors}, " in schema
    assert re.search(r"SymInt context, str form, str backend\) -> Tensor$", schema)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_fakes_tell_shapes_and_dtypes(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    backend, form = BACKENDS[0], "gram, response-only, linear"
    with FakeTensorMode():
        z = torch.empty(5, 7, 4, dtype=dtype)
        q = torch.empty(3, 2, 3, 3, dtype=dtype)
        network = (z, q, None, None, None, None, None, 6)
        made = {
            "stack": (OPS.stack(*network, form, backend), (5, 7, 4), dtype),
            "predict": (OPS.predict(*network, form, 2, False, backend), (1, 5, 2), wide),
            "all layers": (OPS.predict(*network, form, 2, True, backend), (3, 5, 2), wide),
            "prefixes": (OPS.prefix_predict(*network[:5], 2, form, True, "torch"), (3, 5, 5), wide),
            "gram": (OPS.context_gram(z, None, 6, backend), (5, 4, 4), wide),
            "layer": (OPS.layer(z, q[0], None, [], None, None, None, None, 6, form, backend)[1], (5, 1, 7, 4), dtype),
        }
    for name, (result, shape, kind) in made.items():
        assert tuple(result.shape) == shape, name
        assert result.dtype == kind, name


def test_meta_tensors_give_shapes() -> None:
    z = torch.empty(5, 7, 4, device="meta")
    q = torch.empty(3, 2, 3, 3, device="meta")
    assert memformer_stack(z, q).shape == (5, 7, 4)
    assert memformer_predict(z, q, layers=True).shape == (3, 5, 1)
