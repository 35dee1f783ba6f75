"""States are checked when they are made: by `TrainState.of` from models, or from what a file held."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from memformer_kernels import (
    Adam,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    availability,
    explain_training,
    train_steps,
)
from tests.memformer_kernels.training.runs import D, N, model, state


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
    (lambda: TrainState.of([{**model(), "gate": torch.ones(1)}]), TypeError, "gate"),
    (lambda: TrainState.of([{**model(), "gate": torch.ones(2, dtype=torch.float64)}]), ValueError, "gate"),
    (lambda: TrainState.of([{**model(), "gate": torch.ones(1, 1, 1, dtype=torch.float64)}]), ValueError, "gate"),
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
    (lambda: TrainState.of([model()], trainable=[3]), TypeError, "trainable"),  # type: ignore[list-item]
    (lambda: TrainState.of([model()], trainable=3), TypeError, "trainable"),  # type: ignore[arg-type]
    (lambda: TrainState.of([3]), TypeError, "models"),  # type: ignore[list-item]
    (lambda: TrainState.of([model()], streams=3), TypeError, "streams"),  # type: ignore[arg-type]
    (lambda: TrainState.of([{"q": model()["q"].to_sparse()}]), TypeError, "q"),
    (lambda: TrainState.of([model()], trainable=[{"q": torch.ones(1)}]), TypeError, "trainable"),
    (lambda: TrainState.of([model()], trainable=[{"q": torch.ones(7, dtype=torch.bool)}]), ValueError, "trainable"),
    (lambda: TrainState.of([model()], trainable=[{"p": torch.ones(1, dtype=torch.bool)}]), ValueError, "trainable"),
]


@pytest.mark.parametrize(("make", "kind", "name"), BAD, ids=range(len(BAD)))
def test_bad_models(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^{name}(\[.*\])?: expected "):
        make()


GROUPS = ("parameters", "first", "second", "masks")


def _changed(**values: Any) -> TrainState:
    held = state(2)
    return TrainState(**{field.name: getattr(held, field.name) for field in fields(held) if field.init} | values)


def _with(group: str, name: str, value: Any) -> dict[str, Any]:
    return {group: {**getattr(state(2), group), name: value}}


CHANGES: list[tuple[Any, type[Exception], str]] = [
    (lambda: _changed(parameters={}), ValueError, "q"),
    (lambda: _changed(**_with("parameters", "w", torch.ones(2))), ValueError, "parameters"),
    (lambda: _changed(**_with("parameters", "gamma", torch.ones(2, 3, 3, 1, 1, 4))), TypeError, "gamma"),
    (lambda: _changed(**_with("parameters", "q", torch.ones(2, 3, 1, 3, 3, dtype=torch.float64).mT)), ValueError, "q"),
    (lambda: _changed(first={}), ValueError, "first"),
    (lambda: _changed(**_with("second", "q", torch.ones(2, 3, 1, 3, dtype=torch.float64))), ValueError, "second"),
    (lambda: _changed(masks={"p": torch.ones(1, dtype=torch.bool)}), ValueError, "masks"),
    (lambda: _changed(masks={"q": torch.ones(1)}), TypeError, "masks"),
    (lambda: _changed(skipped=torch.zeros(3, dtype=torch.int64)), ValueError, "skipped"),
    (lambda: _changed(seeds=torch.zeros(2)), TypeError, "seeds"),
    (lambda: _changed(step=-1), ValueError, "step"),
    (lambda: _changed(step=2**63), ValueError, "step"),
    (lambda: _changed(skipped=torch.ones(2, dtype=torch.int64)), ValueError, "skipped"),
    (lambda: _changed(seeds=torch.zeros(4, dtype=torch.int64)[::2]), ValueError, "seeds"),
    *((lambda group=group: _changed(**{group: None}), TypeError, group) for group in GROUPS),
    *((lambda group=group: _changed(**{group: [("q", 1)]}), TypeError, group) for group in GROUPS),
    (lambda: _changed(**_with("parameters", "q", "q")), TypeError, "q"),
    (lambda: _changed(**_with("parameters", 3, torch.ones(2))), ValueError, "parameters"),
    (lambda: _changed(**_with("first", "q", state(2).first["q"].to_sparse())), TypeError, "first"),
    (lambda: _changed(**_with("first", "p", torch.ones(2))), ValueError, "first"),
]


@pytest.mark.parametrize(("make", "kind", "name"), CHANGES, ids=range(len(CHANGES)))
def test_bad_attributes(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^{name}(\[.*\])?: expected "):
        make()


SIZES = {
    "beyond the heap": ((64, 1, 5, 5), {"gamma": (2, 2, 3000, 1, 6)}),
    "heads of gamma": ((3, 2, 3, 3), {"gamma": (3, 3, 3, 1, 4)}),
    "layers of gamma": ((3, 1, 3, 3), {"gamma": (3, 2, 1, 1, 4)}),
    "earlier layers of gamma": ((3, 1, 3, 3), {"gamma": (2, 3, 1, 1, 4)}),
    "features of gamma": ((3, 1, 3, 3), {"gamma": (3, 1, 1, 5)}),
    "neither d nor D of gamma": ((3, 1, 4, 4), {"gamma": (3, 1, 1, 3)}),
    "layers of beta": ((3, 1, 3, 3), {"beta": (2, 1, 1, 4)}),
    "heads of beta": ((3, 2, 3, 3), {"beta": (3, 3, 1, 1)}),
    "features of beta": ((3, 1, 3, 3), {"beta": (3, 1, 1, 2)}),
    "tokens of beta and of gamma": ((3, 1, 3, 3), {"beta": (3, 1, 7, 1), "gamma": (3, 1, 8, 1)}),
    "layers of p": ((3, 1, 3, 3), {"p": (2, 1, 3, 3)}),
    "size of p": ((3, 1, 3, 3), {"p": (3, 1, 5, 5)}),
}


def _parameters(q: tuple[int, ...], others: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros((1, *shape)) for name, shape in {"q": q, **others}.items()}


def _like(parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    counters = {name: torch.zeros(1, dtype=torch.int64) for name in ("seeds", "streams", "skipped")}
    groups = {
        group: {name: torch.zeros_like(value) for name, value in parameters.items()} for group in ("first", "second")
    }
    return {"parameters": parameters, **groups, **counters}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_are_no_networks(case: str) -> None:
    """However the state comes about: of models, of attributes, or by replacing what is in it, before any step."""
    parameters = _parameters(*SIZES[case])
    names = "|".join(SIZES[case][1])
    with pytest.raises(ValueError, match=rf"^({names}): expected "):
        TrainState.of([{name: value[0] for name, value in parameters.items()}])
    with pytest.raises(ValueError, match=rf"^({names}): expected "):
        TrainState(**_like(parameters))
    held = TrainState(**_like(_parameters(SIZES[case][0], {})))
    sampler = GaussianTokens(SIZES[case][0][-1], 8, 4)
    train_steps(held, sampler, 1, optimizer=Adam(0.1))
    for group, values in _like(parameters).items():
        setattr(held, group, values)
    with pytest.raises(ValueError, match=rf"^({names}): expected "):
        train_steps(held, sampler, 1, optimizer=Adam(0.1))
    assert held.step == 1


def test_coefficients_are_of_the_samplers_size() -> None:
    """D of gamma fits q by itself, and not the tasks; so do its tokens."""
    wide = TrainState(**_like(_parameters((2, 1, 3, 3), {"gamma": (2, 1, 1, 3)})))
    with pytest.raises(ValueError, match=r"^gamma: expected a shape broadcastable to"):
        explain_training(wide, GaussianTokens(3, 8, 4), optimizer=Adam(0.1))
    long = TrainState(**_like(_parameters((2, 1, 3, 3), {"beta": (2, 1, 7, 1)})))
    assert explain_training(long, GaussianTokens(3, 6, 4), optimizer=Adam(0.1)).backend == "torch"
    with pytest.raises(ValueError, match=r"^beta: expected a shape broadcastable to"):
        explain_training(long, GaussianTokens(3, 8, 4), optimizer=Adam(0.1))


def _halved(tensor: torch.Tensor) -> None:
    tensor.resize_(*tensor.shape[:-1], tensor.shape[-1] // 2)


def _without_memory(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def _of_another_shape(tensor: torch.Tensor) -> None:
    tensor.data = torch.zeros(5, dtype=tensor.dtype)


def _of_another_kind(tensor: torch.Tensor) -> None:
    tensor.data = tensor.to(torch.int32)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("change", [_halved, _without_memory, _of_another_shape, _of_another_kind])
@pytest.mark.parametrize("group", [*GROUPS, "seeds", "streams", "skipped", "counter"])
def test_a_tensor_that_was_changed_in_place_is_looked_at_again(group: str, change: Any, backend: str) -> None:
    if backend == "cpu" and not availability.available("cpu"):
        pytest.skip("the native library was not built")
    held = TrainState.of([model()], trainable=[{"gamma": ~torch.eye(3, dtype=torch.bool)[:, :, None, None, None]}])
    sampler = GaussianStatistics(3, 8, 4)
    train_steps(held, sampler, 1, optimizer=Adam(0.1), backend=backend)
    named = group in GROUPS
    tensor = getattr(held, group)["gamma"] if named else getattr(held, group)
    if group == "counter" and change is _halved:
        tensor.resize_(2)
    else:
        change(tensor)
    label = "gamma" if group == "parameters" else rf"{group}\['gamma'\]" if named else group
    with pytest.raises((ValueError, TypeError), match=rf"^{label}: expected "):
        train_steps(held, sampler, 1, optimizer=Adam(0.1), backend=backend)


@pytest.mark.parametrize("change", [_halved, _without_memory, _of_another_shape, _of_another_kind])
@pytest.mark.parametrize("name", ["z", "target", "factor", "weights"])
def test_a_samplers_tensor_that_was_changed_in_place_is_looked_at_again(name: str, change: Any) -> None:
    held = TrainState.of([model()])
    sampler: Any = (
        FixedTasks(torch.zeros(4, 9, 4, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64), 8)
        if name in ("z", "target")
        else GaussianStatistics(3, 8, 4, factor=torch.eye(3), weights=torch.eye(3))
    )
    train_steps(held, sampler, 1, optimizer=Adam(0.1))
    change(getattr(sampler, name))
    with pytest.raises((ValueError, TypeError), match=rf"^({name}|target|state): expected "):
        train_steps(held, sampler, 1, optimizer=Adam(0.1))
    assert held.step == 1


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_entries_are_taken_by_name(backend: str) -> None:
    """Two states that differ in the order of their dicts alone are one state."""
    if not availability.available("cpu"):
        backend = "torch"
    trainable = [{"gamma": ~torch.eye(3, dtype=torch.bool)[:, :, None, None, None]}]
    runs = []
    for turned in (False, True):
        held = TrainState.of([model(structure="block")], trainable=trainable)
        held.masks["q"] = torch.ones_like(held.parameters["q"], dtype=torch.bool)
        held.masks["q"][0, 0] = False
        for index, group in enumerate(GROUPS):
            entries = list(getattr(held, group).items())
            setattr(held, group, dict(entries[index % 3 :] + entries[: index % 3] if turned else entries))
        held = TrainState(**{field.name: getattr(held, field.name) for field in fields(held) if field.init})
        trace = train_steps(
            held, GaussianStatistics(3, 8, 40), 5, optimizer=Adam(0.1, clip=0.1, clip_by="model"), backend=backend
        )
        runs.append([trace, *held.tensors()])
    assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))


def test_memory_is_not_shared() -> None:
    """One dict or tensor given twice, or views that overlap, when a state is made and when it is trained."""
    held = state(2)
    flat = torch.zeros(held.parameters["q"].numel() + 1, dtype=torch.float64)
    shape = held.parameters["q"].shape
    overlapping = {
        "first": {**held.first, "q": flat[1:].view(shape)},
        "second": {**held.second, "q": flat[:-1].view(shape)},
    }
    for values in (
        {"second": held.first},
        {"first": held.parameters},
        {"seeds": held.skipped},
        {"second": {**held.second, "q": held.first["q"]}},
        overlapping,
    ):
        with pytest.raises(ValueError, match="expected a tensor with memory of its own"):
            TrainState(**{field.name: getattr(held, field.name) for field in fields(held) if field.init} | values)
    held.second = held.first
    with pytest.raises(ValueError, match="expected a tensor with memory of its own"):
        train_steps(held, GaussianStatistics(3, 8, 4), 1, optimizer=Adam(0.1))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_parameters_require_no_gradient(backend: str) -> None:
    held = state(1)
    held.parameters["q"].requires_grad_()
    with pytest.raises(ValueError, match=r"^q: expected one that requires none"):
        train_steps(held, GaussianTokens(D, N, 4), 1, optimizer=Adam(0.1), backend=backend)


@pytest.mark.parametrize("group", ["parameters", "second"])
def test_tensors_of_inference_mode_are_refused(group: str) -> None:
    """Outside of it nobody may write to them, and no graph learns that somebody did."""
    held = state(1)
    with torch.inference_mode():
        getattr(held, group)["q"] = getattr(held, group)["q"].clone()
    with pytest.raises(ValueError, match=r"q.*: expected a tensor made outside of torch\.inference_mode"):
        train_steps(held, GaussianTokens(D, N, 4), 1, optimizer=Adam(0.1))
