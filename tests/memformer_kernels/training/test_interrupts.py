"""Steps that a signal's handler cuts short, and steps as autograd sees them: whole ones, and writes."""

import copy
import dis
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from memformer_kernels import (
    Adam,
    AdamW,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.training import native, steps
from memformer_kernels.training.samplers import Sampler
from tests.dropped import heard_again
from tests.marks import slow_but
from tests.memformer_kernels.native import PATIENCE
from tests.memformer_kernels.training.runs import D, N, model, tensors

SAMPLERS: dict[str, Sampler] = {
    "statistics": GaussianStatistics(D, N, 300, query="integrated"),
    "tokens": GaussianTokens(D, N, 300, resample_every=3),
    "epochs": FixedTasks(torch.randn(120, N + 1, D + 1), torch.randn(120, 1), N, batch=50),
}
OPTIMIZER = AdamW(0.01, clip=0.5, schedule=Schedule("cosine", steps=4000))


RETURN = dis.opmap["RETURN_VALUE"]


class Alarmed(Exception):
    """What the handler of these tests raises."""


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarmed

    before = signal.signal(signal.SIGALRM, ring)
    with heard_again(Alarmed, lambda later: signal.setitimer(signal.ITIMER_REAL, later)):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def alone() -> Iterator[ProcessGroup]:
    """A group of this process by itself."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def state(dtype: torch.dtype = torch.float32) -> TrainState:
    return TrainState.of([model(2, seed, dtype) for seed in range(2)], seeds=3)


def take(held: TrainState, sampler: Sampler, count: int, backend: str, after: float) -> Tensor:
    """The losses of the steps that are done until the alarm rings or there are `count`."""
    losses = torch.empty(0, held.models, dtype=torch.float64)
    before = held.step
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        losses = steps.train_steps(held, sampler, count, optimizer=OPTIMIZER, backend=backend)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarmed as alarm:
        losses = getattr(alarm, "losses", losses)
    assert len(losses) == held.step - before
    return losses


@pytest.mark.parametrize(
    ("name", "backend", "count", "rounds"),
    [
        ("statistics", "cpu", 20_000 // PATIENCE, 60),
        ("tokens", "cpu", 6_000 // PATIENCE, 60),
        ("epochs", "cpu", 1_500 // PATIENCE, 20),
        *slow_but([("tokens", "torch", 30, 20)], ((name, "torch", 30, 20) for name in SAMPLERS)),
    ],
)
def test_interrupted_steps_continue_the_exact_trace(
    name: str, backend: str, count: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short at random moments, every one of them: no step is lost, torn or taken twice."""
    monkeypatch.setattr(native, "_SECONDS", 1e-3)
    sampler, whole, parts = SAMPLERS[name], state(), state()
    begin = time.perf_counter()
    expected = steps.train_steps(whole, sampler, count, optimizer=OPTIMIZER, backend=backend)
    pace = (time.perf_counter() - begin) / rounds
    moments, traces, longest = random.Random(0), [], 2 * pace
    while parts.step < count:
        traces.append(take(parts, sampler, count - parts.step, backend, max(1e-4, longest * moments.random())))
        # Where a call takes longer to begin than it may last, no step would ever be done.
        longest = 2 * pace if len(traces[-1]) else 2 * longest
    assert len(traces) > 5
    assert torch.equal(torch.cat(traces), expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(parts), tensors(whole), strict=True))
    assert (parts.step, parts.skipped.tolist()) == (whole.step, whole.skipped.tolist())


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_signal_is_seen_while_steps_are_taken(backend: str) -> None:
    """Within a fraction of a second, where all the steps would take many minutes."""
    held, sampler = state(), GaussianStatistics(D, N, 20_000, query="integrated")
    steps.train_steps(held, sampler, 1, optimizer=OPTIMIZER, backend=backend)
    begin = time.perf_counter()
    losses = take(held, sampler, 1_000_000, backend, 0.5)
    assert time.perf_counter() - begin < 2.0 * PATIENCE
    assert 0 < len(losses) < 1_000_000


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("group", slow_but([True], [False, True]), ids=["alone", "group"])
def test_a_signal_ends_a_single_long_step(count: int, group: bool, alone: ProcessGroup) -> None:
    """A step of many seconds, by parts of a model's tasks and by models, leaves the state of before."""
    held = TrainState.of([model(2, seed, torch.float32) for seed in range(count)], seeds=3)
    before = [tensor.clone() for tensor in tensors(held)]
    sampler, begin = GaussianTokens(D, 64, 2**25), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(Alarmed) as alarm:
        steps.train_steps(held, sampler, 1, optimizer=OPTIMIZER, backend="cpu", group=alone if group else None)
    assert time.perf_counter() - begin < 2.0 * PATIENCE
    assert alarm.value.losses.shape == (0, count)  # type: ignore[attr-defined]
    assert held.step == 0
    assert all(torch.equal(left, right) for left, right in zip(tensors(held), before, strict=True))


def test_a_long_run_has_steps_soon() -> None:
    """What is made for ten million steps is not made before the first."""
    losses = take(state(), GaussianStatistics(D, N, 16, query="integrated"), 10_000_000, "cpu", 0.5)
    assert len(losses)


def _cut(run: Callable[[TrainState], Tensor], files: str, every: int) -> Iterator[tuple[TrainState, Tensor]]:
    """The state and the losses that a run leaves which ends before an instruction: every so many in these files."""
    tracer = sys.gettrace()
    for moment in itertools.count(0, every):
        held, left = state(torch.float64), iter(range(moment, -1, -1))

        def trace(frame: FrameType, event: str, argument: object, left: Iterator[int] = left) -> Any:
            if files not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = True
            # No signal is handled between a result and its handing over.
            if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != RETURN and next(left, None) == 0:
                raise Alarmed
            return trace

        try:
            sys.settrace(trace)
            run(held)
        except Alarmed as alarm:
            sys.settrace(tracer)
            yield held, getattr(alarm, "losses", torch.empty(0, 2, dtype=torch.float64))
        else:
            return
        finally:
            sys.settrace(tracer)


@pytest.mark.parametrize(
    ("backend", "group", "files", "every"),
    [
        ("cpu", False, "native", 1),
        ("cpu", True, "training", 11),
        ("torch", True, "steps", 3),
        pytest.param("cpu", False, "training", 7, marks=pytest.mark.slow),
        pytest.param("torch", False, "definition", 11, marks=pytest.mark.slow),
    ],
)
def test_no_instruction_is_between_the_parts_of_a_step(
    backend: str, group: bool, files: str, every: int, alone: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever instruction an exception comes before: parameters, moments, counters and losses are of one moment."""
    monkeypatch.setattr(native, "_SECONDS", 0.0)  # a step a call
    sampler = GaussianStatistics(D, N, 16, query="integrated")

    def run(held: TrainState, count: int = 2) -> Tensor:
        return steps.train_steps(
            held, sampler, count, optimizer=OPTIMIZER, backend=backend, max_skipped=3, group=alone if group else None
        )

    after = [state(torch.float64)]
    for _ in range(2):
        after.append(copy.deepcopy(after[-1]))
        run(after[-1], 1)
    losses, taken = run(state(torch.float64)), set()
    for held, found in _cut(run, f"{os.sep}training{os.sep}{'' if files == 'training' else files}", every):
        assert torch.equal(found, losses[: held.step])
        expected = tensors(after[held.step])
        assert all(torch.equal(left, right) for left, right in zip(tensors(held), expected, strict=True))
        taken.add(held.step)
    assert {0, 1} <= taken


def test_a_handler_that_returns_stops_nothing() -> None:
    rings = []
    signal.signal(signal.SIGALRM, lambda number, frame: rings.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    held, other = state(), state()
    sampler = SAMPLERS["statistics"]
    trace = steps.train_steps(held, sampler, 3000, optimizer=OPTIMIZER, backend="cpu")
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert rings
    assert torch.equal(trace, steps.train_steps(other, sampler, 3000, optimizer=OPTIMIZER, backend="cpu"))


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_graph_built_before_a_step_raises(backend: str, group: bool, alone: ProcessGroup) -> None:
    held = state(torch.float64)
    sampler = GaussianStatistics(D, N, 30, query="integrated")
    written = [*held.parameters.values(), *held.first.values(), *held.second.values(), held.skipped, held.counter]
    for value in written:
        factor = torch.ones(value.shape or (1,), dtype=torch.float64, requires_grad=True)
        product = (factor * value).sum()
        steps.train_steps(held, sampler, 1, optimizer=Adam(0.01), backend=backend, group=alone if group else None)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_a_copy_has_a_counter_of_its_own() -> None:
    held = state()
    other = copy.deepcopy(held)
    steps.train_steps(held, SAMPLERS["statistics"], 3, optimizer=OPTIMIZER, backend="cpu")
    assert (held.step, other.step) == (3, 0)
    other.step = 7
    assert other.counter.tolist() == 7


def test_other_native_operations_write_to_nothing_that_a_caller_has() -> None:
    network = {name: value[0].clone().requires_grad_() for name, value in state(torch.float64).parameters.items()}
    shapes = ((5, N + 1, D + 1), (5, 1), (2, D), (2, D, D), (2, D, D))
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    z, target, b, a, h = (one.requires_grad_() for one in given)
    layer = {"q": network["q"][0].detach().clone().requires_grad_()}
    leaves = [z, target, h, b, a, *network.values(), *layer.values()]
    bits, versions = [one.detach().clone() for one in leaves], [one._version for one in leaves]
    results = [
        memformer_stack(z, **network, context=N, backend="cpu"),
        memformer_predict(z, **network, context=N, backend="cpu"),
        memformer_loss(z, target, **network, context=N, backend="cpu"),
        *memformer_layer(z, **layer, context=N, backend="cpu"),
        context_gram(z, N),
        lfom_solve(h, b, a, backend="cpu"),
    ]
    torch.autograd.backward([result.sum() for result in results])
    assert all(one.grad is not None for one in leaves)
    assert all(torch.equal(one, bit) for one, bit in zip(leaves, bits, strict=True))
    assert versions == [one._version for one in leaves]
