"""Signals and failures during a native call: handlers run while it lasts, and what they or a thread raise ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
)
from tests.marks import slow_but
from tests.memformer_kernels import native

assert native.NATIVE is not None
ROOT = Path(__file__).parents[3]

AFTER = 0.5
"""Seconds from a call's start to the signal."""

WITHIN = 0.2 * native.PATIENCE
"""Seconds from a signal to its handler: polls are at least five times a second. They are the processor's, on all of the
process's threads: other processes may keep this one waiting."""


class Stop(Exception):
    """What a handler raises."""


@contextmanager
def _signalled(number: int, handler: Callable[[], None], times: int = 1) -> Iterator[list[float]]:
    """Sends this process signals, `AFTER` apart; yields the processor's time from each to its handler."""
    sent: list[float] = []
    delays: list[float] = []
    done = threading.Event()

    def handle(*_: object) -> None:
        delays.append(time.process_time() - sent[-1])
        handler()

    def send() -> None:
        for _ in range(times):
            if done.wait(AFTER):
                return
            sent.append(time.process_time())
            os.kill(os.getpid(), number)

    before = signal.signal(number, handle)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield delays
    finally:
        done.set()
        thread.join()
        signal.signal(number, before)


def _ones(*shape: int) -> Tensor:
    """A view that takes no memory."""
    return torch.ones(()).expand(shape)


def _long_network(tasks: int, d: int, tokens: int, layers: int = 1) -> tuple[Tensor, Tensor]:
    return _ones(tasks, tokens, d + 1), torch.zeros(layers, 1, d, d)


def _backward(value: Tensor) -> Tensor:
    value.backward()
    return value


def _loss_backward() -> Tensor:
    z, q = _long_network(64, 5, 2**26)
    return _backward(memformer_loss(z, torch.zeros(64, 1), q.requires_grad_(), backend="cpu"))


def _long_solve() -> Tensor:
    return lfom_solve(_ones(2**14, 64, 64), _ones(2**14, 64), torch.zeros(2000, 64, 64), backend="cpu")


def _gram_gradients(tasks: int, tokens: int, width: int) -> Tensor:
    """All tasks' gradients in the place of one."""
    grad = torch.zeros(1, tokens, width).expand(tasks, tokens, width)
    native.NATIVE.context_gram_backward(_ones(tasks, width, width), _ones(*grad.shape), None, tokens, grad)
    return grad


def _long_tokens() -> Tensor:
    z, q = _long_network(2**21, 5, 100, 40)
    return memformer_predict(z, q, gamma=torch.ones(40, 40, 1, 100, 6), backend="cpu")


_TOKENS = torch.zeros(1, 2**18, 64)


def _register_gradients() -> Tensor:
    gamma = torch.zeros(1500, requires_grad=True)
    return _backward(register_update(_TOKENS, [_TOKENS] * 1500, gamma).sum())


def _untouched(tasks: int, numbers: int, dtype: torch.dtype) -> Tensor:
    """Memory for results that nobody fills before the call writes there, up to where it ends."""
    storage = torch.UntypedStorage(tasks * numbers * dtype.itemsize)
    return torch.tensor((), dtype=dtype).set_(storage, 0, (tasks, numbers))


def _drawn(sampler: str, tasks: int, context: int, queries: int) -> Tensor:
    """Tasks of one feature as the trainer draws them, written out."""
    cells = _untouched(tasks, 3 + 3 * queries if queries else 4, torch.float32)
    first = torch.zeros(1, dtype=torch.int64)
    tokens = context + (queries if sampler == "tokens" else 0)
    source = (sampler, 1, tasks, tokens, context, queries, False, 0.0, 0.0, *[None] * 5)
    native.NATIVE.sample_tasks(first, first, *source, 0, cells)
    return cells


def _random_numbers(tasks: int, blocks: int) -> Tensor:
    numbers = _untouched(tasks, 4 * blocks, torch.float64)
    native.NATIVE.random_numbers("normals", 0, 0, 0, True, numbers)
    return numbers


CALLS: dict[str, Callable[[], Tensor]] = {
    "lanes": lambda: context_gram(_ones(64, 2**27, 8), 2**27),
    "pieces": lambda: context_gram(_ones(7, 2**26, 16), 2**26),
    "gram": lambda: memformer_predict(*_long_network(64, 5, 2**26), backend="cpu"),
    "tokens": _long_tokens,
    "wide Gram matrices": lambda: context_gram(_ones(200, 2**17, 300), 2**17),
    "gradients of wide Gram matrices": lambda: _gram_gradients(2**12, 2**12, 300),
    "wide gram": lambda: memformer_predict(*_long_network(4, 255, 2**22), backend="cpu"),
    "one wide task": lambda: memformer_predict(*_long_network(1, 511, 2**20), backend="cpu"),
    "wide tokens": lambda: memformer_predict(*_long_network(2**16, 255, 200, 20), backend="cpu", algorithm="token"),
    "quadratics": lambda: lfom_solve(_ones(2**22, 5, 5), _ones(2**22, 5), torch.zeros(3000, 5, 5), backend="cpu"),
    "wide quadratics": _long_solve,
    "loss and gradients": _loss_backward,
    "attention": lambda: linear_attention(
        *(_ones(1, 2**19, 8, width) for width in (256, 256, 16)), causal=True, backend="cpu"
    ),
    "register update": lambda: register_update(_TOKENS, [_TOKENS] * 6000, torch.zeros(6000)),
    "register gradients": _register_gradients,
    "numbers of many tasks": lambda: _random_numbers(2**26, 1),
    "numbers of one task": lambda: _random_numbers(1, 2**26),
    "many drawn tasks": lambda: _drawn("tokens", 2**24, 100, 0),
    "one drawn task": lambda: _drawn("tokens", 1, 2**29 - 1, 0),
    "queries of a drawn task": lambda: _drawn("tokens", 1, 1, 2**24),
    "statistics of many tasks": lambda: _drawn("statistics", 2**24, 1000, 0),
    "statistics of a long task": lambda: _drawn("statistics", 1, 2**30, 0),
    "layer": lambda: memformer_layer(
        _ones(2**14, 128, 16), torch.zeros(2**11 // native.PATIENCE, 15, 15), backend="cpu"
    )[0],
    "wide layer": lambda: memformer_layer(
        _ones(2**12, 64, 64), torch.zeros(100 // native.PATIENCE, 63, 63), backend="cpu"
    )[0],
    "stack": lambda: memformer_stack(
        _ones(2**14, 128, 6), *[torch.zeros(8000 // native.PATIENCE, 8, 5, 5)] * 2, backend="cpu"
    ),
}
"""Every kernel, on enough to take seconds on any machine, most of it in views that take no memory."""


@pytest.mark.parametrize("threads", slow_but([1], [1, 2]))
@pytest.mark.parametrize("call", CALLS)
def test_what_a_handler_raises_ends_a_call_at_once(call: str, threads: int) -> None:
    def stop() -> None:
        raise Stop("by its own words")

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _signalled(signal.SIGINT, stop) as delays:
            with pytest.raises(Stop, match="by its own words"):
                CALLS[call]()
            assert len(delays) == 1
            assert delays[0] < WITHIN * threads
    finally:
        torch.set_num_threads(before)


def test_a_handler_that_returns_lets_the_call_go_on() -> None:
    z = _ones(7, 2**24, 16)
    expected = context_gram(z, 2**24)
    heard: list[int] = []
    with _signalled(signal.SIGUSR1, lambda: heard.append(1), times=20) as delays:
        until = time.monotonic() + 2 * AFTER + 1
        while time.monotonic() < until:
            assert torch.equal(context_gram(z, 2**24), expected)
        assert len(delays) >= 2
        assert max(delays) < WITHIN * torch.get_num_threads()


def test_a_call_on_another_thread_leaves_signals_to_the_first() -> None:
    """It runs to its end, whatever the first thread's handlers raise meanwhile."""
    z = _ones(7, 2**24, 16)
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(context_gram(z, 2**24)))

    def stop() -> None:
        raise Stop

    thread.start()
    with _signalled(signal.SIGINT, stop), pytest.raises(Stop):
        time.sleep(4 * AFTER)
    thread.join()
    assert made[0][0, 0, 0] == 2**24


MEMORY = """
import resource, sys, torch
from memformer_kernels import memformer_predict
from tests.memformer_kernels import native
torch.set_num_threads(2)
arguments = (torch.ones(()).expand(600, 30, 512), torch.zeros(1, 1, 511, 511))
memformer_predict(*arguments, backend="cpu")
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), most))
try:
    z = torch.ones(()).expand(600, 2**22, 16)
    memformer_predict(z, torch.zeros(1, 1, 15, 15), algorithm="token", backend="cpu")
except MemoryError as error:
    print("MemoryError:", error)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert torch.isfinite(memformer_predict(*arguments, backend="cpu")).all()
"""


def test_memory_that_a_thread_cannot_get_is_a_memory_error() -> None:
    """Each thread wants some hundreds of MiB for a task: none ends the process, and the next call is served."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(100 << 20)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MemoryError: out of memory: a native kernel could not get ")


@pytest.mark.parametrize("d", [12, 64])
def test_a_handler_may_call_what_it_interrupts(d: int) -> None:
    """Both calls, and those that a second signal comes in, give the bits that they give alone."""
    generator = torch.Generator().manual_seed(d)
    q = torch.randn(3, 1, d, d, generator=generator) / d
    long, short = (torch.randn(tasks, 2 * d, d + 1, generator=generator) / d for tasks in (1, 40))
    long = long.expand(2**19 // d, -1, -1)

    def gradients(z: Tensor) -> tuple[Tensor, ...]:
        learned = q.clone().requires_grad_()
        loss = memformer_loss(z, z[:, -1:, -1].clone(), learned, backend="cpu")
        return loss.detach(), *torch.autograd.grad(loss, learned)

    inner: list[tuple[Tensor, ...]] = []

    def handle() -> None:
        with torch.enable_grad():
            inner.append(gradients(short))

    alone, expected = gradients(long), gradients(short)
    with _signalled(signal.SIGALRM, handle, times=3):
        begin = time.monotonic()
        while len(inner) < 3:
            made = gradients(long)
            assert all(torch.equal(one, other) for one, other in zip(made, alone, strict=True))
            assert time.monotonic() - begin < 60 * native.PATIENCE
    for found in inner:
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def _in_a_handler(call: Callable[[], object]) -> tuple[bool, bool]:
    """Grad mode in a signal's handler during a call, which it ends, and whether autograd records what it does."""
    seen: list[tuple[bool, bool]] = []

    def handle() -> None:
        seen.append((torch.is_grad_enabled(), (2 * torch.ones(1, requires_grad=True)).requires_grad))
        raise Stop

    with _signalled(signal.SIGUSR1, handle), pytest.raises(Stop):
        call()
    return seen[0]


def _learning_prediction() -> Tensor:
    z, q = _long_network(64, 5, 2**26)
    return memformer_predict(z, q.requires_grad_(), backend="cpu")


@pytest.mark.parametrize("call", [_loss_backward, _learning_prediction])
def test_a_handler_finds_grad_mode_as_the_caller_has_it(call: Callable[[], Tensor]) -> None:
    assert _in_a_handler(call) == (True, True)
    with torch.no_grad():
        assert _in_a_handler(call) == (False, False)
    assert torch.is_grad_enabled()


def test_a_handlers_own_calls_have_callers_of_their_own() -> None:
    """A second handler, in a call that the first makes without gradients, finds them off, as the first has them."""
    seen: list[bool] = []

    def handle() -> None:
        seen.append(torch.is_grad_enabled())
        if len(seen) == 1:
            with torch.no_grad():
                _learning_prediction()
        raise Stop

    with _signalled(signal.SIGUSR1, handle, times=2), pytest.raises(Stop):
        _loss_backward()
    assert seen == [True, False]


def test_a_handler_within_the_dispatcher_gets_no_gradients() -> None:
    """A limit: PyTorch's stable ABI does not reach the keys that a profiled call has excluded."""
    with torch.autograd.profiler.profile():
        assert _in_a_handler(_learning_prediction)[1] is False
