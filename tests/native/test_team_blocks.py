"""Teams of lanes: networks of any structure, run block by block on the host and compared with the reference."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, relative_error
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.native import block_calls
from tests.native.block_calls import BACKWARD, COMPILER, FORWARD, LOSS, LOSS_BACKWARD, NetworkCall, compile_blocks, send

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with")

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}


@pytest.fixture(scope="session", params=["general_tokens"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "ctypes._NamedFuncPointer":
    library = compile_blocks(f"team_{request.param.split('_')[1]}", tmp_path_factory.mktemp("blocks"))
    return library[request.param]


def run(kernel: "ctypes._NamedFuncPointer", call: NetworkCall, which: int, order: int, **wanted: object) -> None:
    send(kernel, call.numbers(which, **wanted), call.dtype == torch.float64, order)


def exact_predictions(case: Case, layers: bool) -> Tensor:
    every = reference.predict(case.z, case.q, *case.parameters, context=case.context, queries=case.queries)
    return every if layers else every[-1]


def check(kernel: "ctypes._NamedFuncPointer", case: Case, dtype: torch.dtype, order: int = 0) -> None:
    """All passes of a network against the reference in float64."""
    given = case.to(dtype)
    exact = given.to(torch.float64)
    error = ERROR[dtype]

    for stack in (False, True):
        wide = (
            reference.stack(exact.z, exact.q, *exact.parameters, context=exact.context)
            if stack
            else exact_predictions(exact, True)
        )
        call = NetworkCall(given, stack=stack, layers=True)
        run(kernel, call, FORWARD, order)
        assert relative_error(call.result, wide.detach()) < error
        grad = normal(seeded(5), *wide.shape).to(dtype)
        wanted = torch.autograd.grad(wide, list(leaves(exact).values()), grad.double())
        run(kernel, call, BACKWARD, order, grad=grad)
        for name, value in zip(leaves(exact), wanted, strict=True):
            assert relative_error(call.grads[name], value) < error, (stack, name)

    call = NetworkCall(given)
    predictions = exact_predictions(exact, False)
    target = normal(seeded(6), *predictions.shape)
    loss = (predictions - target).square().mean()
    call.case = Case(**{**given.__dict__, "target": target.to(dtype)})
    for which in (LOSS, LOSS_BACKWARD):
        run(kernel, call, which, order)
        assert relative_error(call.loss, loss.detach()[None]) < error
    for name, value in zip(leaves(exact), torch.autograd.grad(loss, list(leaves(exact).values())), strict=True):
        assert relative_error(call.grads[name], value) < error, name


@pytest.mark.parametrize(("width", "tokens"), [(6, 21), (8, 9), (13, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_size(kernel: "ctypes._NamedFuncPointer", width: int, tokens: int, dtype: torch.dtype) -> None:
    """Every instance, with blocks of P and Q, several heads, padding and a part of a block of tasks."""
    case = make_case(granularity="full", tasks=37, tokens=tokens, width=width, layers=3, context=tokens - 3, queries=2)
    check(kernel, case, dtype)
