"""Teams of lanes: kernels run block by block on the host and compared with the reference.

Threads take turns between barriers in three orders: whatever misses a barrier gives another result in one of them.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, relative_error
from tests.memformer_kernels.cases import draw_tokens, leaves, make_case, normal, seeded
from tests.native.block_calls import (
    BACKWARD,
    COMPILER,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    LayerCall,
    NetworkCall,
    compile_blocks,
    gram_numbers,
    send,
)

Kernel = Callable[[str], "ctypes._NamedFuncPointer"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}
SOURCES = {"general_tokens": "team_tokens", "general_gram": "team_gram", "layer": "team_layer"}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The host build of a kernel by name, compiled once."""
    built: dict[str, ctypes.CDLL] = {}
    folder: Path = tmp_path_factory.mktemp("blocks")

    def find(name: str) -> "ctypes._NamedFuncPointer":
        if name not in built:
            built[name] = compile_blocks(SOURCES.get(name, name), folder)
        return built[name][name]

    return find


def predictions_of(case: Case) -> Tensor:
    return reference.predict(case.z, case.q, *case.parameters, context=case.context, queries=case.queries)


def check_results(kernel: "ctypes._NamedFuncPointer", given: Case, stack: bool, order: int) -> None:
    """Tokens or the predictions after every layer, and the gradients of all arguments."""
    exact = given.to(torch.float64)
    error = ERROR[given.z.dtype]
    wide = (
        reference.stack(exact.z, exact.q, *exact.parameters, context=exact.context) if stack else predictions_of(exact)
    )
    call = NetworkCall(given, stack=stack, layers=True)
    double = given.z.dtype == torch.float64
    send(kernel, call.numbers(FORWARD), double, order)
    assert relative_error(call.result, wide.detach()) < error
    grad = normal(seeded(5), *wide.shape).to(given.z.dtype)
    send(kernel, call.numbers(BACKWARD, grad), double, order)
    wanted = torch.autograd.grad(wide, list(leaves(exact).values()), grad.double())
    for name, value in zip(leaves(exact), wanted, strict=True):
        assert relative_error(call.grads[name], value) < error, name


def check_loss(kernel: "ctypes._NamedFuncPointer", given: Case, order: int) -> None:
    """The loss alone, and with the gradients of all arguments and of the target."""
    exact = given.to(torch.float64)
    error = ERROR[given.z.dtype]
    predictions = predictions_of(exact)[-1]
    target = normal(seeded(6), *predictions.shape).requires_grad_()
    loss = (predictions - target).square().mean()
    call = NetworkCall(replace(given, target=target.detach().to(given.z.dtype)))
    double = given.z.dtype == torch.float64
    for which in (LOSS, LOSS_BACKWARD):
        send(kernel, call.numbers(which), double, order)
        assert relative_error(call.loss, loss.detach()[None]) < error
    *wanted, target_grad = torch.autograd.grad(loss, [*leaves(exact).values(), target])
    assert relative_error(call.grad_target, target_grad) < error
    for name, value in zip(leaves(exact), wanted, strict=True):
        assert relative_error(call.grads[name], value) < error, name


def check(kernel: "ctypes._NamedFuncPointer", case: Case, dtype: torch.dtype, order: int = 0) -> None:
    given = case.to(dtype)
    check_results(kernel, given, stack=False, order=order)
    check_results(kernel, given, stack=True, order=order)
    check_loss(kernel, given, order)


def case_for(name: str, **sizes: object) -> Case:
    """A case of the structure and granularity that a kernel serves."""
    structure = "response-only" if name == "response_tokens" else "block"
    granularity = "feature" if name == "general_gram" else "full"
    return make_case(**{"structure": structure, "granularity": granularity, **sizes})  # type: ignore[arg-type]


NETWORKS = ("general_gram", "general_tokens", "response_tokens")


@pytest.mark.parametrize("width", [6, 8, 13])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_size(kernel: Kernel, name: str, width: int) -> None:
    """Every instance of float: P and Q in blocks, several heads, padding, a part of a block of tasks."""
    case = case_for(name, tasks=11, tokens=9, width=width, layers=3, context=6, queries=2)
    check(kernel(name), case, torch.float32, order=width)


@pytest.mark.parametrize("width", [6, 13])
@pytest.mark.parametrize("name", NETWORKS)
def test_double(kernel: Kernel, name: str, width: int) -> None:
    case = case_for(name, tasks=5, tokens=7, width=width, layers=3, context=4, queries=3)
    check(kernel(name), case, torch.float64, order=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_ragged_contexts(kernel: Kernel, name: str) -> None:
    lengths = torch.tensor([1, 3, 8, 5, 7, 2, 8, 8, 4])
    check(kernel(name), case_for(name, tasks=9, tokens=9, width=6, layers=2, context=lengths), torch.float32, order=2)


@pytest.mark.parametrize("rule", ["linear", "recursive", "lfom_shared", "lfom_residual"])
@pytest.mark.parametrize("name", NETWORKS)
def test_rules(kernel: Kernel, name: str, rule: str) -> None:
    """Absent, diagonal and shared gamma, a beta with a head axis, coefficients that tokens share."""
    granularity = "scalar" if name == "general_gram" else "token" if rule == "recursive" else "feature"
    structure = "response-only" if name == "response_tokens" else "dense"
    case = make_case(rule=rule, granularity=granularity, structure=structure, tasks=3, tokens=6, width=5, layers=3)
    check(kernel(name), case, torch.float32, order=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_many_tasks(kernel: Kernel, name: str) -> None:
    """Several blocks of 1024 tasks, shared out over a grid that takes them in turn."""
    check(kernel(name), case_for(name, tasks=2100, tokens=5, width=4, layers=2, heads=1), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_cells_in_device_memory(kernel: Kernel, name: str) -> None:
    """Tasks whose cells do not fit in shared memory."""
    tokens = 60 if name == "general_gram" else 128
    layers = 30 if name == "general_gram" else 8
    case = case_for(name, tasks=3, tokens=tokens, width=16, layers=layers, heads=1, context=tokens - 2)
    check(kernel(name), case, torch.float64)


@pytest.mark.slow
def test_long_contexts_in_gram_space(kernel: Kernel) -> None:
    check(kernel("general_gram"), case_for("general_gram", tasks=3, tokens=300, width=5, context=280), torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_tokens(kernel: Kernel, name: str) -> None:
    """bfloat16 tokens: results of the float32 arithmetic on the rounded numbers."""
    case = case_for(name, tasks=4, tokens=6, width=6, layers=2).to(torch.float32)
    rounded = replace(case, z=case.z.detach().bfloat16())
    call, exact = NetworkCall(rounded), replace(case, z=rounded.z.float()).to(torch.float64)
    send(kernel(name), call.numbers(FORWARD), False, 0)
    assert relative_error(call.result, predictions_of(exact)[-1:].detach()) < ERROR[torch.float32]


def test_a_task_that_is_not_finite(kernel: Kernel) -> None:
    """It stays alone in its results; padding and what lies behind a ragged context may hold NaN."""
    sizes = {"tasks": 9, "tokens": 9, "width": 6, "layers": 2, "context": 5, "queries": 1}
    z = case_for("general_tokens", **sizes).z.float()
    z[3, 0, 0] = torch.nan
    z[:, 5:8] = torch.nan
    for name in ("general_tokens", "general_gram", "response_tokens"):
        changed = replace(
            case_for(name, tasks=9, tokens=9, width=6, layers=2, context=5, queries=1).to(torch.float32), z=z
        )
        call = NetworkCall(changed)
        send(kernel(name), call.numbers(FORWARD), False, 0)
        finite = call.result[0].isfinite().all(-1)
        assert finite.tolist() == [task != 3 for task in range(9)], name


@pytest.mark.parametrize(("width", "earlier"), [(6, 2), (8, 0), (11, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_layer(kernel: Kernel, width: int, earlier: int, dtype: torch.dtype) -> None:
    """One layer with registers of earlier layers, forward and backward, gamma and beta per token, head and feature."""
    generator = seeded(3)
    tasks, tokens, heads = 5, 6, 2
    z = draw_tokens(generator, tasks, tokens, width).to(dtype)
    q, p = (normal(generator, heads, width, width, scale=0.2).to(dtype) for _ in range(2))
    past = [normal(generator, tasks, heads, tokens, width).to(dtype) for _ in range(earlier)]
    gamma = normal(generator, earlier + 1, heads, tokens, width).to(dtype)
    beta = normal(generator, heads, 1, width).to(dtype) if earlier else None
    lengths = torch.tensor([1, 6, 3, 5, 2])

    call = LayerCall(z, q, p, past, gamma, beta, lengths)
    double = dtype == torch.float64
    send(kernel("layer"), call.numbers(), double, 2)
    named = {"z": z, "q": q, "p": p, "gamma": gamma, "beta": beta}
    exact = {name: x.double().requires_grad_() for name, x in named.items() if x is not None}
    before = [x.double().requires_grad_() for x in past]
    arguments = (exact["z"], exact["q"], exact["p"], before, exact["gamma"], exact.get("beta"))
    results = reference.layer(*arguments, context=lengths)
    for made, wanted in zip((call.result, call.fresh), results, strict=True):
        assert relative_error(made, wanted.detach()) < ERROR[dtype]

    grads = [normal(generator, *x.shape).to(dtype) for x in results]
    send(kernel("layer"), call.numbers(*grads), double, 2)
    wanted = torch.autograd.grad(results, [*exact.values(), *before], [x.double() for x in grads])
    for name, made, value in zip(
        [*exact, *("register",) * earlier], [*call.grads.values(), *call.grad_earlier], wanted, strict=True
    ):
        assert relative_error(made, value) < ERROR[dtype], name


@pytest.mark.parametrize("width", [1, 6, 17])
@pytest.mark.parametrize("tokens", [7, 700])
def test_context_gram(kernel: Kernel, width: int, tokens: int) -> None:
    """Short contexts, and long ones that are split over blocks; ragged ones; gradients."""
    z = normal(seeded(1), 3, tokens, width).float()
    for context in (tokens - 2, torch.tensor([1, tokens, tokens // 2])):
        lengths = context if isinstance(context, Tensor) else torch.full((3,), context)
        labelled = (torch.arange(tokens) < lengths[:, None])[:, :, None]
        exact = torch.where(labelled, z.double(), 0.0).requires_grad_()
        wanted = exact.mT @ exact
        matrix, grad_z = torch.full((3, width, width), torch.nan), torch.full_like(z, torch.nan)
        poisoned = torch.where(labelled, z, torch.nan)
        send(kernel("context_gram"), gram_numbers(poisoned, context, matrix), False, 1)
        assert relative_error(matrix, wanted.detach()) < ERROR[torch.float32]
        grad = normal(seeded(2), 3, width, width).float()
        send(kernel("context_gram"), gram_numbers(poisoned, context, grad, grad_z), False, 1)
        (expected,) = torch.autograd.grad(wanted, exact, grad.double())
        assert relative_error(grad_z, torch.where(labelled, expected, 0.0)) < ERROR[torch.float32]


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_threads(kernel: Kernel, name: str) -> None:
    """Whatever runs first between two barriers, every bit is the same."""
    case = case_for(name, tasks=9, tokens=6, width=6, layers=2).to(torch.float32)
    target = normal(seeded(6), 9, 1).float()
    results = []
    for order in (0, 1, 5):
        call = NetworkCall(replace(case, target=target))
        send(kernel(name), call.numbers(LOSS_BACKWARD), False, order)
        results.append([call.loss, *call.grads.values()])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
