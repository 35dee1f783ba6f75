"""Every compiled kernel runs on an H200 and an A100; networks elsewhere and in other orders of warps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from benchmarks.gpu.virtual_cuda.devices import AMPERE, BLACKWELL, HOPPER, SMALL
from benchmarks.gpu.virtual_cuda.virtual import Virtual
from memformer_kernels import (
    SGD,
    GaussianStatistics,
    GaussianTokens,
    context_gram,
    lfom_solve,
    memformer_loss,
    memformer_stack,
    train_steps,
)
from memformer_kernels.testing import FLOAT64_ERROR, Case, float64_violations, in_form, public, relative_error, results
from memformer_kernels.training import cuda
from tests.gpu.calls import assert_budget, losses, others, with_target
from tests.gpu.gpus import ALGORITHMS, STRUCTURES
from tests.memformer_kernels.cases import make_case
from tests.memformer_kernels.test_parity import fixed, networks
from tests.memformer_kernels.training.runs import state, tensors

pytestmark = pytest.mark.slow

DTYPES = (torch.float32, torch.float64)
WIDTHS = range(2, 18)
FEW = 4224
"""Tasks from which on a warp for 32 of them is one for each multiprocessor of an H200, and other kernels serve."""

LOSSES = torch.empty(1, 1, dtype=torch.float64)


def hold(run: Callable[[str, torch.dtype], list[Tensor]], dtype: torch.dtype) -> None:
    """To the budget of what plain PyTorch makes of the same call."""
    made, exact = run("cuda", dtype), run("torch", torch.float64)
    if dtype == torch.float64:
        assert max(map(relative_error, made, exact)) <= FLOAT64_ERROR
    else:
        assert_budget(made, run("torch", dtype), exact)


def gradients_of_parameters(width: int, tasks: int) -> None:
    """Where each token has a gamma."""
    rows = small("response-only", width, granularity="full", tasks=tasks)
    hold(lambda backend, dtype: losses(rows.to(dtype), backend, "token", parameters_alone=True), torch.float32)


def all_passes(case: Case, algorithm: str) -> None:
    """A loss with all its gradients, with those of parameters alone, and with none; and a stack."""
    options: dict[str, Any] = {"context": case.context, "backend": "cuda", "algorithm": algorithm}
    hold(lambda backend, dtype: losses(case.to(dtype), backend, algorithm), case.z.dtype)
    assert case.target is not None
    memformer_loss(case.z.detach(), case.target, case.q, case.p, case.gamma, **options).backward()
    with torch.no_grad():
        memformer_loss(case.z, case.target, case.q, case.p, case.gamma, **options)
        memformer_stack(case.z, case.q, case.p, case.gamma, **options)


def small(structure: str, width: int, **sizes: Any) -> Case:
    sizes = {"tokens": 5, "layers": 2, "heads": 1, "tasks": 2, **sizes}
    return with_target(make_case(structure=structure, width=width, **sizes), 1)


@pytest.mark.parametrize("index", [HOPPER, AMPERE])
def test_every_kernel_that_is_compiled_runs(virtual: Virtual, index: int) -> None:
    virtual.use(index)
    for dtype in DTYPES:
        for width in WIDTHS:
            for structure in STRUCTURES:
                for algorithm in ALGORITHMS:
                    if width < 17 or (structure, algorithm) == ("response-only", "gram"):
                        all_passes(small(structure, width).to(dtype), algorithm)
        for width in range(1, 17):
            context_gram(torch.ones(2, 5, width, dtype=dtype), 4)
            hold(partial(others, max(width, 2)), dtype)
        context_gram(torch.ones(1, 600, 6, dtype=dtype), 599)  # in runs, which another kernel adds up
    for width in range(2, 10):
        many = torch.ones(FEW, 3, width)
        assert torch.equal(context_gram(many, 2), torch.full((FEW, width, width), 2.0))
    for width in range(3, 10):
        gradients_of_parameters(width, 3)
        gradients_of_parameters(width, FEW)
    for dtype in DTYPES:
        one = torch.ones(2, 1, 1, dtype=dtype).requires_grad_()
        lfom_solve(one, torch.ones(2, 1, dtype=dtype), one[:1], backend="cuda").sum().backward()
    large = {"layers": 12, "rule": "recursive", "granularity": "scalar", "heads": 4}
    for d, options in (*((d, {}) for d in range(1, 9)), (5, {"layers": 4}), (5, {"layers": 5}), (8, large)):
        for sampler in (GaussianStatistics(d, 8, 40), GaussianTokens(d, 8, 40)):
            held = state(1, d=d, dtype=torch.float32, **options)
            train_steps(held, sampler, 1, optimizer=SGD(0.1), backend="cuda")
    cuda.train(state(dtype=torch.float32), GaussianStatistics(3, 8, 40), SGD(0.1), None, LOSSES, launches="replay")
    assert virtual.runtime.registered() - virtual.kernels() == set()


def everything() -> list[Tensor]:
    """Results and gradients of every operator, in float32."""
    made = others(5, "cuda", torch.float32)
    for structure in STRUCTURES:
        for algorithm in ALGORITHMS:
            made += losses(small(structure, 6, tokens=9, tasks=70).to(torch.float32), "cuda", algorithm)
    for batch in (40, 300):
        held = state(2, dtype=torch.float32)
        made.append(train_steps(held, GaussianStatistics(3, 8, batch), 2, optimizer=SGD(0.1), backend="cuda"))
        made += tensors(held)
    return made


@pytest.mark.parametrize("index", [HOPPER, BLACKWELL, SMALL, AMPERE])
def test_orders_of_warps_and_blocks_change_no_bit(virtual: Virtual, index: int) -> None:
    """Nor do architectures and the number of multiprocessors."""
    expected = everything()
    for order in (0, 1, 2):
        virtual.use(index, order)
        assert all(map(torch.equal, expected, everything()))


def assert_right(case: Case, algorithm: str) -> None:
    """Tokens, predictions and gradients in float64 and in float32."""
    assert float64_violations(public("cuda", algorithm), case) == {}
    ours, twin = (results(public(backend, algorithm), case.to(torch.float32)) for backend in ("cuda", "torch"))
    exact = results(in_form("literal"), case.to(torch.float64))
    assert_budget(list(ours.values()), list(twin.values()), list(exact.values()))


@pytest.mark.parametrize("index", [HOPPER, AMPERE])
@given(networks(token_axis=False))
@fixed(20)
def test_random_networks_without_a_token_axis(virtual: Virtual, index: int, case: Case) -> None:
    virtual.use(index)
    for algorithm in ALGORITHMS:
        assert_right(case, algorithm)


@pytest.mark.parametrize("index", [HOPPER, AMPERE])
@given(networks(token_axis=True))
@fixed(20)
def test_random_networks_with_a_token_axis(virtual: Virtual, index: int, case: Case) -> None:
    virtual.use(index)
    assert_right(case, "token")
