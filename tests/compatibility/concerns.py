"""The columns of the table: for each a check that a row either passes or fails."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from tests.compatibility.subjects import Subject, outcome, results, scalar
from tests.dropped import heard_again

Inputs = tuple[Tensor, ...]


def close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-11)


def _parameters(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


def _of_parameters(subject: Subject) -> tuple[Callable[..., Tensor], dict[str, Tensor], Inputs]:
    """A scalar as a function of the parameters and the data."""
    model = subject.model()
    named = {name: value.detach() for name, value in model.named_parameters()}
    return lambda weights, *data: scalar(functional_call(model, weights, data)), named, subject.data(3)


def compiled(subject: Subject) -> None:
    model, data = subject.model(), subject.data(3)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(outcome(whole, data, _parameters(model)), outcome(model, data, _parameters(model)))


def compiled_func(subject: Subject) -> None:
    function, weights, data = _of_parameters(subject)

    def gradient(*given: Tensor) -> Any:
        return grad(function)(weights, *given)

    def tangent(*given: Tensor) -> Any:
        return jvp(lambda w: function(w, *given), (weights,), (weights,))

    for transformed in (gradient, tangent):
        made = torch.compile(transformed, fullgraph=True, backend="aot_eager")(*data)
        close(made, transformed(*data))


def func(subject: Subject) -> None:
    function, weights, data = _of_parameters(subject)
    model = subject.model()
    gradients = grad(function)(weights, *data)
    expected = torch.autograd.grad(scalar(model(*data)), _parameters(model))
    close(list(gradients.values()), list(expected))
    _, tangent = jvp(lambda w: function(w, *data), (weights,), (weights,))
    close(tangent, sum((gradients[name] * weights[name]).sum() for name in weights))
    one_by_one = [grad(function)(weights, *(x[i : i + 1] for x in data)) for i in range(3)]
    per_sample = vmap(lambda *one: grad(function)(weights, *(x[None] for x in one)))(*data)
    close(per_sample, {name: torch.stack([one[name] for one in one_by_one]) for name in weights})
    _, pull_back = vjp(lambda *given: function(weights, *given), *data)
    assert all(bool(x.any()) for x in pull_back(torch.ones((), dtype=torch.float64)))


def legacy_vmap(subject: Subject) -> None:
    model, data = subject.model(), subject.data(2)

    def first(*given: Tensor) -> Tensor:
        return results(model(*given))[0]

    jacobian = torch.autograd.functional.jacobian
    close(jacobian(first, data, vectorize=True), jacobian(first, data))
    given = [x.clone().requires_grad_() for x in data]
    made = first(*given)
    ways = torch.randn(3, *made.shape, generator=torch.Generator().manual_seed(1), dtype=made.dtype)
    wanted = [*given, *_parameters(model)]
    batched = torch.autograd.grad(made, wanted, ways, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(made, wanted, way, retain_graph=True) for way in ways]
    close(list(batched), [torch.stack(parts) for parts in zip(*alone, strict=True)])


def autocast(subject: Subject) -> None:
    model, data = subject.model().float(), tuple(x.float() for x in subject.data(8))
    expected = outcome(model, data, _parameters(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = outcome(model, data, _parameters(model))
    count = len(results(model(*data)))
    for ours, theirs in zip(made[:count], expected[:count], strict=True):
        assert (ours.float() - theirs).norm() <= 0.05 * theirs.norm()
    ours, theirs = (torch.cat([x.float().flatten() for x in found[count:]]) for found in (made, expected))
    assert (ours - theirs).norm() <= 0.1 * theirs.norm()


def checkpointed(subject: Subject) -> None:
    model, data = subject.model(), subject.data(3)
    expected = outcome(model, data, _parameters(model))
    for reentrant in (False, True):
        given = [x.clone().requires_grad_() for x in data]
        model.zero_grad()
        made = checkpoint(model, *given, use_reentrant=reentrant)
        scalar(made).backward()
        gradients = [x.grad for x in (*given, *model.parameters())]
        close([*(x.detach() for x in results(made)), *gradients], expected)


def exported(subject: Subject) -> None:
    model = subject.model()
    samples = torch.export.Dim("samples", min=2)
    shapes = tuple({0: samples} for _ in subject.shapes)
    dynamic = {"data": shapes} if type(model).__name__ == "Call" else shapes
    program = torch.export.export(model, subject.data(3), dynamic_shapes=dynamic).module()
    for count in (3, 5):
        close(program(*subject.data(count)), model(*subject.data(count)))


def traced(subject: Subject) -> None:
    model, data = subject.model(), subject.data(3)
    graph = torch.fx.symbolic_trace(_Spelled(model, len(data)))
    own = [graph.get_parameter(f"model.{name}") for name, _ in model.named_parameters()]
    close(outcome(graph, data, own), outcome(model, data, _parameters(model)))


class _Spelled(nn.Module):
    """A model with as many arguments as it has data, since a trace has no variable number of them."""

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, one: Tensor, two: Any = None, three: Any = None) -> Any:
        return self.model(*(one, two, three)[: self.count])


def forked(subject: Subject) -> None:
    model, data = subject.model(), subject.data(3000)
    with _threads(2):
        expected = outcome(model, data, _parameters(model))

        def child() -> None:
            torch.set_num_threads(1)
            close(outcome(model, data, _parameters(model)), expected)

        assert in_a_child(child)


def in_a_child(work: Callable[[], None], seconds: float = 60.0) -> bool:
    """Whether a forked child does its work without an error, in time."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threaded(subject: Subject) -> None:
    model, data = subject.model(), subject.data(50)
    expected = outcome(model, data, _parameters(model))
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: outcome(model, data, _parameters(model)), range(12)):
            close(made, expected)


class Interrupted(BaseException):
    """What the signal raises here, in place of KeyboardInterrupt, which a test runner takes for its own."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Sends this process a signal, whose handler raises Interrupted, and demands that it is raised within 2 s."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def send(later: float) -> None:
        timers.append(threading.Timer(later, os.kill, (os.getpid(), signal.SIGUSR1)))
        timers[-1].start()

    timers: list[threading.Timer] = []
    before = signal.signal(signal.SIGUSR1, interrupt)
    start = time.monotonic()
    try:
        with heard_again(Interrupted, send):
            send(seconds)
            yield
        raise AssertionError("the work ended before it was interrupted")
    except Interrupted:
        assert time.monotonic() - start < seconds + 2
    finally:
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGUSR1, before)


def signalled(subject: Subject) -> None:
    model, data = subject.model(), subject.data(2000)
    expected = outcome(model, data, _parameters(model))
    with interrupted_after(0.1):
        while True:
            outcome(model, data, _parameters(model))
    close(outcome(model, data, _parameters(model)), expected)
