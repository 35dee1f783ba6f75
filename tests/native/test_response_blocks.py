"""Response-only networks in Gram space on CUDA: blocks run on the host, thread by thread, and compared with the reference."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, in_form, relative_error, results
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.native.block_calls import BACKWARD, COMPILER, FORWARD, LOSS, LOSS_BACKWARD, NetworkCall, compile_blocks

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with")

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}
Kernel = Callable[..., None]


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Runs a call: fixed = the features of the instance to use, 0 for the one that serves every size."""
    library = compile_blocks("response_gram", tmp_path_factory.mktemp("blocks"))

    def run(call: NetworkCall, which: int, *, order: int = 0, fixed: int | None = None, **wanted: object) -> None:
        numbers = call.numbers(which, **wanted)  # type: ignore[arg-type]
        features = call.width - 1
        instance = (features if features <= 8 else 0) if fixed is None else fixed
        library.response_gram(
            (ctypes.c_int64 * len(numbers))(*numbers),
            ctypes.c_int(call.dtype == torch.float64),
            ctypes.c_uint(order),
            ctypes.c_int(instance),
        )

    return run


def response_case(**changes: object) -> Case:
    return make_case(**{"structure": "response-only", "granularity": "scalar", **changes})  # type: ignore[arg-type]


def with_target(case: Case, tasks: int, queries: int) -> Case:
    return replace(case, target=normal(seeded(6), tasks, queries).to(case.z.dtype))


def check(kernel: Kernel, case: Case, dtype: torch.dtype = torch.float32, **how: int) -> None:
    """All passes against the reference in float64."""
    given = case.to(dtype)
    exact = given.to(torch.float64)
    error = ERROR[dtype]
    arguments = (exact.z, exact.q, *exact.parameters)
    for stack in (False, True):
        wide = (
            reference.stack(*arguments, context=exact.context)
            if stack
            else reference.predict(*arguments, context=exact.context, queries=exact.queries)
        )
        call = NetworkCall(given, stack=stack, layers=True)
        kernel(call, FORWARD, **how)
        assert relative_error(call.result, wide.detach()) < error
        grad = normal(seeded(5), *wide.shape).to(dtype)
        wanted = torch.autograd.grad(wide, list(leaves(exact).values()), grad.double())
        kernel(call, BACKWARD, grad=grad, **how)
        for name, value in zip(leaves(exact), wanted, strict=True):
            assert relative_error(call.grads[name], value) < error, (stack, name)
    check_loss(kernel, given, error, **how)


def check_loss(kernel: Kernel, given: Case, error: float, **how: int) -> None:
    call = NetworkCall(given)
    given = call.case = with_target(given, call.tasks, call.queries)
    exact = given.to(torch.float64)
    target = exact.target
    assert target is not None
    target.requires_grad_()
    predictions = reference.predict(
        exact.z, exact.q, *exact.parameters, context=exact.context, queries=exact.queries
    )[-1]
    loss = (predictions - target).square().mean()
    wanted = leaves(exact)
    grads = dict(zip([*wanted, "target"], torch.autograd.grad(loss, [*wanted.values(), target]), strict=True))
    for which, wants_z in ((LOSS, False), (LOSS_BACKWARD, False), (LOSS_BACKWARD, True)):
        call = NetworkCall(given)
        kernel(call, which, wants_z=wants_z, **how)
        assert relative_error(call.loss, loss.detach()[None]) < error
        if which == LOSS:
            continue
        assert relative_error(call.grad_target, grads["target"]) < error
        for name in wanted:
            if name != "z" or wants_z:
                assert relative_error(call.grads[name], grads[name]) < error, name


@pytest.mark.parametrize("features", range(1, 9))
def test_every_instance(kernel: Kernel, features: int) -> None:
    """Two tiles, the second of which has five tasks; padding between the context and two queries."""
    case = response_case(
        rule="lfom", width=features + 1, tasks=37, tokens=12, context=9, queries=2, layers=3, heads=2, seed=features
    )
    check(kernel, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("features", [3, 13])
def test_the_instance_for_every_size(kernel: Kernel, features: int, dtype: torch.dtype) -> None:
    check(kernel, response_case(width=features + 1, tasks=33, tokens=6, layers=2), dtype, fixed=0)
