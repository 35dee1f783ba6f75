"""Response-only networks in Gram space on CUDA: blocks run on the host, thread by thread, against the reference."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, in_form, relative_error, results
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.native.block_calls import BACKWARD, COMPILER, FORWARD, LOSS, LOSS_BACKWARD, NetworkCall, compile_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]

ERROR = {torch.float32: 2e-5, torch.float64: 1e-10}
Kernel = Callable[..., None]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("response_gram", tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="session")
def kernel(library: ctypes.CDLL) -> Kernel:
    """Runs a call: fixed = the features of the instance to use, 0 for the one that serves every size."""

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
        wanted = torch.autograd.grad(wide, list(leaves(exact).values()), grad.double(), materialize_grads=True)
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
    predictions = reference.predict(exact.z, exact.q, *exact.parameters, context=exact.context, queries=exact.queries)[
        -1
    ]
    loss = (predictions - target).square().mean()
    wanted = leaves(exact)
    gradients = torch.autograd.grad(loss, [*wanted.values(), target], materialize_grads=True)
    grads = dict(zip([*wanted, "target"], gradients, strict=True))
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


@pytest.mark.parametrize("rule", ["linear", "cgd", "recursive", "lfom_shared", "lfom_residual"])
@pytest.mark.parametrize("order", [1, 7], ids=["backwards", "shuffled"])
def test_every_rule(kernel: Kernel, rule: str, order: int) -> None:
    """Registers per head, diagonal and shared gamma, more matrices than lanes have groups; threads in any order."""
    check(kernel, response_case(rule=rule, tasks=34, tokens=5, width=4, layers=3, heads=2), order=order)


@pytest.mark.parametrize("layers", [1, 9])
def test_depths(kernel: Kernel, layers: int) -> None:
    check(kernel, response_case(rule="cgd", tasks=5, tokens=5, width=3, layers=layers))


@pytest.mark.parametrize("fixed", [3, 0], ids=["fixed", "any"])
def test_long_contexts_stream(kernel: Kernel, fixed: int) -> None:
    """Rows that do not fit in shared memory: pieces of 32 rows, added up pairwise (seven of them, one short)."""
    check(kernel, response_case(tasks=3, tokens=210, width=4, layers=2, context=203, queries=4), fixed=fixed)


def test_what_does_not_fit_in_shared_memory(kernel: Kernel) -> None:
    """Deep networks with many registers keep their traces in global memory."""
    case = response_case(rule="recursive", tasks=70, tokens=4, width=6, layers=24, heads=4)
    check_loss(kernel, case.to(torch.float32), 1e-4, fixed=0)


@pytest.mark.parametrize("tokens", [9, 150])
def test_ragged_contexts(kernel: Kernel, tokens: int) -> None:
    """Rows past a task's own context are not read and get exactly zero, NaN or not."""
    lengths = torch.randint(1, tokens, (35,), generator=seeded(3))
    case = response_case(tasks=35, tokens=tokens, width=4, layers=2, context=lengths)
    check(kernel, case)
    given = case.to(torch.float32)
    padding = torch.arange(tokens)[None] >= lengths[:, None]
    padding[:, -1] = False
    z = torch.where(padding[..., None], torch.nan, given.z.detach())
    call = NetworkCall(with_target(replace(given, z=z), 35, 1))
    kernel(call, LOSS_BACKWARD)
    assert call.loss.isfinite().all()
    assert (call.grads["z"][padding] == 0).all()
    assert call.grads["z"].isfinite().all()


@pytest.mark.parametrize("tasks", [1, 31, 33, 1023, 1024, 1025, 2500])
def test_tails(kernel: Kernel, tasks: int) -> None:
    """Batches that end within a tile, a unit, a block of 1024 tasks."""
    case = response_case(tasks=tasks, tokens=4, width=3, layers=2, heads=1)
    exact = with_target(case, tasks, 1).to(torch.float64)
    assert exact.target is not None
    exact.target.requires_grad_(False)
    wanted = results(in_form("gram"), exact)
    twin = results(in_form("gram"), exact.to(torch.float32))
    call = NetworkCall(exact.to(torch.float32))
    kernel(call, LOSS_BACKWARD)
    for name in ("q", "gamma", "z"):
        budget = 3 * max(relative_error(twin[f"grad_{name}"], wanted[f"grad_{name}"]), 1.2e-7)
        assert relative_error(call.grads[name], wanted[f"grad_{name}"]) <= budget, name


def test_sums_do_not_depend_on_grid_and_order(kernel: Kernel) -> None:
    """Bit for bit: threads in any order; units of one tile (few tasks) or of four; whole batches or blocks of 1024."""
    case = with_target(response_case(tasks=2048 + 70, tokens=4, width=3, layers=2, heads=1), 2118, 1).to(torch.float32)

    def run(part: Case, order: int) -> dict[str, Tensor]:
        call = NetworkCall(part)
        kernel(call, BACKWARD, order=order, wants_z=False, grad=torch.ones(1, part.z.shape[0], 1))
        return call.grads

    whole = run(case, 0)
    for order in (1, 5):
        again = run(case, order)
        assert all(torch.equal(whole[name], again[name]) for name in ("q", "gamma"))
    one = run(replace(case, z=case.z[:1024]), 0)
    other = run(replace(case, z=case.z[1024:2048]), 2)
    both = run(replace(case, z=case.z[:2048]), 3)
    for name in ("q", "gamma"):
        assert relative_error(both[name], one[name].double() + other[name].double()) < 1e-7


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_tokens(kernel: Kernel, storage: torch.dtype) -> None:
    """Parameters and predictions in float32, tokens and Z_L in half precision."""
    case = response_case(tasks=34, tokens=7, width=6, layers=2, queries=1).to(torch.float32)
    case = replace(case, z=case.z.detach().to(storage))
    exact = case.to(torch.float64)
    call = NetworkCall(case)
    kernel(call, FORWARD)
    predictions = reference.predict(exact.z, exact.q, *exact.parameters)[-1:]
    assert relative_error(call.result, predictions.detach()) < ERROR[torch.float32]
    stack = NetworkCall(case, stack=True)
    kernel(stack, FORWARD)
    rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[storage]
    assert relative_error(stack.result, reference.stack(exact.z, exact.q, *exact.parameters).detach()) < rounding
    grad = normal(seeded(2), *predictions.shape).float()
    kernel(call, BACKWARD, grad=grad)
    wanted = torch.autograd.grad(predictions, [exact.z, exact.q], grad.double(), retain_graph=True)
    assert relative_error(call.grads["z"], wanted[0]) < rounding
    assert relative_error(call.grads["q"], wanted[1]) < ERROR[torch.float32]
    losing = NetworkCall(with_target(case, 34, 1))
    kernel(losing, LOSS_BACKWARD)
    error = (predictions[0] - losing.case.target.double()).square().mean()
    for name, exactly in zip(("z", "q"), torch.autograd.grad(error, [exact.z, exact.q]), strict=True):
        assert losing.grads[name].dtype == torch.float32
        assert relative_error(losing.grads[name], exactly) < ERROR[torch.float32]


def views(z: Tensor) -> dict[str, Tensor]:
    """The same tokens, lying differently in memory."""
    tasks, tokens, width = z.shape
    wide = torch.full((tasks, tokens + 1, width + 3), torch.nan, dtype=z.dtype)
    wide[:, :tokens, 2 : width + 2] = z
    shifted = torch.full((z.numel() + 1,), torch.nan, dtype=z.dtype)
    shifted[1:] = z.flatten()
    gapped = torch.full((tasks, tokens + 1, width), torch.nan, dtype=z.dtype)
    gapped[:, :tokens] = z
    return {
        "slice": wide[:, :tokens, 2 : width + 2],
        "unaligned": shifted[1:].view(tasks, tokens, width),
        "gaps between tasks": gapped[:, :tokens],
        "transposed": z.transpose(0, 2).contiguous().transpose(0, 2),
        "backwards strides": z.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    }


@pytest.mark.parametrize("shape", [(37, 21, 6), (37, 8, 4), (37, 9, 5)], ids=["together", "padded", "odd"])
def test_tokens_anywhere_in_memory(kernel: Kernel, shape: tuple[int, int, int]) -> None:
    """Every way of copying brings the same bits."""
    tasks, tokens, width = shape
    case = response_case(tasks=tasks, tokens=tokens, width=width, layers=2).to(torch.float32)
    case = replace(case, z=case.z.detach())
    for dtype in (torch.float32, torch.bfloat16):
        z = case.z.to(dtype)
        plain = NetworkCall(replace(case, z=z))
        kernel(plain, FORWARD)
        for name, view in views(z).items():
            call = NetworkCall(replace(case, z=view))
            kernel(call, FORWARD)
            assert torch.equal(call.result, plain.result), name


def test_a_task_with_nan_spoils_only_itself(kernel: Kernel) -> None:
    case = response_case(tasks=40, tokens=6, width=4, layers=2).to(torch.float32)
    z = case.z.detach().clone()
    z[33, 2, 1] = torch.nan
    call = NetworkCall(replace(case, z=z))
    kernel(call, BACKWARD, grad=torch.ones(1, 40, 1))
    finite = call.grads["z"].isfinite().flatten(1).all(1)
    assert not finite[33]
    assert finite.sum() == 39
    assert call.grads["q"].isnan().all()
    kernel(call, FORWARD)
    assert call.result[0, :, 0].isfinite().sum() == 39


def test_tiles_are_read_without_conflicts(library: ctypes.CDLL) -> None:
    """No task overlaps the next, vectors are aligned, and banks serve a group of lanes in two turns at most."""
    for number in (2, 4, 8):
        for width in range(1, 18):
            for rows in range(1, 70):
                size, task = width * number, library.tile_task_bytes(rows, width, number)
                vector = min(size & -size, 16)
                assert rows * size <= task <= rows * size + 16
                assert task % vector == 0
                assert library.tile_conflicts(rows, width, number) <= 2, (rows, width, number)


def test_padding_leaves_tasks_to_bulk_copies(library: ctypes.CDLL) -> None:
    """Those of even width whose rows fill multiples of 16 bytes."""
    for width in range(2, 18, 2):
        for rows in range(4, 70, 4):
            assert library.tile_task_bytes(rows, width, 4) % 16 == 0, (rows, width)


def test_the_tiles_of_the_benchmark_are_copied_whole(library: ctypes.CDLL) -> None:
    """d = 5, n = 20: 126 numbers a task, no padding, no conflicts, in single and half precision."""
    for number in (2, 4):
        assert library.tile_task_bytes(21, 6, number) == 126 * number
        assert library.tile_conflicts(21, 6, number) == 1
