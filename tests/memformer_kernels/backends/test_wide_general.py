"""The native kernels for networks whose features move, where D x D matrices are too large for a lane."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import explain, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import Case, float64_violations, public, relative_error, twin_violations
from tests.marks import slow_but
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.memformer_kernels.native import (
    LAYOUTS,
    assert_a_spoilt_task_spoils_no_other,
    assert_same_bits_on_threads,
    instruction_set,
    with_gradients,
)

__all__ = ["instruction_set"]

NATIVE = public("cpu", "gram")

RULES = [
    ("linear", "scalar"),
    ("cgd", "scalar"),
    ("recursive", "feature"),
    ("lfom", "feature"),
    ("lfom_shared", "feature"),
    ("gated_heads", "feature"),
]
ON_STRUCTURES = pytest.mark.parametrize("structure", ["block", "dense"])


def _case(**options: Any) -> Case:
    return make_case(**{"width": 19, "tokens": 24, **options})


def _assert_right(case: Case, twin: bool = False) -> None:
    found = explain(case.z, case.q, case.p, case.gamma, case.beta, case.gate, context=case.context, algorithm="gram")
    assert (found.backend, found.regime) == ("cpu", "wide Gram")
    assert float64_violations(NATIVE, case) == {}
    if twin:
        assert twin_violations(NATIVE, case) == {}


@ON_STRUCTURES
@pytest.mark.parametrize(("rule", "granularity"), RULES)
def test_every_rule(instruction_set: str, structure: str, rule: str, granularity: str) -> None:
    _assert_right(_case(structure=structure, rule=rule, granularity=granularity))


@ON_STRUCTURES
@pytest.mark.parametrize("width", slow_but([17, 18, 32, 33], [*range(19, 32), 63, 64, 65, 130, 256]))
def test_every_width(instruction_set: str, structure: str, width: int) -> None:
    _assert_right(_case(structure=structure, width=width, tokens=width + 5, layers=2, heads=1, tasks=2))


@ON_STRUCTURES
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_depth(structure: str, layers: int) -> None:
    _assert_right(_case(structure=structure, layers=layers, tasks=2))


@ON_STRUCTURES
@pytest.mark.parametrize(
    "contexts",
    [
        {"context": 17, "queries": 3},
        {"context": 9},
        {"context": 24},
        {"tokens": 70, "context": 66, "queries": 2},
        {"context": torch.tensor([1, 23, 13])},
        {"context": torch.tensor([21, 1, 13]), "queries": 3},
        {"context": torch.tensor([24, 1, 23]), "queries": 0},
    ],
    ids=str,
)
def test_contexts(structure: str, contexts: dict[str, Any]) -> None:
    _assert_right(_case(structure=structure, **contexts))


@pytest.mark.parametrize("tokens", [65, 513, 1100])
def test_long_contexts(tokens: int) -> None:
    _assert_right(_case(tokens=tokens, layers=2, heads=1, tasks=2, context=torch.tensor([tokens - 1, 1])))


@pytest.mark.parametrize(
    "options", slow_but([{"structure": "block", "heads": 1}], [{"structure": "dense", "rule": "gated_heads"}]), ids=str
)
def test_float32_errs_as_its_twin(options: dict[str, Any]) -> None:
    _assert_right(_case(tasks=1024, layers=3, **options), twin=True)


@ON_STRUCTURES
@pytest.mark.parametrize("context", [11, torch.tensor([11, 1, 7])], ids=["int", "ragged"])
@pytest.mark.parametrize("spoilt_too", [False, True])
def test_padding_is_never_read(structure: str, context: int | Tensor, spoilt_too: bool) -> None:
    """Padding has zero gradient, be it that of a task with an example that is no number."""
    case = _case(structure=structure, context=context, queries=2).to(torch.float64)
    lengths = torch.as_tensor(context).expand(3)
    spoilt = case.z.detach().clone()
    for z, n in zip(spoilt, lengths.tolist(), strict=True):
        z[n:-2] = torch.nan
    if spoilt_too:
        spoilt[0, 0, 0] = torch.nan
    target = normal(seeded(1), 3, 2)
    made = []
    for z in (case.z, spoilt.requires_grad_()):
        own = list(leaves(replace(case, z=z)).values())
        loss = memformer_loss(z, target, case.q, *case.parameters, context=context, queries=2, algorithm="gram")
        made.append([loss, *torch.autograd.grad(loss, own)])
    if not spoilt_too:
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    for grad, n in zip(made[1][1], lengths.tolist(), strict=True):
        assert not grad[n:-2].any()


def test_a_spoilt_task_spoils_no_other() -> None:
    case = _case(tasks=5).to(torch.float64)
    assert_a_spoilt_task_spoils_no_other(case)


def test_squares_of_responses_may_overflow() -> None:
    """Block structure never reads sum_i y_i^2, so that responses of 1e25 are no more than linear."""
    case = _case(structure="block", rule="linear", granularity="scalar", tasks=2).to(torch.float32)
    network = (case.q, *case.parameters)
    large = case.z.detach().clone()
    large[..., -1] *= 1e25
    made = memformer_predict(large, *network, backend="cpu") / 1e25
    assert relative_error(made.detach(), memformer_predict(case.z, *network, backend="cpu").detach()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tasks", [5, 1100])
def test_results_are_the_same_bits_for_any_number_of_threads(tasks: int, dtype: torch.dtype) -> None:
    case = _case(tasks=tasks, width=17, layers=2).to(dtype)
    network, own = (case.q, *case.parameters), list(leaves(case).values())
    target = normal(seeded(5), tasks, 1).to(dtype)
    assert_same_bits_on_threads(
        lambda: [
            *with_gradients(memformer_loss(case.z, target, *network, backend="cpu"), own),
            *with_gradients(memformer_stack(case.z, *network, backend="cpu"), own),
        ]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    case = _case(tasks=5).to(torch.float32)
    strided = LAYOUTS[layout](case.z.detach())
    made = []
    for z in (strided, strided.contiguous().clone()):
        leaf = z.detach().requires_grad_()
        tokens = memformer_stack(leaf, case.q, *case.parameters, backend="cpu")
        made.append([tokens, *torch.autograd.grad(tokens, leaf, LAYOUTS[layout](torch.ones_like(tokens)))])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("wanted", ["z", "q", "p", "gamma"])
def test_each_gradient_alone(wanted: str) -> None:
    """What is asked for alone has the bits that it has among all."""
    case = _case().to(torch.float32)
    target, made = normal(seeded(2), 3, 1).float(), []
    for alone in (False, True):
        own = {name: x.detach().requires_grad_(not alone or name == wanted) for name, x in leaves(case).items()}
        at = replace(case, **own)
        loss = memformer_loss(at.z, target, at.q, *at.parameters, backend="cpu", algorithm="gram")
        made.append(torch.autograd.grad(loss, own[wanted])[0])
    assert torch.equal(*made)


@ON_STRUCTURES
def test_no_tasks_and_no_queries(structure: str) -> None:
    for tasks, queries in ((0, 2), (3, 0)):
        case = _case(structure=structure, tasks=tasks).to(torch.float64)
        network, own = (case.q, *case.parameters), list(leaves(case).values())
        target = torch.zeros(tasks, queries, dtype=torch.float64)
        loss = memformer_loss(case.z, target, *network, context=8, queries=queries, backend="cpu", algorithm="gram")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, own))


@ON_STRUCTURES
@pytest.mark.parametrize(("rule", "granularity"), slow_but([("lfom", "feature")], RULES))
def test_derivatives(structure: str, rule: str, granularity: str) -> None:
    case = _case(structure=structure, rule=rule, granularity=granularity, tasks=2, tokens=4, layers=2, context=2)
    own = leaves(case)
    for value in own.values():
        value.requires_grad_()
    target = normal(seeded(3), 2, 2).requires_grad_()

    def loss(target: Tensor, *tensors: Tensor) -> Tensor:
        at = replace(case, **dict(zip(own, tensors, strict=True)))
        return memformer_loss(at.z, target, at.q, *at.parameters, context=2, backend="cpu", algorithm="gram")

    assert torch.autograd.gradcheck(loss, (target, *own.values()), fast_mode=True)


def test_dispatch_by_size() -> None:
    def chosen(structure: str, width: int, tokens: int = 600, granularity: str = "scalar") -> tuple[str, str]:
        case = _case(structure=structure, width=width, tokens=tokens, granularity=granularity, tasks=1, layers=1)
        return explain(case.z, case.q, *case.parameters)[0:3:2]

    for structure in ("block", "dense"):
        assert chosen(structure, 16) == ("cpu", "tiny Gram")
        assert chosen(structure, 17) == chosen(structure, 256) == ("cpu", "wide Gram")
        assert chosen(structure, 257) == ("torch", "large")
        # Fewer tokens than features, or coefficients of their own: torch works on the tokens.
        assert chosen(structure, 40, tokens=20) == chosen(structure, 18, 20, "token") == ("torch", "tile")
