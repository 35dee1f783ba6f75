"""Tasks that a function of the caller's draws: which batch a step sees, and what a function may not return."""

import copy
import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import SGD, Adam, DrawnTasks, TrainState, build_info, explain_training, train_steps
from tests.memformer_kernels.training.runs import D, N, drawn, model, state, tensors

BACKENDS = ["torch", "auto"]
OPTIMIZER = Adam(0.02, clip=1.0)


class Seen:
    """A function that draws, and what it was asked for and gave."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.made: list[Tensor] = []

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z, target = drawn(batch, generator)
        self.batches.append(batch)
        self.made.append(z.clone())
        return z, target


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_step_has_its_own_batch_which_is_drawn_once(backend: str) -> None:
    seen = Seen()
    losses = train_steps(state(), DrawnTasks(seen, D, N, 12), 3, optimizer=SGD(0.0), backend=backend)
    assert seen.batches == [12, 12, 12]
    assert len(set(losses[:, 0].tolist())) == 3
    assert not torch.equal(seen.made[0], seen.made[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_kept_for_the_steps_asked_for(backend: str) -> None:
    seen, held = Seen(), state()
    sampler = DrawnTasks(seen, D, N, 12, resample_every=3)
    losses = [train_steps(held, sampler, steps, optimizer=SGD(0.0), backend=backend)[:, 0] for steps in (2, 5)]
    trace = torch.cat(losses).tolist()
    assert [len(set(part)) for part in (trace[:3], trace[3:6], trace[6:])] == [1, 1, 1]
    assert len(set(trace)) == 3
    assert len(seen.batches) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_of_one_stream_see_the_same_tasks(backend: str) -> None:
    seen = Seen()
    held = TrainState.of([model()] * 4, seeds=[1, 1, 1, 2], streams=[0, 0, 1, 0])
    losses = train_steps(held, DrawnTasks(seen, D, N, 12), 2, optimizer=OPTIMIZER, backend=backend)
    assert torch.equal(losses[:, 0], losses[:, 1])
    assert len(set(losses[0].tolist())) == 3
    assert len(seen.batches) == 6
    single = TrainState.of([model()], seeds=2)
    alone = train_steps(single, DrawnTasks(drawn, D, N, 12), 2, optimizer=OPTIMIZER, backend=backend)
    torch.testing.assert_close(alone[:, 0], losses[:, 3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_goes_on_where_it_was_left(backend: str) -> None:
    """From a copy of its state, as a file holds it, with another sampler of the same function."""
    held = state(2)
    whole = train_steps(copy.deepcopy(held), DrawnTasks(drawn, D, N, 12), 5, optimizer=OPTIMIZER, backend=backend)
    first = train_steps(held, DrawnTasks(drawn, D, N, 12), 2, optimizer=OPTIMIZER, backend=backend)
    rest = train_steps(copy.deepcopy(held), DrawnTasks(drawn, D, N, 12), 3, optimizer=OPTIMIZER, backend=backend)
    assert torch.equal(torch.cat([first, rest]), whole)


def test_torchs_default_generator_is_left_alone() -> None:
    held = state()
    before = torch.get_rng_state()
    train_steps(held, DrawnTasks(drawn, D, N, 12), 2, optimizer=OPTIMIZER)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_that_is_written_again_is_not_trained_on() -> None:
    z, target = torch.empty(12, N + 1, D + 1, dtype=torch.float64), torch.empty(12, 1, dtype=torch.float64)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for held, made in zip((z, target), drawn(batch, generator), strict=True):
            held.copy_(made)
        return z, target

    for backend in BACKENDS:
        reused, usual = (
            train_steps(state(2), DrawnTasks(way, D, N, 12, resample_every=2), 4, optimizer=OPTIMIZER, backend=backend)
            for way in (draw, drawn)
        )
        assert torch.equal(reused, usual)


def test_what_was_drawn_goes_with_its_sampler() -> None:
    seen = Seen()
    watched = weakref.ref(seen)
    train_steps(state(), DrawnTasks(seen, D, N, 12), 1, optimizer=OPTIMIZER)
    del seen
    gc.collect()
    assert watched() is None


def test_it_trains_natively() -> None:
    plan = explain_training(state(), DrawnTasks(drawn, D, N, 12), optimizer=OPTIMIZER)
    assert plan.backend == ("cpu" if build_info().backends["cpu"].available else "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_of_the_function_leaves_whole_steps(backend: str) -> None:
    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if len(seen.batches) == 2:
            raise KeyError("no more")
        return seen(batch, generator)

    seen, held, other = Seen(), state(), state()
    with pytest.raises(KeyError, match="no more") as caught:
        train_steps(held, DrawnTasks(draw, D, N, 12), 5, optimizer=OPTIMIZER, backend=backend)
    expected = train_steps(other, DrawnTasks(drawn, D, N, 12), 2, optimizer=OPTIMIZER, backend=backend)
    assert torch.equal(caught.value.losses, expected)  # type: ignore[attr-defined]
    assert held.step == 2
    assert all(map(torch.equal, tensors(held), tensors(other)))


def _returns(change: Any) -> Any:
    return lambda batch, generator: change(*drawn(batch, generator))


BAD: list[tuple[Any, type[Exception], str]] = [
    (_returns(lambda z, target: z), TypeError, "draw: expected a function that returns two tensors"),
    (_returns(lambda z, target: (z, target, z)), TypeError, "draw: expected a function that returns two tensors"),
    (_returns(lambda z, target: (z[:, 1:], target)), ValueError, r"draw: expected z of shape .* = \(12, 9, 4\), got"),
    (_returns(lambda z, target: (z[1:], target)), ValueError, "draw: expected z of shape"),
    (_returns(lambda z, target: (z[..., 1:], target)), ValueError, "draw: expected z of shape"),
    (_returns(lambda z, target: (z, target[:, 0])), ValueError, r"draw: expected target of shape .* = \(12, 1\), got"),
    (_returns(lambda z, target: (z.float(), target)), TypeError, "draw: expected z to be .* models' torch.float64 on"),
    (
        _returns(lambda z, target: (z, target.to("meta"))),
        TypeError,
        "draw: expected target to be .* on cpu, got .*meta",
    ),
    (_returns(lambda z, target: (z.numpy(), target)), TypeError, "draw: expected z to be a dense tensor"),
]


@pytest.mark.parametrize(("draw", "kind", "message"), BAD, ids=range(len(BAD)))
def test_what_a_function_may_not_return(draw: Any, kind: type[Exception], message: str) -> None:
    held = state()
    with pytest.raises(kind, match=f"^{message}"):
        train_steps(held, DrawnTasks(draw, D, N, 12), 3, optimizer=OPTIMIZER)
    assert held.step == 0


def test_sizes_and_kinds() -> None:
    sampler = DrawnTasks(drawn, D, N, 12)
    with pytest.raises(TypeError, match=r"^draw: expected a function"):
        DrawnTasks(torch.ones(3), D, N, 12)  # type: ignore[arg-type]
    for name in ("d", "n", "batch", "queries", "resample_every"):
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            dataclasses.replace(sampler, **{name: 0})
    with pytest.raises(ValueError, match=r"^n: expected "):
        DrawnTasks(drawn, 5, 2**28, 1)
    with pytest.raises(ValueError, match=r"^state: expected matrices of size"):
        train_steps(state(), DrawnTasks(drawn, D + 2, N, 12), 1, optimizer=OPTIMIZER)
