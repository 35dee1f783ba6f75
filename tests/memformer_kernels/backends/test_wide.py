"""The native kernels for response-only networks that are not tiny: sizes, layouts, orders of summation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import explain, lfom_solve, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import FLOAT64_ERROR, Case, float64_violations, public, relative_error, twin_violations
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.memformer_kernels.native import (
    LAYOUTS,
    assert_a_spoilt_task_spoils_no_other,
    assert_same_bits_on_threads,
    instruction_set,
    with_gradients,
)

__all__ = ["instruction_set"]

RULES = [
    ("linear", "scalar"),
    ("cgd", "scalar"),
    ("recursive", "feature"),
    ("lfom", "feature"),
    ("lfom_shared", "feature"),
    ("gated_heads", "feature"),
    ("lfom", "full"),
    ("recursive", "full"),
    ("gated_heads", "token"),
]
ON_RULES = pytest.mark.parametrize(("rule", "granularity"), RULES)
# Wider than a lane's task, and longer than its tokens.
ON_SPACES = pytest.mark.parametrize("sizes", [{"width": 21, "tokens": 30}, {"width": 4, "tokens": 131}], ids=str)


def _case(**options: Any) -> Case:
    return make_case(**{"structure": "response-only", **options})


def _algorithms(case: Case) -> list[str]:
    """Those that the wide kernels serve: Gram space without a token axis, where D is too large for a lane."""
    gram = not case.token_axis and case.z.shape[2] > 17
    return ["gram", "token"] if gram else ["token"]


def _assert_right(case: Case, twin: bool = False) -> None:
    for algorithm in _algorithms(case):
        found = explain(
            case.z, case.q, None, case.gamma, case.beta, case.gate, context=case.context, algorithm=algorithm
        )
        assert (found.backend, found.regime) == ("cpu", "wide Gram" if algorithm == "gram" else "wide token")
        assert float64_violations(public("cpu", algorithm), case) == {}
        if twin:
            assert twin_violations(public("cpu", algorithm), case) == {}


@ON_RULES
def test_every_instruction_set(instruction_set: str, rule: str, granularity: str) -> None:
    _assert_right(_case(rule=rule, granularity=granularity, width=21, tokens=26, tasks=3))
    _assert_right(_case(rule=rule, granularity=granularity, width=3, tokens=135, tasks=3))


@pytest.mark.parametrize("width", [*range(18, 36), 50, 65, 130, 256, 257])
def test_every_width(instruction_set: str, width: int) -> None:
    _assert_right(_case(width=width, tokens=width + 9, layers=2, heads=1, tasks=2))


@pytest.mark.parametrize("tokens", [129, 130, 143, 144, 145, 160, 161])
def test_every_length(instruction_set: str, tokens: int) -> None:
    _assert_right(_case(width=5, tokens=tokens, granularity="full", layers=2, heads=1, tasks=2))


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 20, "tokens": 40, "heads": 1},
        pytest.param({"width": 20, "tokens": 40, "rule": "gated_heads", "layers": 2}, marks=pytest.mark.slow),
        {"width": 33, "tokens": 20, "heads": 1, "granularity": "full", "layers": 2},
        {"width": 5, "tokens": 140, "heads": 1, "rule": "recursive", "granularity": "token", "layers": 2},
    ],
    ids=str,
)
def test_float32_errs_as_its_twin(sizes: dict[str, Any]) -> None:
    _assert_right(_case(tasks=1024, **sizes), twin=True)


@ON_SPACES
@pytest.mark.parametrize("granularity", ["feature", "full"])
@pytest.mark.parametrize(
    "contexts",
    [
        {"context": 17, "queries": 3},
        {"context": 9},
        {"context": 30},
        {"context": torch.tensor([1, 28, 13])},
        {"context": torch.tensor([27, 1, 13]), "queries": 3},
        {"context": torch.tensor([30, 1, 29]), "queries": 0},
    ],
    ids=str,
)
def test_contexts(sizes: dict[str, int], granularity: str, contexts: dict[str, Any]) -> None:
    _assert_right(_case(granularity=granularity, **sizes, **contexts))


@ON_SPACES
@pytest.mark.parametrize("granularity", ["feature", "full"])
@pytest.mark.parametrize("context", [11, torch.tensor([11, 1, 7])], ids=["int", "ragged"])
def test_padding_is_never_read(sizes: dict[str, int], granularity: str, context: int | Tensor) -> None:
    case = _case(granularity=granularity, context=context, queries=2, **sizes).to(torch.float64)
    spoilt = case.z.detach().clone()
    lengths = torch.as_tensor(context).expand(3)
    for z, n in zip(spoilt, lengths.tolist(), strict=True):
        z[n:-2] = torch.nan
    target = normal(seeded(1), 3, 2)
    for algorithm in _algorithms(case):
        made = []
        for z in (case.z, spoilt.requires_grad_()):
            own = list(leaves(replace(case, z=z)).values())
            network = (z, target, case.q, *case.parameters)
            loss = memformer_loss(*network, context=context, queries=2, algorithm=algorithm)
            made.append([loss, *torch.autograd.grad(loss, own)])
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
        for grad, n in zip(made[1][1], lengths.tolist(), strict=True):
            assert not grad[n:-2].any()


@pytest.mark.parametrize("tokens", [33, 64, 65, 97, 513, 1100])
def test_long_contexts(tokens: int) -> None:
    """Any number of blocks of 32 examples, and of sums of as many of those as stay in a cache."""
    _assert_right(_case(width=35, tokens=tokens, layers=2, heads=1, tasks=2))
    _assert_right(_case(width=35, tokens=tokens, layers=2, heads=1, tasks=2, context=torch.tensor([tokens - 1, 1])))


@pytest.mark.parametrize("granularity", ["feature", "full"])
def test_float32_errors_do_not_grow_with_the_context(granularity: str) -> None:
    case = _case(width=20, tokens=20_000, layers=2, heads=1, tasks=1, granularity=granularity)
    exact = memformer_predict(case.z, case.q, *case.parameters, backend="cpu")
    single = case.to(torch.float32)
    made = memformer_predict(single.z, single.q, *single.parameters, backend="cpu").detach()
    assert relative_error(made, exact) < 20 * torch.finfo(torch.float32).eps


def _everything(tasks: int, dtype: torch.dtype) -> list[Tensor]:
    made: list[Tensor] = []
    for sizes, granularity in (({"width": 19, "tokens": 24}, "feature"), ({"width": 3, "tokens": 130}, "full")):
        case = _case(tasks=tasks, layers=2, granularity=granularity, **sizes).to(dtype)
        network, own = (case.q, *case.parameters), list(leaves(case).values())
        target = normal(seeded(5), tasks, 1).to(dtype)
        made += with_gradients(memformer_loss(case.z, target, *network, backend="cpu"), own)
        made += with_gradients(memformer_predict(case.z, *network, layers=True, backend="cpu"), own)
        made += with_gradients(memformer_stack(case.z, *network, backend="cpu"), own)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tasks", [5, 1100])
def test_results_are_the_same_bits_for_any_number_of_threads(tasks: int, dtype: torch.dtype) -> None:
    assert_same_bits_on_threads(lambda: _everything(tasks, dtype))


@ON_SPACES
def test_sums_over_tasks_are_those_of_their_blocks(sizes: dict[str, int]) -> None:
    case = _case(tasks=2100, layers=2, heads=1, **sizes).to(torch.float32)
    parameters = [case.q, case.gamma]

    def gradients(tasks: slice) -> tuple[Tensor, ...]:
        predictions = memformer_predict(case.z[tasks].detach(), case.q, *case.parameters, backend="cpu")
        return torch.autograd.grad(predictions, parameters, torch.ones_like(predictions))

    blocks = [gradients(slice(start, start + 1024)) for start in (0, 1024, 2048)]
    for whole, *parts in zip(gradients(slice(None)), *blocks, strict=True):
        assert torch.equal(whole, torch.stack([part.double() for part in parts]).sum(0).float())


@ON_SPACES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(sizes: dict[str, int], layout: str) -> None:
    case = _case(tasks=5, **sizes).to(torch.float32)
    strided = LAYOUTS[layout](case.z.detach())
    made = []
    for z in (strided, strided.contiguous().clone()):
        leaf = z.detach().requires_grad_()
        tokens = memformer_stack(leaf, case.q, *case.parameters, backend="cpu")
        made.append([tokens, *torch.autograd.grad(tokens, leaf, LAYOUTS[layout](torch.ones_like(tokens)))])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@ON_SPACES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_tokens_are_read_exactly_and_rounded_once(sizes: dict[str, int], dtype: torch.dtype) -> None:
    case = _case(tasks=3, **sizes)
    z = case.z.to(dtype)
    single = replace(case, z=z.float(), q=case.q.float(), gamma=case.gamma.float())  # type: ignore[union-attr]
    network = (single.q, *single.parameters)
    target = normal(seeded(2), 3, 1)
    made, halves = [], []
    for tokens, into in ((single.z, made), (z, halves)):
        leaf = tokens.clone().requires_grad_()
        loss = memformer_loss(leaf, target.to(leaf.dtype), *network, backend="cpu")
        into += [memformer_predict(leaf, *network, layers=True), memformer_stack(leaf, *network)]
        into += torch.autograd.grad(loss, leaf)
    assert torch.equal(halves[0], made[0])
    assert torch.equal(halves[1], made[1].to(dtype))
    budget = torch.finfo(torch.float32).eps * 100 + torch.finfo(dtype).eps
    assert relative_error(halves[2], made[2]) < budget


@ON_SPACES
@pytest.mark.parametrize("granularity", ["feature", "full"])
def test_a_spoilt_task_spoils_no_other(sizes: dict[str, int], granularity: str) -> None:
    case = _case(granularity=granularity, tasks=5, **sizes).to(torch.float64)
    assert_a_spoilt_task_spoils_no_other(case)


@ON_SPACES
@pytest.mark.parametrize("granularity", ["feature", "full"])
def test_no_tasks_and_no_queries(sizes: dict[str, int], granularity: str) -> None:
    for tasks, queries in ((0, 2), (3, 0)):
        case = _case(granularity=granularity, tasks=tasks, **sizes).to(torch.float64)
        network, own = (case.q, *case.parameters), list(leaves(case).values())
        target = torch.zeros(tasks, queries, dtype=torch.float64)
        loss = memformer_loss(case.z, target, *network, context=8, queries=queries, backend="cpu")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, own))


@ON_RULES
def test_derivatives(rule: str, granularity: str) -> None:
    case = _case(rule=rule, granularity=granularity, tasks=2, tokens=4, width=18, layers=2, context=2)
    own = leaves(case)
    for value in own.values():
        value.requires_grad_()
    target = normal(seeded(3), 2, 2).requires_grad_()
    for algorithm in _algorithms(case):

        def loss(target: Tensor, *tensors: Tensor, algorithm: str = algorithm) -> Tensor:
            at = replace(case, **dict(zip(own, tensors, strict=True)))
            return memformer_loss(at.z, target, at.q, *at.parameters, context=2, backend="cpu", algorithm=algorithm)

        assert torch.autograd.gradcheck(loss, (target, *own.values()), fast_mode=True)


def _quadratics(tasks: int, d: int, layers: int = 3) -> list[Tensor]:
    """h, which is not symmetric, b, a, gamma, beta and w0."""
    random = seeded(d)
    draw = [normal(random, tasks, d, d) / d, normal(random, tasks, d), normal(random, layers, d, d) / d]
    return [*draw, normal(random, layers, layers, d), normal(random, layers, d), normal(random, tasks, d)]


@pytest.mark.parametrize("d", [17, 18, 24, 31, 32, 33, 70])
@pytest.mark.parametrize("some", [(), (3,), (4, 5), (3, 4, 5)], ids=["plain", "gamma", "beta, w0", "all"])
def test_quadratics(instruction_set: str, d: int, some: tuple[int, ...]) -> None:
    """Iterates and all gradients against the torch backend in float64, from strided tensors too; float32 near both."""
    given = _quadratics(5, d)
    tensors = [x if k < 3 or k in some else None for k, x in enumerate(given)]
    tensors[0] = given[0].mT.contiguous().mT
    for layers in (False, True):
        made = []
        for backend, dtype in (("torch", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32)):
            own = [None if x is None else x.to(dtype).requires_grad_() for x in tensors]
            assert explain(*own[:3]).regime == "wide Gram"
            h, b, a, gamma, beta, w0 = own
            iterates = lfom_solve(h, b, a, gamma, beta, w0=w0, layers=layers, backend=backend)
            made.append(with_gradients(iterates, [x for x in own if x is not None]))
        for exact, double, single in zip(*([x.detach() for x in one] for one in made), strict=True):
            assert relative_error(double, exact) < FLOAT64_ERROR
            assert relative_error(single, exact) < 30 * torch.finfo(torch.float32).eps


def test_quadratics_give_the_same_bits_for_any_number_of_threads() -> None:
    own = [x.float().requires_grad_() for x in _quadratics(1100, 20)]
    h, b, a, gamma, beta, w0 = own
    assert_same_bits_on_threads(lambda: with_gradients(lfom_solve(h, b, a, gamma, beta, w0=w0, layers=True), own))


def test_dispatch_by_size() -> None:
    def regime(
        width: int, tokens: int, structure: str = "response-only", granularity: str = "scalar"
    ) -> tuple[str, str]:
        case = _case(structure=structure, granularity=granularity, width=width, tokens=tokens, tasks=1, layers=1)
        return explain(case.z, case.q, *case.parameters)[0:3:2]

    assert regime(18, 500) == ("cpu", "wide Gram")
    assert regime(512, 600) == ("cpu", "wide Gram")
    assert regime(513, 600) == ("torch", "large")
    assert regime(17, 20, granularity="token") == ("cpu", "wide token")
    assert regime(4, 129, granularity="token") == ("cpu", "wide token")
    assert regime(40, 20) == ("cpu", "wide token")
    assert regime(18, 500, structure="block") == ("cpu", "wide Gram")
    assert regime(18, 20, structure="dense", granularity="token") == ("torch", "tile")
    for d, chosen in ((17, ("cpu", "wide Gram")), (256, ("cpu", "wide Gram")), (257, ("torch", "large"))):
        assert explain(*_quadratics(1, d)[:3])[0:3:2] == chosen
