"""Signals and failures during a native call: handlers run while it lasts, and what they or a thread raise ends it."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from tests.memformer_kernels import native

assert native.NATIVE is not None
AFTER = 0.5
"""Seconds from a call's start to the signal."""

_GAMMA = torch.ones(2000, 1, 1)

WITHIN = 0.2
"""Seconds from a signal to its handler: polls are at least five times a second."""


class Stop(Exception):
    """What a handler raises."""


@contextmanager
def _signalled(number: int, handler: Callable[[], None], times: int = 1) -> Iterator[list[float]]:
    """Sends this process signals, `AFTER` apart; yields how long after each its handler ran."""
    sent: list[float] = []
    delays: list[float] = []
    done = threading.Event()

    def handle(*_: object) -> None:
        delays.append(time.monotonic() - sent[-1])
        handler()

    def send() -> None:
        for _ in range(times):
            if done.wait(AFTER):
                return
            sent.append(time.monotonic())
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
    z, q = _long_network(64, 5, 2**25)
    return _backward(memformer_loss(z, torch.zeros(64, 1), q.requires_grad_(), backend="cpu"))


def _long_solve() -> Tensor:
    return lfom_solve(_ones(2**14, 64, 64), _ones(2**14, 64), torch.zeros(2000, 64, 64), backend="cpu")


def _long_tokens() -> Tensor:
    z, q = _long_network(2**21, 5, 100, 40)
    return memformer_predict(z, q, gamma=torch.ones(40, 40, 1, 100, 6), backend="cpu")


CALLS: dict[str, Callable[[], Tensor]] = {
    "lanes": lambda: context_gram(_ones(64, 2**27, 8), 2**27),
    "pieces": lambda: context_gram(_ones(7, 2**26, 16), 2**26),
    "gram": lambda: memformer_predict(*_long_network(64, 5, 2**26), backend="cpu"),
    "tokens": _long_tokens,
    "wide gram": lambda: memformer_predict(*_long_network(4, 255, 2**22), backend="cpu"),
    "one wide task": lambda: memformer_predict(*_long_network(1, 511, 2**20), backend="cpu"),
    "wide tokens": lambda: memformer_predict(*_long_network(2**16, 255, 200, 20), backend="cpu", algorithm="token"),
    "quadratics": lambda: lfom_solve(_ones(2**22, 5, 5), _ones(2**22, 5), torch.zeros(3000, 5, 5), backend="cpu"),
    "wide quadratics": _long_solve,
    "loss and gradients": _loss_backward,
    "attention": lambda: linear_attention(*(_ones(1, 2**20, 8, 128) for _ in range(3)), causal=True, backend="cpu"),
    "register update": lambda: register_update(torch.ones(1, 2**20, 16), [torch.ones(1, 2**20, 16)] * 2000, _GAMMA),
    "layer": lambda: memformer_layer(_ones(2**12, 128, 16), torch.zeros(4096, 15, 15), backend="cpu")[0],
    "stack": lambda: memformer_stack(_ones(2**14, 128, 6), *[torch.zeros(8000, 8, 5, 5)] * 2, backend="cpu"),
}
"""Every kernel, on enough to take seconds on any machine, most of it in views that take no memory."""

@pytest.mark.parametrize("threads", [1, 2])
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
            assert delays[0] < WITHIN
    finally:
        torch.set_num_threads(before)
