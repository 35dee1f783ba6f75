"""Unusual kinds are refused by the argument's name, and NumPy's numbers are numbers."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    Adam,
    FixedTasks,
    GaussianTokens,
    Schedule,
    TrainState,
    attention_state,
    attention_step,
    context_gram,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    register_update,
    train_steps,
)
from memformer_kernels.nn import Memformer, MemformerAttention, RegisterMemory

Z, Q, R, LENGTHS = torch.zeros(2, 7, 4), torch.zeros(3, 2, 3, 3), torch.zeros(2, 1, 7, 4), torch.tensor([3, 4])
K = torch.zeros(2, 7, 2, 4)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "predict": (memformer_predict, {"z": Z, "q": Q, "p": Q, "gamma": torch.zeros(3, 1, 1, 1), "context": LENGTHS}),
    "loss": (memformer_loss, {"z": Z, "q": Q, "target": torch.zeros(2, 1), "beta": torch.zeros(4)}),
    "layer": (memformer_layer, {"z": Z, "q": Q[0], "context": LENGTHS}),
    "gram": (context_gram, {"z": Z, "context": LENGTHS}),
    "attention": (linear_attention, {"q": K, "k": K, "v": K, "mask": K[..., 0, 0] == 0, "context": LENGTHS}),
    "packed": (linear_attention, {"q": K, "k": K, "v": K, "cu_seqlens": torch.tensor([0, 3, 7])}),
    "update": (register_update, {"z": Z, "registers": [Z], "gamma": torch.zeros(1)}),
    "state": (attention_state, {"k": K, "v": K}),
    "step": (attention_step, {"q": K[:, 0], "k": K[:, 0], "v": K[:, 0], "state": attention_state(K, K)}),
}


def _odd(tensor: object) -> Iterator[Any]:
    yield from ("yes", [1.0], {"a": 1}, object(), np.zeros(2))
    if isinstance(tensor, Tensor):
        ragged = [torch.ones(2), torch.ones(3)]
        yield from (torch.nested.nested_tensor(ragged), torch.nested.nested_tensor(ragged, layout=torch.jagged))
        yield from (tensor.to_sparse(), torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8))
        yield from (tensor.to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64, torch.complex64))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("call", "argument"), [(call, name) for call, (_, given) in CALLS.items() for name in given])
def test_odd_kinds(call: str, argument: str) -> None:
    function, given = CALLS[call]
    for odd in _odd(given[argument]):
        if argument == "registers" and isinstance(odd, list):
            continue
        with pytest.raises(TypeError, match=rf"^{argument}(\[.*\])?: expected "):
            function(**{**given, argument: odd})


def _state() -> TrainState:
    return TrainState.of([Memformer(3, 2).stack_arguments()])


TRAINING = {
    "state": _state(),
    "sampler": GaussianTokens(3, 8, 4),
    "steps": 1,
    "optimizer": Adam(0.1),
    "max_skipped": None,
    "group": None,
}


@pytest.mark.parametrize("argument", TRAINING)
def test_odd_arguments_of_a_training(argument: str) -> None:
    for odd in (*_odd(None), True, np.True_, torch.tensor(1), 1j):
        with pytest.raises(TypeError, match=rf"^{argument}: expected "):
            train_steps(**{**TRAINING, argument: odd})  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ["parameters", "first", "second", "masks", "seeds"])
def test_odd_parts_of_a_state(group: str) -> None:
    held = _state()
    attributes = {field.name: getattr(held, field.name) for field in fields(held) if field.init}
    for odd in ("yes", [1.0], object(), np.zeros(2), torch.ones(1)):
        with pytest.raises(TypeError, match=rf"^{group}: expected "):
            TrainState(**{**attributes, group: odd})


@pytest.mark.parametrize("steps", [2**62, 2**64, -1])
def test_impossible_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=r"^steps: expected "):
        train_steps(**{**TRAINING, "steps": steps})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["d", "n", "batch", "queries", "resample_every"])
def test_impossible_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected an int below 2\^63"):
        GaussianTokens(**{"d": 3, "n": 8, "batch": 4, name: 2**64})


def test_zero_features() -> None:
    with pytest.raises(ValueError, match=r"^z: expected .*at least one feature"):
        FixedTasks(torch.zeros(8, 7, 1), torch.zeros(8, 1), 4)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_numbers(kind: Any) -> None:
    real = np.float32
    model = Memformer(kind(3), kind(2), heads=kind(2), granularity="full", tokens=kind(7))
    assert type(model.d) is int
    assert torch.equal(model.predict(Z, context=kind(4), queries=kind(1)), model.predict(Z, context=4, queries=1))
    assert MemformerAttention(kind(8), kind(2), registers=kind(0)).head_dim == 4
    assert len(RegisterMemory(kind(8), kind(2)).layers) == 2
    assert context_gram(Z, kind(3)).shape == (2, 4, 4)
    for backend in ("auto", "torch"):
        state = TrainState.of([Memformer(3, 2).stack_arguments()], seeds=kind(3), streams=[kind(1)])
        schedule = Schedule("step", warmup=kind(1), decay=real(0.5), decay_every=kind(2))
        optimizer = Adam(real(0.1), betas=(real(0.9), real(0.99)), clip=real(1), schedule=schedule)
        sampler = GaussianTokens(kind(3), kind(8), kind(4), noise=real(0.1))
        losses = train_steps(state, sampler, kind(2), optimizer=optimizer, max_skipped=kind(3), backend=backend)
        assert bool(losses.isfinite().all())
    assert type(optimizer.learning_rate) is float
    assert type(sampler.d) is int
