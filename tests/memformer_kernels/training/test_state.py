"""States are checked when they are made: by `TrainState.of` from models, or from what a file held."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from memformer_kernels import TrainState
from tests.memformer_kernels.training.runs import model, state


def test_parameters_are_copied_and_stacked() -> None:
    models = [model(seed=seed) for seed in range(2)]
    held = TrainState.of(models, seeds=[5, 2**63 - 1])
    assert held.parameters["q"].shape == (2, 3, 1, 3, 3)
    assert list(held.parameters) == ["q", "gamma"]
    assert held.seeds.tolist() == [5, 2**63 - 1]
    assert held.streams.tolist() == [0, 1]
    assert (held.models, held.dtype, held.step, held.masks) == (2, torch.float64, 0, {})
    held.parameters["q"].zero_()
    assert float(models[0]["q"].abs().max()) > 0


def test_padding_keeps_each_layers_own_memory() -> None:
    held = TrainState.of([model(1), model(3)])
    gamma = held.parameters["gamma"]
    assert gamma.shape == (2, 3, 3, 1, 1, 4)
    assert bool((gamma[0, 1:] == 0).all())
    assert bool((gamma[0, :, 1:] == 0).all())
    assert held.masks["gamma"][0].sum() == 4
    assert bool(held.masks["gamma"][1].all())
    assert held.masks["q"][0].sum() == 9


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: TrainState.of([]), TypeError, "models"),
    (lambda: TrainState.of(model()), TypeError, "models"),  # type: ignore[arg-type]
    (lambda: TrainState.of([{"q": None}]), TypeError, "q"),
    (lambda: TrainState.of([{**model(), "w": torch.ones(1)}]), ValueError, "models"),
    (lambda: TrainState.of([{**model(), "gate": torch.ones(1)}]), ValueError, "gate"),
    (lambda: TrainState.of([{**model(), "gamma": torch.ones(3, dtype=torch.float64)}]), ValueError, "gamma"),
    (lambda: TrainState.of([{**model(), "q": model()["q"].half()}]), TypeError, "q"),
    (lambda: TrainState.of([model(), model(rule="linear")]), ValueError, "models"),
    (lambda: TrainState.of([model(2, rule="lfom_shared"), model(3, rule="lfom_shared")]), ValueError, "models"),
    (lambda: TrainState.of([model()], seeds=-1), ValueError, "seeds"),
    (lambda: TrainState.of([model()], seeds=2**63), ValueError, "seeds"),
    (lambda: TrainState.of([model()], seeds=[1, 2]), ValueError, "seeds"),
    (lambda: TrainState.of([model()], streams=[2**32]), ValueError, "streams"),
    (lambda: TrainState.of([model()], seeds=["a"]), TypeError, "seeds"),  # type: ignore[list-item]
    (lambda: TrainState.of([model()], trainable=[]), ValueError, "trainable"),
    (lambda: TrainState.of([model()], trainable=[{"q": torch.ones(1)}]), TypeError, "trainable"),
    (lambda: TrainState.of([model()], trainable=[{"q": torch.ones(7, dtype=torch.bool)}]), ValueError, "trainable"),
    (lambda: TrainState.of([model()], trainable=[{"p": torch.ones(1, dtype=torch.bool)}]), ValueError, "trainable"),
]


@pytest.mark.parametrize(("make", "kind", "name"), BAD, ids=range(len(BAD)))
def test_bad_models(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^{name}(\[.*\])?: expected "):
        make()


def _changed(**values: Any) -> TrainState:
    held = state(2)
    return TrainState(**{field.name: getattr(held, field.name) for field in fields(held)} | values)


def _with(group: str, name: str, value: Any) -> dict[str, Any]:
    return {group: {**getattr(state(2), group), name: value}}


CHANGES: list[tuple[Any, type[Exception], str]] = [
    (lambda: _changed(parameters={}), ValueError, "q"),
    (lambda: _changed(**_with("parameters", "gate", torch.ones(2))), ValueError, "parameters"),
    (lambda: _changed(**_with("parameters", "gamma", torch.ones(2, 3, 3, 1, 1, 4))), TypeError, "gamma"),
    (lambda: _changed(**_with("parameters", "q", torch.ones(2, 3, 1, 3, 3, dtype=torch.float64).mT)), ValueError, "q"),
    (lambda: _changed(first={}), ValueError, "first"),
    (lambda: _changed(**_with("second", "q", torch.ones(2, 3, 1, 3, dtype=torch.float64))), ValueError, "second"),
    (lambda: _changed(masks={"p": torch.ones(1, dtype=torch.bool)}), ValueError, "masks"),
    (lambda: _changed(masks={"q": torch.ones(1)}), TypeError, "masks"),
    (lambda: _changed(skipped=torch.zeros(3, dtype=torch.int64)), ValueError, "skipped"),
    (lambda: _changed(seeds=torch.zeros(2)), TypeError, "seeds"),
    (lambda: _changed(step=-1), ValueError, "step"),
]


@pytest.mark.parametrize(("make", "kind", "name"), CHANGES, ids=range(len(CHANGES)))
def test_bad_attributes(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^{name}(\[.*\])?: expected "):
        make()
