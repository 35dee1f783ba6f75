"""The register update: parity with the plain sum for every shape of gamma, fixed order of sums, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from memformer_kernels import reference, register_update
from memformer_kernels.testing import relative_error
from tests.memformer_kernels.own_models.options import (
    SHAPES,
    each_instruction_set,
    needs_native,
    on_every_backend,
    tokens_and_registers,
    with_gradients,
)

# Long runs, many short runs, a single run, one entry, nothing; divided along every axis in the native backward.
SIZES = [
    ((5, 3000), (2, 3000)),
    ((2, 130, 70), (3, 130, 1)),
    ((400, 9), (2, 9)),
    ((200_000,), (3,)),
    ((20_000,), (3, 20_000)),
    ((700, 3, 100), (2, 3, 1)),
    ((1,), (1,)),
    ((0, 5), (2, 5)),
    ((3, 0), (2,)),
]


def _exact(z: Tensor, registers: list[Tensor], gamma: Tensor) -> Tensor:
    return reference.register_update(z, registers, gamma if gamma.ndim > 1 else gamma.view(-1, *[1] * z.ndim))


@on_every_backend
@pytest.mark.parametrize(("shape", "gamma"), [*(((3, 7, 33), g) for g in SHAPES), *SIZES], ids=str)
def test_equals_the_plain_sum_with_every_gradient(shape: tuple[int, ...], gamma: tuple[int, ...], backend: str) -> None:
    z, registers, weights = tokens_and_registers(shape, gamma)
    leaves = [z, *registers, weights]
    ours = with_gradients(register_update(z, registers, weights, backend=backend), leaves)
    for made, value in zip(ours, with_gradients(_exact(z, registers, weights), leaves), strict=True):
        torch.testing.assert_close(made, value, rtol=1e-10, atol=1e-10)


@on_every_backend
@pytest.mark.parametrize("gamma", [(4,), (4, 33), (4, 7, 1), (4, 7, 33)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(gamma: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    """Coefficients in float32 beside half-precision tokens; sums over tokens are not made in half precision."""
    wide = tokens_and_registers((300, 7, 33), gamma)
    z, registers = wide[0].detach().to(dtype), [x.detach().to(dtype) for x in wide[1]]
    leaves = [z.requires_grad_(), *(x.requires_grad_() for x in registers), wide[2].detach().float().requires_grad_()]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    exact = with_gradients(_exact(doubles[0], doubles[1:-1], doubles[-1]), doubles)
    ours = with_gradients(register_update(leaves[0], leaves[1:-1], leaves[-1], backend=backend), leaves)
    assert [x.dtype for x in ours] == [dtype] * (len(ours) - 1) + [torch.float32]
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for made, value in zip(ours[:-1], exact[:-1], strict=True):
        assert relative_error(made, value) <= rounding
    assert relative_error(ours[-1], exact[-1]) <= 2 * rounding


@on_every_backend
def test_first_and_second_derivatives(backend: str) -> None:
    z, registers, gamma = tokens_and_registers((2, 3), (2, 3))

    def update(z: Tensor, first: Tensor, second: Tensor, gamma: Tensor) -> Tensor:
        return register_update(z, [first, second], gamma, backend=backend)

    assert gradcheck(update, (z, *registers, gamma), check_forward_ad=True)
    assert gradgradcheck(update, (z, *registers, gamma))


@on_every_backend
def test_any_layout_and_partial_gradients(backend: str) -> None:
    z, registers, gamma = tokens_and_registers((6, 5, 4), (2, 4))
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (z, *registers)]
    out = register_update(turned[0], [turned[1], registers[1]], gamma, backend=backend)
    torch.testing.assert_close(out, _exact(z, registers, gamma))
    (grad,) = torch.autograd.grad(out.sum(), registers[1])
    torch.testing.assert_close(grad, gamma.detach()[1].expand(6, 5, 4))
    same = registers[0].detach().requires_grad_()
    made = with_gradients(register_update(z, [same, same], gamma, backend=backend), [same])[1]
    torch.testing.assert_close(made, with_gradients(_exact(z, [same, same], gamma), [same])[1])


@needs_native
@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize(("shape", "gamma"), [((9000, 40), (2, 40)), ((40, 9000), (2, 40, 1)), ((400_000,), (2,))])
def test_the_native_sums_have_one_order_for_any_threads(shape: tuple[int, ...], gamma: tuple[int, ...]) -> None:
    z, registers, weights = tokens_and_registers(shape, gamma)
    leaves = [x.detach().float().requires_grad_() for x in (z, *registers, weights)]
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = register_update(leaves[0], leaves[1:-1], leaves[-1], backend="cpu")
        made.append(torch.autograd.grad(out, leaves, torch.ones_like(out)))
    assert all(torch.equal(x, y) for x, y in zip(*made, strict=True))


@needs_native
def test_every_instruction_set() -> None:
    z, registers, gamma = tokens_and_registers((1300, 1100), (3, 1100))
    leaves = [x.detach().float().requires_grad_() for x in (z, *registers, gamma)]
    exact = _exact(leaves[0], leaves[1:-1], leaves[-1])
    values = torch.autograd.grad(exact, leaves, exact.detach())
    for _ in each_instruction_set():
        out = register_update(leaves[0], leaves[1:-1], leaves[-1], backend="cpu")
        torch.testing.assert_close(out, exact)
        grads = torch.autograd.grad(out, leaves, exact.detach())
        for made, value in zip(grads, values, strict=True):
            assert relative_error(made, value) < 1e-5


@pytest.mark.tensors_stay
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"registers": []}, ValueError, "at least one register"),
        ({"registers": torch.zeros(1, 2, 3)}, TypeError, "registers: expected a sequence"),
        ({"registers": [torch.zeros(2, 4)]}, ValueError, r"registers\[0\]: expected z's shape"),
        ({"registers": [torch.zeros(2, 3).double()]}, TypeError, r"registers\[0\]: .*dtype"),
        ({"gamma": torch.ones(2)}, ValueError, "gamma: .*J = 1 registers"),
        ({"gamma": torch.ones(1, 2)}, ValueError, "gamma: .*broadcastable"),
        ({"gamma": torch.ones(1, 1, 1, 3)}, ValueError, "gamma: .*broadcastable"),
        ({"gamma": torch.ones(1).double()}, TypeError, "gamma: expected float32"),
        ({"gamma": 1.0}, TypeError, "gamma: expected a dense tensor"),
        ({"z": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "z: expected a dense tensor"),
        ({"backend": "cuda"}, RuntimeError, "^backend='cuda'"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"z": torch.zeros(2, 3), "registers": [torch.zeros(2, 3)], "gamma": torch.ones(1), **change}
    with pytest.raises(kind, match=message):
        register_update(**arguments)
