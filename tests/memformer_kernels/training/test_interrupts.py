"""Steps that a signal's handler cuts short, and steps as autograd sees them: whole ones, and writes."""

import copy
import random
import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest
import torch
from torch import Tensor

from memformer_kernels import Adam, AdamW, FixedTasks, GaussianStatistics, GaussianTokens, Schedule, TrainState
from memformer_kernels.training import steps
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import D, N, model, tensors

SAMPLERS: dict[str, Sampler] = {
    "statistics": GaussianStatistics(D, N, 300, query="integrated"),
    "tokens": GaussianTokens(D, N, 300, resample_every=3),
    "epochs": FixedTasks(torch.randn(120, N + 1, D + 1), torch.randn(120, 1), N, batch=50),
}
OPTIMIZER = AdamW(0.01, clip=0.5, schedule=Schedule("cosine", steps=4000))


class Alarmed(Exception):
    """What the handler of these tests raises."""


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarmed

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


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


@pytest.mark.parametrize(("backend", "count", "rounds"), [("cpu", 4000, 60), ("torch", 60, 40)])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_interrupted_steps_continue_the_exact_trace(sampler: Sampler, backend: str, count: int, rounds: int) -> None:
    """Cut short at random moments, every one of them: no step is lost, torn or taken twice."""
    whole, parts = state(), state()
    begin = time.perf_counter()
    expected = steps.train_steps(whole, sampler, count, optimizer=OPTIMIZER, backend=backend)
    pace = (time.perf_counter() - begin) / rounds
    moments, traces = random.Random(0), []
    while parts.step < count:
        traces.append(take(parts, sampler, count - parts.step, backend, max(1e-4, 2 * pace * moments.random())))
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
    assert time.perf_counter() - begin < 2.0
    assert 0 < len(losses) < 1_000_000


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


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_graph_built_before_a_step_raises(backend: str) -> None:
    held = state(torch.float64)
    sampler = GaussianStatistics(D, N, 30, query="integrated")
    for group in (held.parameters, held.first, held.second):
        for value in group.values():
            factor = torch.ones_like(value, requires_grad=True)
            product = (factor * value).sum()
            steps.train_steps(held, sampler, 1, optimizer=Adam(0.01), backend=backend)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                product.backward()


def test_a_copy_has_a_counter_of_its_own() -> None:
    held = state()
    other = copy.deepcopy(held)
    steps.train_steps(held, SAMPLERS["statistics"], 3, optimizer=OPTIMIZER, backend="cpu")
    assert (held.step, other.step) == (3, 0)
    other.step = 7
    assert other.counter.tolist() == 7
