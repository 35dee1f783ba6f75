"""lfom_solve on CUDA: blocks run on the host, thread by thread, and compared with the reference."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import relative_error
from tests.memformer_kernels.cases import normal, seeded
from tests.native.block_calls import COMPILER, array, compile_blocks, parameter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}
Solve = Callable[..., None]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("quadratics", tmp_path_factory.mktemp("blocks"))


def solve(
    library: ctypes.CDLL,
    given: dict[str, Tensor],
    result: Tensor,
    grads: dict[str, Tensor] | None = None,
    *,
    fixed: int = 0,
    order: int = 0,
) -> None:
    """Writes the iterates to `result`; or `grads`, where `result` is then the gradient of the iterates."""
    h, a, gamma, beta = given["h"], given["a"], given.get("gamma"), given.get("beta")
    tasks, d, layers = h.shape[0], h.shape[1], a.shape[0]
    wanted = grads or {}
    numbers = [
        *(int(grads is not None), 0, tasks, d, layers),
        *array(h),
        *array(given["b"], 2),
        *array(given.get("w0"), 2),
        *array(result),
        result.shape[0],
        *array(wanted.get("h")),
        *array(wanted.get("b"), 2),
        *array(wanted.get("w0"), 2),
        *parameter(a, (layers, 1, 1, d, d), axes=(0, 3, 4), grad=wanted.get("a"), matrix=True),
        *parameter(None, present=False),
        *parameter(gamma, (layers, layers, 1, 1, d), axes=(0, 1, 4), grad=wanted.get("gamma"), lower=True),
        *parameter(beta, (layers, 1, 1, 1, d), axes=(0, 4), grad=wanted.get("beta")),
        0,
    ]
    library.quadratics(
        (ctypes.c_int64 * len(numbers))(*numbers),
        ctypes.c_int(h.dtype == torch.float64),
        ctypes.c_uint(order),
        ctypes.c_int(fixed),
    )


def draw(
    tasks: int, d: int, layers: int, *, memory: bool = True, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = seeded(d)
    given = {
        "h": normal(generator, tasks, d, d, scale=0.5 * d**-0.5),
        "b": normal(generator, tasks, d),
        "a": normal(generator, layers, d, d, scale=0.5 * d**-0.5),
    }
    if memory:
        given["gamma"] = normal(generator, layers, layers, d, scale=0.5)
        given["beta"] = normal(generator, layers, 1, scale=0.5)
        given["w0"] = normal(generator, tasks, d)
    return {name: value.to(dtype) for name, value in given.items()}


def check(library: ctypes.CDLL, given: dict[str, Tensor], *, iterates: bool = True, **how: int) -> None:
    exact = {name: value.double().requires_grad_() for name, value in given.items()}
    wide = reference.lfom_solve(
        exact["h"], exact["b"], exact["a"], exact.get("gamma"), exact.get("beta"), exact.get("w0")
    )
    wide = wide if iterates else wide[-1:]
    dtype = given["h"].dtype
    result = torch.full(wide.shape, torch.nan, dtype=dtype)
    solve(library, given, result, **how)
    assert relative_error(result, wide.detach()) < ERROR[dtype]
    grad = normal(seeded(1), *wide.shape).to(dtype)
    grads = {name: torch.full(value.shape, torch.nan, dtype=dtype) for name, value in given.items()}
    solve(library, given, grad, grads, **how)
    for name, wanted in zip(exact, torch.autograd.grad(wide, list(exact.values()), grad.double()), strict=True):
        assert relative_error(grads[name], wanted) < ERROR[dtype], name


@pytest.mark.parametrize("weights", range(1, 9))
def test_every_instance(library: ctypes.CDLL, weights: int) -> None:
    check(library, draw(37, weights, 3), fixed=weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("weights", [5, 16])
def test_the_instance_for_every_size(library: ctypes.CDLL, weights: int, dtype: torch.dtype) -> None:
    check(library, draw(35, weights, 2, dtype=dtype), order=3)


@pytest.mark.parametrize("order", [0, 1, 4])
def test_defaults_and_the_last_iterate(library: ctypes.CDLL, order: int) -> None:
    check(library, draw(70, 4, 2, memory=False), iterates=False, fixed=4, order=order)


def test_strided_quadratics(library: ctypes.CDLL) -> None:
    """A transposed h and vectors with gaps between them."""
    given = draw(33, 3, 2)
    given["h"] = given["h"].transpose(1, 2).contiguous().transpose(1, 2)
    given["b"] = torch.stack([given["b"], given["b"] * torch.nan], dim=-1)[..., 0]
    check(library, given, fixed=3)
