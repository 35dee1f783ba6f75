"""General networks with one task a thread: blocks run on the host, thread by thread, against the reference."""

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, relative_error
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.native.block_calls import (
    BACKWARD,
    COMPILER,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    NetworkCall,
    compile_blocks,
    send,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]

ERROR = 2e-5


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("thread_gram", tmp_path_factory.mktemp("blocks"))


def thread_case(**changes: object) -> Case:
    sizes = {"structure": "dense", "granularity": "feature", "heads": 1, "tasks": 45, "tokens": 9, "layers": 3}
    return make_case(**{**sizes, **changes})  # type: ignore[arg-type]


def predictions_of(case: Case) -> Tensor:
    arguments = (case.z, case.q, *case.parameters)
    return reference.predict(*arguments, context=case.context, queries=case.queries)


def check(library: ctypes.CDLL, case: Case, order: int = 0) -> None:
    """Predictions after every layer and after the last, the loss, and the gradients of parameters and target."""
    given = case.to(torch.float32)
    exact = given.to(torch.float64)
    wanted = predictions_of(exact)
    named = {name: leaf for name, leaf in leaves(exact).items() if name != "z"}

    every = NetworkCall(given, layers=True)
    send(library.thread_gram, every.numbers(FORWARD, wants_z=False), False, order)
    assert relative_error(every.result, wanted.detach()) < ERROR
    grad = normal(seeded(4), *every.result.shape).float()
    send(library.thread_gram, every.numbers(BACKWARD, grad, wants_z=False), False, order)
    expected = torch.autograd.grad(wanted, list(named.values()), grad.double(), retain_graph=True)
    for name, value in zip(named, expected, strict=True):
        assert relative_error(every.grads[name], value) < ERROR, name

    target = normal(seeded(6), *wanted.shape[1:]).requires_grad_()
    loss = (wanted[-1] - target).square().mean()
    call = NetworkCall(replace(given, target=target.detach().float()))
    *expected, target_grad = torch.autograd.grad(loss, [*named.values(), target])
    for which in (LOSS, LOSS_BACKWARD):
        call.loss.fill_(torch.nan)
        send(library.thread_gram, call.numbers(which, wants_z=False), False, order)
        assert relative_error(call.loss, loss.detach()[None]) < ERROR
    assert relative_error(call.grad_target, target_grad) < ERROR
    for name, value in zip(named, expected, strict=True):
        assert relative_error(call.grads[name], value) < ERROR, name


@pytest.mark.parametrize("structure", ["dense", "block"])
@pytest.mark.parametrize("width", [4, 5, 6])
def test_every_width(library: ctypes.CDLL, width: int, structure: str) -> None:
    check(library, thread_case(width=width, structure=structure, context=5, queries=2), order=width)


@pytest.mark.parametrize("rule", ["linear", "recursive", "lfom_shared", "lfom_residual"])
def test_rules(library: ctypes.CDLL, rule: str) -> None:
    check(library, thread_case(rule=rule, granularity="scalar", width=6), order=1)


def test_ragged_and_long_contexts(library: ctypes.CDLL) -> None:
    """Blocks of 32 rows and what is left of them; whatever lies behind a context may be NaN."""
    lengths = torch.randint(1, 100, (33,), generator=seeded(3))
    case = thread_case(tasks=33, tokens=101, width=5, layers=2, context=lengths)
    check(library, case)
    z = case.z.detach().float()
    call, plain = (NetworkCall(replace(case.to(torch.float32), z=value)) for value in (z.clone(), z))
    behind = torch.arange(101) >= lengths[:, None]
    behind[:, -1] = False
    call.case.z[behind] = torch.nan
    for each in (call, plain):
        send(library.thread_gram, each.numbers(FORWARD, wants_z=False), False, 2)
    assert torch.equal(call.result, plain.result)


def test_bits_do_not_depend_on_the_order_of_threads(library: ctypes.CDLL) -> None:
    case = thread_case(width=6, tasks=70).to(torch.float32)
    found = []
    for order in (0, 1, 7):
        call = NetworkCall(replace(case, target=normal(seeded(6), 70, 1).float()))
        send(library.thread_gram, call.numbers(LOSS_BACKWARD, wants_z=False), False, order)
        found.append([call.loss, *(value for name, value in call.grads.items() if name != "z")])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_which_calls_it_serves(library: ctypes.CDLL) -> None:
    """Predictions and gradients of parameters of one head, with as many layers as a block's memory holds."""

    def served(which: int = LOSS_BACKWARD, wants_z: bool = False, stack: bool = False, **sizes: object) -> bool:
        case = thread_case(**{"width": 6, "layers": 4, **sizes}).to(torch.float32)
        numbers = NetworkCall(case, stack=stack).numbers(which, wants_z=wants_z)
        return bool(library.thread_gram_fits((ctypes.c_int64 * len(numbers))(*numbers)))

    assert served()
    assert served(FORWARD, tokens=1000)
    assert not served(wants_z=True)
    assert not served(FORWARD, stack=True)
    assert not served(heads=2)
    assert not served(layers=12)
    assert not served(width=7)
    assert not served(width=3)
