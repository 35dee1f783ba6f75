"""How many programs the public calls launch, and how many multiprocessors have work: nothing runs here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch

from memformer_kernels import lfom_solve, memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends.pytorch import backend as pytorch
from memformer_kernels.backends.triton import launch, rules
from memformer_kernels.calls.plan import fuses
from memformer_kernels.torch_ops import ops
from tests.marks import slow_but

Launches = dict[str, list[int]]

BATCHES = (1000, 1100, 3000)
WIDTHS = (2, 3, 5, 6, 9, 12, 16, 17, 24, 33, 48, 64, 65, 100, 128)
QUICK = (6, 17, 64)
TOKENS = (8, 100, 1024, 4096)
MOST_NUMBERS = 2**21
"""Of the tokens of a call that makes tokens, for which there is memory."""


@contextmanager
def _programs() -> Iterator[Launches]:
    """The programs of every launch by its kernel's name, but for those that add up what the others left."""
    found: Launches = {}

    def note(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        if kernel.__name__ != "sum_kernel":
            found.setdefault(kernel.__name__, []).append(programs)

    with launch.observed(note):
        yield found


def _network(batch: int, tokens: int, width: int, algorithm: str, structure: str) -> Callable[[], object]:
    side = width if structure == "dense" else width - 1
    q = torch.zeros(2, 1, side, side, requires_grad=True)
    p = None if structure == "response-only" else torch.zeros_like(q).requires_grad_()
    axes = (tokens, width) if algorithm == "token" and tokens * width < 2**12 else (1, width)
    gamma = torch.zeros(2, 2, 1, *axes, requires_grad=True)
    z, target = torch.zeros(1).expand(batch, tokens, width), torch.zeros(1).expand(batch, 1)
    options: dict[str, Any] = {"backend": "triton", "algorithm": algorithm}
    leaves = [x for x in (q, p, gamma) if x is not None]

    def call() -> None:
        memformer_predict(z, q, p, gamma, layers=True, **options)
        torch.autograd.grad(memformer_loss(z, target, q, p, gamma, **options), leaves)
        if z.numel() <= MOST_NUMBERS:
            own = z.clone().requires_grad_()
            torch.autograd.grad(memformer_stack(own, q, p, gamma, **options).sum(), [own, *leaves])

    return call


@pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
@pytest.mark.parametrize("width", slow_but(QUICK, WIDTHS))
def test_networks_fill_the_multiprocessors(
    width: int, algorithm: str, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products of large tasks run in torch, here on a CPU: pieces of a batch as on a GPU, and few numbers.
    monkeypatch.setattr(pytorch, "_PART_ELEMENTS", pytorch._DEVICE_ELEMENTS)
    for batch, tokens in product(BATCHES, TOKENS):
        if not fuses(width, tokens, algorithm, structure == "response-only") and batch * tokens * width > MOST_NUMBERS:
            continue
        with _programs() as launched:
            _network(batch, tokens, width, algorithm, structure)()
        few = {name: made for name, made in launched.items() if min(made) < rules.MULTIPROCESSORS}
        assert few == {}, (batch, tokens)


@pytest.mark.parametrize("width", slow_but(QUICK, WIDTHS))
def test_other_operations_fill_the_multiprocessors(width: int) -> None:
    """Gram matrices, a layer after another one, and a first-order method."""
    for batch in BATCHES:
        h, b = torch.zeros(1).expand(batch, width, width), torch.zeros(1).expand(batch, width)
        a = torch.zeros(2, width, width, requires_grad=True)
        z, q = torch.zeros(batch, 21, width, requires_grad=True), torch.zeros(1, width, width, requires_grad=True)
        past, gamma = torch.zeros(batch, 1, 21, width), torch.zeros(2, 1, 21, width, requires_grad=True)
        with _programs() as launched:
            torch.autograd.grad(lfom_solve(h, b, a, backend="triton").sum(), a)
            torch.autograd.grad(ops.context_gram(z, None, 20, "triton").sum(), z)
            made, register = memformer_layer(z, q, q, [past], gamma, backend="triton")
            torch.autograd.grad(made.sum() + register.sum(), [z, q, gamma])
        few = {name: made for name, made in launched.items() if min(made) < rules.MULTIPROCESSORS}
        assert few == {}, batch


@pytest.mark.parametrize("width", [6, 24, 64])
def test_a_few_long_contexts_are_spread_and_each_task_has_its_programs(width: int) -> None:
    with _programs() as launched:
        _network(8, 20_000, width, "gram", "response-only")()
    apart = rules.gram_apart(width)
    # The first is the context's Gram matrices; another `across_kernel` is over one query a task.
    assert launched["feature_gram_kernel" if apart else "across_kernel"][0] >= rules.MULTIPROCESSORS
    # Nothing wants the tokens' gradient here, so that none of their matrices is made.
    tasks = rules.vectors_config(width - apart, 20_000, torch.float32, 90, gradients=False).tasks
    for kernel in ("solve_kernel", "solve_backward_kernel"):
        assert min(launched[kernel]) == 8 // tasks


H200 = rules.Machine(multiprocessors=rules.MULTIPROCESSORS, memory=141 * 10**9)


def test_scratch_leaves_no_multiprocessor_idle_while_memory_lasts() -> None:
    for warps, scratch in product((1, 2, 4, 8), (2**10, 2**20, 2**24, 2**26)):
        assert rules.programs(1000, scratch, warps, H200) >= rules.MULTIPROCESSORS
        assert rules.programs(7, scratch, warps, H200) == 7
    # What does not fit, fits on fewer: a task always runs.
    for scratch in (2**28, 2**30, 2**34, 2**40):
        programs = rules.programs(1000, scratch, 8, H200)
        assert programs == 1 or programs * scratch <= H200.memory // rules.SCRATCH_SHARE
    assert rules.programs(1000, 2**40, 8, H200) == 1
    # A smaller GPU is given no more than it has room for.
    small = rules.Machine(multiprocessors=16, memory=2**33)
    assert rules.programs(1000, 2**24, 8, small) == 16
    assert rules.programs(1000, 2**20, 8, small) == 64


def test_running_sums_of_programs_are_bounded() -> None:
    for running in (2**10, 2**20, 2**24, 2**28):
        programs = rules.programs(10**6, 2**20, 1, H200, running)
        assert programs * running <= rules.SUM_BYTES
        assert programs * (running + 2**20) <= H200.memory // rules.SCRATCH_SHARE
    assert rules.programs(10**6, 2**10, 1, H200, 2**10) == rules.programs(10**6, 2**11, 1, H200)
    assert rules.programs(10**6, 2**20, 1, H200, 2**40) == 1


def test_partial_sums_are_bounded_where_a_parameter_is_large() -> None:
    for at_once, batch, size in product((1, 2, 4), (1, 1000, 9000, 10**6), (2**10, 2**20, 2**24, 2**30)):
        tasks = rules.tasks_a_sum(batch, at_once, 8, size=size)
        assert rules.TASKS_A_BLOCK % tasks == tasks % at_once == 0
        assert -(-batch // tasks) * size <= rules.SUM_BYTES or tasks == rules.TASKS_A_BLOCK
        # No further than they must be: half as many tasks a sum would need more memory.
        if size >= 2**24 and tasks > at_once:
            assert -(-batch // (tasks // 2)) * size > rules.SUM_BYTES
    assert rules.tasks_a_sum(1000, 4, 1, size=2**10) == rules.tasks_a_sum(1000, 4, 1)


def test_sums_over_tasks_are_few_and_keep_the_multiprocessors_busy() -> None:
    for (at_once, warps), batch in product(((4, 1), (4, 2), (2, 4), (1, 2), (1, 4), (1, 8)), range(1, 70_000, 37)):
        tasks = rules.tasks_a_sum(batch, at_once, warps)
        chunks = -(-batch // tasks)
        assert rules.TASKS_A_BLOCK % tasks == tasks % at_once == 0
        if batch >= 1000:
            assert chunks >= rules.MULTIPROCESSORS
        # Rounds of all multiprocessors that the chunks take, in tasks, over what a perfect deal would take.
        held = rules.MULTIPROCESSORS * max(1, 8 // warps)
        rounds = -(-chunks // held) * tasks
        assert rounds <= 2 * max(at_once, batch / held) + at_once
    assert rules.tasks_a_sum(10**7, 1, 8) == rules.TASKS_A_BLOCK
