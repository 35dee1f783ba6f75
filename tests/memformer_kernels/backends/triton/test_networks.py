"""Networks on the Triton kernels against the literal reference: outputs and every gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.launch import compiling_for
from memformer_kernels.testing import FLOAT64_ERROR, Case, float64_violations, public, relative_error, twin_violations
from tests.marks import slow_but
from tests.memformer_kernels import golden
from tests.memformer_kernels.cases import GRANULARITIES, RULES, leaves, make_case, normal, seeded

ALGORITHMS = ("gram", "token")
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33)
# On tokens these files are long work for an interpreter.
GOLDEN = [
    pytest.param(name, algorithm, marks=[pytest.mark.slow] if name != "cgd_scalar" or algorithm == "token" else [])
    for name, algorithm in golden.IN_SPACES
]
RULES_IN_SPACES = [
    (rule, granularity, algorithm)
    for rule in RULES
    for granularity in GRANULARITIES
    for algorithm in (("token",) if make_case(rule=rule, granularity=granularity).token_axis else ALGORITHMS)
]


def _violations(case: Case, algorithm: str = "gram") -> dict[str, float]:
    return float64_violations(public("triton", algorithm), case)


@pytest.mark.parametrize(("name", "algorithm"), GOLDEN)
def test_golden_files(name: str, algorithm: str) -> None:
    """The tokens and the loss of the published code, and every gradient, by the fused loss."""
    file = golden.load(name)
    case = file.own_case()
    assert case.target is not None
    tokens = memformer_stack(case.z, case.q, *case.parameters, backend="triton", algorithm=algorithm)
    assert relative_error(tokens.detach(), file.tokens) <= FLOAT64_ERROR
    loss = memformer_loss(case.z, case.target, case.q, *case.parameters, backend="triton", algorithm=algorithm)
    assert relative_error(loss.detach(), file.loss) <= FLOAT64_ERROR
    for key, grad in zip(file.leaves, torch.autograd.grad(loss, list(file.leaves.values())), strict=True):
        assert relative_error(grad, file.grads[key]) <= FLOAT64_ERROR, key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm"), GOLDEN)
def test_golden_files_in_float32_are_within_the_twin_budget(name: str, algorithm: str) -> None:
    assert twin_violations(public("triton", algorithm), golden.load(name).own_case()) == {}


HOT: dict[str, tuple[str, dict[str, Any]]] = {
    "workload W": ("gram", {"structure": "response-only", "heads": 1, "layers": 4, "tokens": 21, "width": 6}),
    "workload W, full gamma": (
        "token",
        {"structure": "response-only", "heads": 1, "layers": 2, "tokens": 11, "width": 6, "granularity": "full"},
    ),
    "response-only tile": ("gram", {"structure": "response-only", "heads": 1, "tokens": 40, "width": 17, "layers": 2}),
    "Gram matrix apart": (
        "gram",
        {"structure": "response-only", "heads": 1, "tokens": 40, "width": 33, "layers": 2, "tasks": 2},
    ),
    "Gram matrix apart, padding": (
        "gram",
        {"structure": "response-only", "tokens": 40, "context": 33, "queries": 3, "width": 35, "rule": "recursive"},
    ),
    "64 features": ("gram", {"structure": "response-only", "heads": 1, "tokens": 37, "width": 65, "layers": 2}),
    "128 features": ("gram", {"structure": "response-only", "tokens": 9, "width": 129, "layers": 2, "tasks": 1}),
    "block tile": ("gram", {"heads": 1, "tokens": 5, "width": 17, "layers": 2, "tasks": 1}),
    "dense tile on tokens": (
        "token",
        {"structure": "dense", "tokens": 20, "width": 17, "layers": 2, "heads": 1, "tasks": 1},
    ),
    "linear": ("gram", {"rule": "linear", "layers": 2}),
    "cgd": ("gram", {"rule": "cgd", "granularity": "scalar", "structure": "response-only"}),
    "recursive, beta for each entry": ("token", {"rule": "recursive", "granularity": "full", "layers": 2}),
    "recursive, heads": ("gram", {"rule": "recursive", "structure": "response-only"}),
    "gated heads": ("gram", {"rule": "gated_heads", "structure": "response-only"}),
    "gated heads on tokens": ("token", {"rule": "gated_heads", "granularity": "token", "layers": 2}),
    "shared gamma": ("gram", {"rule": "lfom_shared", "layers": 2}),
    "response column, heads": ("token", {"structure": "response-only", "rule": "recursive", "granularity": "token"}),
    "response column, gated heads, padding": (
        "token",
        {
            "structure": "response-only",
            "rule": "gated_heads",
            "granularity": "full",
            "tokens": 9,
            "context": 4,
            "queries": 2,
        },
    ),
    "response column, one weight for all": ("token", {"structure": "response-only", "rule": "cgd", "tasks": 150}),
    "one token": ("gram", {"tokens": 1, "context": 1, "layers": 2}),
    "padding": ("gram", {"tokens": 9, "context": 4, "queries": 2, "structure": "response-only"}),
    "padding on tokens": ("token", {"tokens": 9, "context": 4, "queries": 2, "granularity": "token", "layers": 2}),
    "response alone": ("gram", {"structure": "dense", "width": 1, "layers": 2}),
    "split context": ("gram", {"structure": "response-only", "tokens": 300, "width": 3, "layers": 1, "heads": 1}),
}


# The virtual GPU runs compiled kernels sooner than Triton's interpreter: here are ways that no other quick test goes.
QUICK = (
    "workload W, full gamma",
    "Gram matrix apart",
    "block tile",
    "gated heads",
    "response column, gated heads, padding",
    "response alone",
)
assert {*QUICK} <= {*HOT}


@pytest.mark.parametrize("name", slow_but(QUICK, HOT))
def test_results_and_gradients(name: str) -> None:
    algorithm, sizes = HOT[name]
    assert _violations(make_case(**sizes), algorithm) == {}


AWKWARD = [(tokens, width) for tokens, width in zip(SIZES, (3, 7, 33, 2, 15, 8, 17, 16, 2), strict=True)]


@pytest.mark.parametrize(("tokens", "width"), slow_but(lambda tokens, width: max(tokens, width) < 16, AWKWARD))
def test_awkward_sizes(tokens: int, width: int) -> None:
    context = max(tokens - 1, 1)
    sizes = {"tokens": tokens, "width": width, "context": context, "layers": 2, "heads": 1, "tasks": 2}
    assert _violations(make_case(structure="response-only", **sizes)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("width", [size for size in SIZES if size > 1])
@pytest.mark.parametrize("tokens", SIZES)
def test_every_awkward_size(tokens: int, width: int, structure: str, algorithm: str) -> None:
    context = max(tokens - 1, 1)
    case = make_case(structure=structure, tokens=tokens, width=width, context=context, layers=1, heads=1, tasks=1)
    assert _violations(case, algorithm) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "granularity", "algorithm"), RULES_IN_SPACES)
@pytest.mark.parametrize("structure", ["response-only", "block", "dense q, block p"])
def test_every_rule(structure: str, rule: str, granularity: str, algorithm: str) -> None:
    case = make_case(structure=structure, rule=rule, granularity=granularity, layers=2, tasks=2)
    assert _violations(case, algorithm) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "algorithm", "tasks"),
    [("response-only", "gram", 1024), ("block", "gram", 64), ("response-only", "token", 64)],
)
def test_float32_is_within_the_twin_budget_over_many_tasks(structure: str, algorithm: str, tasks: int) -> None:
    case = make_case(structure=structure, tasks=tasks, tokens=21, width=6, heads=1, layers=4)
    assert twin_violations(public("triton", algorithm), case) == {}


@pytest.mark.parametrize(
    ("structure", "algorithm"),
    slow_but([("response-only", "gram")], [("response-only", "gram"), ("response-only", "token"), ("block", "token")]),
)
def test_sums_over_many_tasks_of_one_program(structure: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as one adds up in a large batch: in several steps, whose sums are put together."""
    monkeypatch.setattr(rules, "tasks_a_sum", lambda *_: rules.TASKS_A_BLOCK)
    case = make_case(structure=structure, tasks=140, tokens=3, width=2, layers=1, heads=1)
    assert len(case.z) > rules.LANES * rules.TASKS_AT_ONCE
    assert _violations(case, algorithm) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", slow_but(["response-only"], ["response-only", "block"]))
def test_ragged_contexts(structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, context=torch.tensor([2, 5, 1]), queries=2, layers=2)
    assert _violations(case, algorithm) == {}


def test_the_loss_of_ragged_contexts_with_padding() -> None:
    lengths = torch.tensor([2, 5, 1])
    case = make_case(structure="response-only", context=lengths).to(torch.float64)
    target = normal(seeded(1), 3, 1)

    def run(backend: str) -> list[Tensor]:
        arguments = (case.z, target, case.q, *case.parameters)
        loss = memformer_loss(*arguments, context=lengths, queries=1, backend=backend, algorithm="gram")
        return [loss, *torch.autograd.grad(loss, [case.z, case.q, case.gamma])]  # type: ignore[list-item]

    for made, exact in zip(run("triton"), run("torch"), strict=True):
        assert relative_error(made.detach(), exact.detach()) <= FLOAT64_ERROR
    grad = run("triton")[1]
    for task, length in enumerate(lengths.tolist()):
        assert not grad[task, length:-1].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_strided_tokens(algorithm: str) -> None:
    case = make_case(structure="block", layers=1, heads=1)
    wide = normal(seeded(2), 6, 4, 9)
    strided = wide[::2, :, 1:8].transpose(1, 2)
    assert not strided.is_contiguous()
    moved = replace(case, z=strided)
    assert _violations(moved, algorithm) == {}
    network = (case.q, *case.parameters)
    made = memformer_stack(strided, *network, backend="triton", algorithm=algorithm)
    again = memformer_stack(strided.contiguous(), *network, backend="triton", algorithm=algorithm)
    assert torch.equal(made, again)


@pytest.mark.parametrize(
    ("structure", "algorithm", "width"),
    [
        ("response-only", "gram", 4),
        ("response-only", "gram", 17),
        ("response-only", "gram", 33),
        ("block", "gram", 3),
        ("response-only", "token", 4),
    ],
)
def test_a_spoilt_task_spoils_itself_alone(structure: str, algorithm: str, width: int) -> None:
    case = make_case(structure=structure, tasks=3, context=5, width=width, layers=2, heads=1).to(torch.float64)
    target = normal(seeded(3), 3, 2)
    spoilt = case.z.detach().clone()
    spoilt[1, 0, 0] = torch.nan
    kept = [0, 2]

    def run(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = z.detach().requires_grad_()
        network = (case.q, *case.parameters)
        options: dict[str, Any] = {"context": 5, "backend": "triton", "algorithm": algorithm}
        predictions = memformer_predict(z, *network, **options)
        loss = memformer_loss(z, target, *network, **options)
        z_grad, q_grad = torch.autograd.grad(loss, [z, case.q])
        return predictions.detach(), loss.detach(), z_grad, q_grad

    clean, made = run(case.z), run(spoilt)
    assert torch.equal(made[0][kept], clean[0][kept])
    assert made[0][1].isnan().all()
    assert made[1].isnan()
    assert torch.equal(made[2][kept], clean[2][kept])
    assert made[2][1].isnan().any()
    assert made[3].isnan().all()


@pytest.mark.parametrize(
    ("structure", "algorithm"), [("block", "gram"), ("block", "token"), ("response-only", "token")]
)
def test_nothing_reads_padding(structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, tokens=9, context=4, queries=2, layers=2, heads=1).to(torch.float64)
    poisoned = case.z.detach().clone()
    poisoned[:, 4:7] = torch.nan
    poisoned.requires_grad_()
    options: dict[str, Any] = {"context": 4, "queries": 2, "backend": "triton", "algorithm": algorithm}
    network = (case.q, *case.parameters)
    made = memformer_predict(poisoned, *network, **options)
    assert torch.equal(made, memformer_predict(case.z, *network, **options))
    grad, q_grad = torch.autograd.grad(made.sum(), [poisoned, case.q])
    assert not grad[:, 4:7].any()
    assert grad[:, :4].isfinite().all()
    assert q_grad.isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_tasks_and_no_queries(algorithm: str) -> None:
    for tasks, queries in ((0, 1), (2, 0)):
        case = make_case(structure="block", tasks=tasks, layers=2).to(torch.float64)
        target = torch.zeros(tasks, queries, dtype=torch.float64)
        options: dict[str, Any] = {"context": 4, "queries": queries, "backend": "triton", "algorithm": algorithm}
        network = (case.q, *case.parameters)
        assert memformer_predict(case.z, *network, **options).shape == (tasks, queries)
        loss = memformer_loss(case.z, target, *network, **options)
        assert loss.isnan()
        for grad in torch.autograd.grad(loss, list(leaves(case).values())):
            assert not grad.any()


@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "token")])
def test_float16_tokens_with_float32_parameters(structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, layers=2, heads=1)
    half = case.z.half().requires_grad_()
    parameters = [None if x is None else x.float().requires_grad_() for x in (case.q, *case.parameters)]
    given = [x for x in parameters if x is not None]

    def run(backend: str) -> tuple[Tensor, ...]:
        tokens = memformer_stack(half, *parameters, backend=backend, algorithm=algorithm)  # type: ignore[arg-type]
        assert tokens.dtype == torch.float16
        return tokens.detach(), *torch.autograd.grad(tokens.float().sum(), [half, *given])

    for made, expected in zip(run("triton"), run("torch"), strict=True):
        assert made.dtype == expected.dtype
        torch.testing.assert_close(made, expected, rtol=3e-3, atol=3e-3)


def test_wider_tasks_than_a_tile() -> None:
    case = make_case(structure="response-only", width=130, tokens=3, layers=1, heads=1, tasks=2)
    assert _violations(case) == {}


@pytest.mark.slow
def test_the_same_call_gives_the_same_bits() -> None:
    case = make_case(tasks=70, structure="response-only", heads=1).to(torch.float32)
    target = torch.ones(70, 1)

    def run() -> tuple[Tensor, ...]:
        loss = memformer_loss(case.z, target, case.q, *case.parameters, backend="triton", algorithm="gram")
        return loss.detach(), *torch.autograd.grad(loss, list(leaves(case).values()))

    for once, again in zip(run(), run(), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("width", slow_but((6,), [6, 65]))
def test_configurations_of_other_architectures_compute_the_same(width: int) -> None:
    """For Ampere fewer narrow tasks a program, and from 65 features a matrix that is read again."""
    tasks = 20 if width == 6 else 2
    case = make_case(structure="response-only", width=width, tasks=tasks, tokens=4, layers=2, heads=1).to(torch.float64)
    target = torch.ones(tasks, 1, dtype=torch.float64)

    def run(architecture: int) -> tuple[Tensor, ...]:
        with compiling_for(architecture):
            loss = memformer_loss(case.z, target, case.q, *case.parameters, backend="triton", algorithm="gram")
        return loss.detach(), *torch.autograd.grad(loss, list(leaves(case).values()))

    for made, expected in zip(run(80), run(90), strict=True):
        assert relative_error(made, expected) < FLOAT64_ERROR
