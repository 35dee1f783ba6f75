from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialise

from memformer_kernels import Adam, GaussianStatistics, TrainState, train_steps
from memformer_kernels.nn import Memformer
from memformer_lab.runs.state_file import load_state, save_state

SAMPLER = GaussianStatistics(3, 8, 20, query="integrated")


@pytest.fixture
def state() -> TrainState:
    """Two models of different depths, so that there are masks, after three steps."""
    torch.manual_seed(0)
    models = [dict(Memformer(3, layers, structure="block").stack_arguments()) for layers in (1, 2)]
    held = TrainState.of(models, seeds=[1, 2**62])
    _advance(held, 3)
    return held


def _advance(held: TrainState, steps: int) -> torch.Tensor:
    return train_steps(held, SAMPLER, steps, optimizer=Adam([0.1, 0.05]))


def _assert_same(one: TrainState, other: TrainState) -> None:
    assert one.step == other.step
    for group in ("parameters", "first", "second", "masks"):
        mine, theirs = getattr(one, group), getattr(other, group)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    for name in ("seeds", "streams", "skipped"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.tied is None) == (other.tied is None)
    assert one.tied is None or torch.equal(one.tied, other.tied)  # type: ignore[arg-type]


def test_what_is_saved_is_loaded_and_goes_on_exactly(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, state, {"note": [1, "two"]})
    loaded, extra = load_state(path)
    assert extra == {"note": [1, "two"]}
    _assert_same(state, loaded)
    assert torch.equal(_advance(state, 4), _advance(loaded, 4))
    _assert_same(state, loaded)


def test_tied_layers_stay_tied(tmp_path: Path) -> None:
    """A state without any has no such tensor in its file, and neither have files from before there were any."""
    torch.manual_seed(0)
    held = TrainState.of([Memformer(3, layers, structure="block", tied=layers > 2) for layers in (3, 2)])
    _advance(held, 2)
    save_state(tmp_path / "state", held)
    loaded, _ = load_state(tmp_path / "state")
    assert loaded.tied is not None
    assert loaded.tied.tolist() == [3, 0]
    assert torch.equal(_advance(held, 4), _advance(loaded, 4))
    _assert_same(held, loaded)


def test_what_cannot_be_written_is_refused(state: TrainState, tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deep"):
        save_state(tmp_path / "state", state, {"deep": deep})
    assert list(tmp_path.iterdir()) == []


def test_a_saved_state_is_a_copy(state: TrainState, tmp_path: Path) -> None:
    before = copy.deepcopy(state)
    save_state(tmp_path / "state", state)
    _advance(state, 1)
    _assert_same(load_state(tmp_path / "state")[0], before)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(state: TrainState, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state"
    save_state(path, state)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"state is not a whole safetensors file .* expected a memformer_lab.state file"
    ):
        load_state(path)


def _write(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    path.write_bytes(serialise(tensors, {"memformer_lab": json.dumps(header)}))


def test_files_of_another_kind_are_refused(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "state"
    _write(path, {"format": "memformer_lab.checkpoint", "version": 2}, {"q": torch.ones(1)})
    with pytest.raises(ValueError, match=r"is not a checkpoint: .* expected format 'memformer_lab.state'"):
        load_state(path)
    _write(path, {"format": "memformer_lab.state", "version": 9}, {"q": torch.ones(1)})
    with pytest.raises(ValueError, match="has format version 9, expected 2"):
        load_state(path)
    path.write_bytes(b"\x80\x04\x95 no tensors")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_state(path)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.parameters.pop("p"), "holds no training state: first: expected one entry"),
        (lambda held: held.first.update(q=torch.ones(2)), r"first\['q'\]: expected"),
        (lambda held: held.masks.update(gate=torch.ones(2)), "holds no training state: masks: expected names"),
        (
            lambda held: [
                group.update(gamma=torch.ones(2, 2, 2, 30, 1, 4))
                for group in (held.parameters, held.first, held.second)
            ],
            "holds no training state: gamma: expected a shape broadcastable to",
        ),
        (lambda held: held.counter.fill_(-2), "holds no training state: step"),
        (lambda held: setattr(held, "seeds", held.seeds - 9), "holds no training state: seeds"),
    ],
)
def test_states_that_do_not_fit_are_refused(state: TrainState, tmp_path: Path, change: Any, message: str) -> None:
    change(state)
    save_state(tmp_path / "state", state)
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / "state")
