"""Kernels that give the gradients of parameters alone, on the host blocks, against the reference in float64."""

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, relative_error
from tests.memformer_kernels.cases import leaves, normal, seeded
from tests.native.block_calls import BACKWARD, LOSS_BACKWARD, NetworkCall, send

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}


def check_gradients(
    function: "ctypes._NamedFuncPointer", case: Case, order: int = 0, dtype: torch.dtype = torch.float32
) -> None:
    """From the gradients of predictions, and with a loss."""
    given, error, wide = case.to(dtype), ERROR[dtype], dtype == torch.float64
    exact = given.to(torch.float64)
    arguments = (exact.z, exact.q, *exact.parameters)
    wanted = reference.predict(*arguments, context=exact.context, queries=exact.queries)[-1]
    named = {name: leaf for name, leaf in leaves(exact).items() if name != "z"}

    call = NetworkCall(given)
    grad = normal(seeded(4), *call.result.shape).to(dtype)
    send(function, call.numbers(BACKWARD, grad, wants_z=False), wide, order)
    expected = torch.autograd.grad(wanted, list(named.values()), grad[0].double(), retain_graph=True)
    for name, value in zip(named, expected, strict=True):
        assert relative_error(call.grads[name], value) < error, name

    target = normal(seeded(6), *wanted.shape).requires_grad_()
    loss = (wanted - target).square().mean()
    call = NetworkCall(replace(given, target=target.detach().to(dtype)))
    *expected, target_grad = torch.autograd.grad(loss, [*named.values(), target])
    send(function, call.numbers(LOSS_BACKWARD, wants_z=False), wide, order)
    assert relative_error(call.loss, loss.detach()[None]) < error
    assert relative_error(call.grad_target, target_grad) < error
    for name, value in zip(named, expected, strict=True):
        assert relative_error(call.grads[name], value) < error, name


def loss_and_gradients(function: "ctypes._NamedFuncPointer", case: Case, z: Tensor, order: int = 0) -> list[Tensor]:
    """Of other tokens, in float32: the loss, the gradients of the target and of parameters."""
    target = normal(seeded(6), z.shape[0], 1).float()
    call = NetworkCall(replace(case.to(torch.float32), z=z, target=target))
    send(function, call.numbers(LOSS_BACKWARD, wants_z=False), False, order)
    return [call.loss, call.grad_target, *(grad for name, grad in call.grads.items() if name != "z")]


def check_ragged(function: "ctypes._NamedFuncPointer", case: Case) -> None:
    """What lies behind a context may be NaN: of a case with one query and a context for each task."""
    check_gradients(function, case)
    z = case.z.detach().float()
    behind = torch.arange(z.shape[1]) >= torch.as_tensor(case.context)[:, None]
    behind[:, -1] = False
    found = [loss_and_gradients(function, case, given) for given in (z, z.masked_fill(behind[..., None], torch.nan))]
    assert all(map(torch.equal, *found))


def check_spoilt_task(function: "ctypes._NamedFuncPointer", case: Case) -> None:
    """A task of NaN spoils no other: gradients with respect to targets are a task's own."""
    z = case.z.detach().float()
    others = torch.arange(z.shape[0]) != 5
    plain, spoilt = (
        loss_and_gradients(function, case, given)[1] for given in (z, z.index_fill(0, torch.tensor([5]), torch.nan))
    )
    assert spoilt[5].isnan().all()
    assert torch.equal(plain[others], spoilt[others])


def serves(function: "ctypes._NamedFuncPointer", case: Case, which: int, wants_z: bool, stack: bool) -> bool:
    """Whether a kernel says that it serves a call in float32."""
    numbers = NetworkCall(case.to(torch.float32), stack=stack).numbers(which, wants_z=wants_z)
    return bool(function((ctypes.c_int64 * len(numbers))(*numbers)))
