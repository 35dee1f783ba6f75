"""Grids on a device with as many multiprocessors as an H200: from a batch of 1000 tasks on, none is idle."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.virtual_cases import loss
from benchmarks.gpu.virtual_cuda.devices import WHOLE
from benchmarks.gpu.virtual_cuda.virtual import Virtual
from benchmarks.measure.workloads import W_FULL, W, Workload
from memformer_kernels import context_gram, lfom_solve, memformer_layer
from tests.memformer_kernels.cases import normal, seeded
from virtual_gpu.hardware import H200

BATCH = 1000
OF_NO_TASKS = ("DenseParameters", "Totals")
"""Kernels that read parameters, or sums of tasks."""


def _network(workload: Workload) -> Callable[[], object]:
    return loss(workload.with_batch(BATCH), "cuda")


def _layer() -> object:
    z, q = normal(seeded(1), BATCH, 21, 6).float().requires_grad_(), normal(seeded(2), 1, 6, 6).float() / 20
    return memformer_layer(z, q, q, context=20, backend="cuda")[0].sum().backward()


def _gram() -> object:
    return context_gram(normal(seeded(1), BATCH, 21, 6).float().requires_grad_(), 20).sum().backward()


def _solve() -> object:
    h, b, a = (
        normal(seeded(1), BATCH, 5, 5).float(),
        normal(seeded(2), BATCH, 5).float(),
        torch.eye(5).expand(4, -1, -1),
    )
    return lfom_solve(h.requires_grad_(), b, a, torch.ones(4, 4, 5), backend="cuda").sum().backward()


CALLS = {
    "W": _network(W),
    "W_full": _network(W_FULL),
    "W, features move": _network(replace(W, structure="block")),
    "W_full, features move": _network(replace(W_FULL, structure="block")),
    "layer": _layer,
    "context_gram": _gram,
    "lfom_solve": _solve,
}


@pytest.fixture
def whole(virtual: Virtual) -> Virtual:
    virtual.use(WHOLE)
    return virtual


@pytest.mark.parametrize("name", CALLS)
def test_no_multiprocessor_is_idle(whole: Virtual, name: str) -> None:
    CALLS[name]()
    grids = {launched.launch.kernel.name: launched.launch.grid[0] for launched in whole.runtime.launched}
    over_tasks = {kernel: grid for kernel, grid in grids.items() if not any(one in kernel for one in OF_NO_TASKS)}
    assert over_tasks
    assert {kernel: grid for kernel, grid in over_tasks.items() if grid < H200.multiprocessors} == {}


def test_sums_of_few_tasks_are_shared_by_columns(whole: Virtual) -> None:
    """One thread block for 32 of them."""
    CALLS["W_full"]()
    (grid,) = (one.launch.grid[0] for one in whole.runtime.launched if "Totals" in one.launch.kernel.name)
    parameters = 4 * 5 * 5 + 4 * 4 * 21
    assert grid == -(-(parameters + 1) // 32)
