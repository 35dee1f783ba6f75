"""The order in which epochs take given tasks: that of the definition, drawn once an epoch on every backend."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memformer_kernels import SGD, FixedTasks, TrainState, availability, train_steps
from memformer_kernels.training import orders
from memformer_kernels.training.philox import task_words
from tests.memformer_kernels.training.runs import D, model

SOURCES = [(7, 0), (7, 3), (2**40 + 1, 5), (7, 0)]
OPTIMIZER = SGD(0.01)
native = pytest.mark.skipif(not availability.available("cpu"), reason="the native library is not here")


def given(tasks: int = 50, batch: int = 12, **options: Any) -> FixedTasks:
    generator = torch.Generator().manual_seed(0)
    z, target = (torch.randn(tasks, *shape, generator=generator) for shape in ((9, D + 1), (1,)))
    return FixedTasks(z, target, 8, batch=batch, **options)


def defined(sampler: FixedTasks, seed: int, stream: int, draw: int) -> Tensor:
    """A batch's indices, word by word."""
    epoch, place = divmod(draw, sampler.draws_of_epoch)
    tasks, size = sampler.z.shape[0], sampler.batch or 0
    words = task_words(seed, stream, epoch, range(tasks), 0, 1).tolist()
    order = sorted(range(tasks), key=lambda task: (words[task][0] << 31) | (words[task][1] >> 1))
    return torch.tensor(order[place * size : (place + 1) * size])


@pytest.mark.parametrize("draws", [range(1), range(1, 9), range(3, 7), range(2**34, 2**34 + 2)])
def test_batches_are_those_of_the_definition(draws: range) -> None:
    """Epochs whole and in part, one that is kept from before, and one past 32 bits."""
    sampler = given()
    for _ in range(2):
        found = orders.batches(sampler, SOURCES, draws, "cpu")
        expected = [torch.stack([defined(sampler, *source, draw) for source in SOURCES]) for draw in draws]
        assert torch.equal(found, torch.stack(expected))
        assert found.is_contiguous()


def test_without_shuffling_tasks_come_as_they_are() -> None:
    found = orders.batches(given(shuffle=False), SOURCES, range(3, 6), "cpu")
    assert found[:, 2].tolist() == [list(range(36, 48)), list(range(12)), list(range(12, 24))]


@contextmanager
def counted_orders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Orders that are drawn: how many, and of which epoch."""
    drawn: list[tuple[int, int]] = []
    draw = orders.draw_orders

    def counting(sources: Any, epoch: int, *sizes: Any) -> Tensor:
        drawn.append((len(sources), epoch))
        return draw(sources, epoch, *sizes)

    monkeypatch.setattr(orders, "draw_orders", counting)
    yield drawn


def state(models: int) -> TrainState:
    return TrainState.of([model(1, seed, torch.float32) for seed in range(models)], seeds=3)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
def test_an_epoch_is_drawn_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In calls of one step and of several, within an epoch and over the end of one."""
    sampler, held = given(), state(3)
    with counted_orders(monkeypatch) as drawn:
        for steps in (1, 1, 1, 4, 1, 2):
            train_steps(held, sampler, steps, optimizer=OPTIMIZER, backend=backend)
    for epoch in range(3):
        assert sum(count for count, number in drawn if number == epoch) == 3
    assert {number for _, number in drawn} == {0, 1, 2}


@native
def test_a_step_within_an_epoch_is_a_few_operators() -> None:
    """However many models; drawing an order takes some 150."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    sampler, held = given(200, 4), state(20)
    train_steps(held, sampler, 1, optimizer=OPTIMIZER, backend="cpu")
    with Counting() as counting:
        train_steps(held, sampler, 1, optimizer=OPTIMIZER, backend="cpu")
    assert counting.count < 150


def test_models_that_come_together_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_orders(monkeypatch) as drawn:
        orders.batches(given(), SOURCES, range(1), "cpu")
    assert drawn == [(3, 0)]  # two of the four are the same


def test_orders_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tasks' own memory; what is not kept is drawn again."""
    monkeypatch.setattr(orders, "_KEPT_BYTES", 0)
    sampler = FixedTasks(torch.zeros(50, 2, 2), torch.zeros(50, 1), 1, batch=12)
    room = sampler.z.nbytes // (8 * 50)
    sources = [(seed, 0) for seed in range(room + 3)]
    first = orders.batches(sampler, sources, range(1), "cpu")
    assert len(orders._kept[sampler]) == room
    assert torch.equal(orders.batches(sampler, sources, range(1), "cpu"), first)


def test_orders_go_with_their_sampler() -> None:
    gc.collect()
    before = len(orders._kept)
    sampler = given()
    orders.batches(sampler, SOURCES, range(1), "cpu")
    assert len(orders._kept) == before + 1
    del sampler
    gc.collect()
    assert len(orders._kept) == before
