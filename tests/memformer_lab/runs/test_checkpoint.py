from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as parse
from safetensors.torch import save as serialise

from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import load_model
from memformer_lab.runs.tensor_file import write_tensors
from memformer_lab.runs.trainer import Trainer
from memformer_lab.runs.training import CHECKPOINT, continue_training

CONFIG = TrainingConfig(d=3, n=6, layers=2, tasks="isotropic", structure="block", batch=8, steps=20)


@pytest.fixture
def checkpoint() -> checkpoints.Checkpoint:
    trainer = Trainer(CONFIG)
    for _ in range(3):
        trainer.advance()
    return trainer.snapshot()


@pytest.fixture
def path(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / CHECKPOINT
    checkpoints.save(path, checkpoint)
    return path


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["memformer_lab"])
    return header


def _rewrite(path: Path, **changes: Any) -> None:
    """Change entries of the header; the file is whole and has the digest that goes with them."""
    header = {**_header(path), **changes}
    form, version = header.pop("format"), header.pop("version")
    write_tensors(path, form, version, header, parse(path.read_bytes()))


def test_what_is_saved_is_loaded(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
    loaded = checkpoints.load(path)
    for field in dataclasses.fields(checkpoints.Checkpoint):
        before, after = getattr(checkpoint, field.name), getattr(loaded, field.name)
        if isinstance(before, dict):
            assert before.keys() == after.keys() == {"q", "p", "gamma"}
            assert all(torch.equal(value, after[name]) for name, value in before.items())
        elif isinstance(before, torch.Tensor):
            assert after.dtype == torch.uint8
            assert torch.equal(before, after)
        else:
            assert before == after


def test_the_header_is_versioned_json(path: Path) -> None:
    header = _header(path)
    assert header["format"] == "memformer_lab.checkpoint"
    assert header["version"] == 3
    assert header["step"] == 3
    assert TrainingConfig.from_dict(header["config"]) == CONFIG


def test_a_checkpoint_of_the_start_has_no_moments(tmp_path: Path) -> None:
    start = Trainer(CONFIG).snapshot()
    checkpoints.save(tmp_path / CHECKPOINT, start)
    loaded = checkpoints.load(tmp_path / CHECKPOINT)
    assert (loaded.step, loaded.first, loaded.second) == (0, {}, {})
    assert torch.equal(Trainer.resume(loaded).model.q, Trainer(CONFIG).model.q)


def test_the_snapshot_is_a_copy(checkpoint: checkpoints.Checkpoint) -> None:
    trainer = Trainer.resume(checkpoint)
    snapshot = trainer.snapshot()
    before = {name: value.clone() for name, value in {**snapshot.model, **snapshot.first}.items()}
    trainer.advance()
    assert all(torch.equal(value, before[name]) for name, value in {**snapshot.model, **snapshot.first}.items())


@pytest.mark.parametrize("keep", [0, 4, 7, 100, 0.5, -1])
def test_a_truncated_file_is_refused(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{path.name} is not a whole safetensors file .* expected a memformer_lab"):
        checkpoints.load(path)


def test_a_flipped_bit_is_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{path.name} is corrupt: its SHA-256 is \w{{64}}, expected \w{{64}}"):
        checkpoints.load(path)


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(1, 7))])
def test_every_flipped_bit_is_refused(path: Path, first: int) -> None:
    """Of the safetensors header, of this format's inside it with the digest itself, and of the tensors: every seventh
    bit, from each of the first seven."""
    checkpoints.save(path, Trainer(dataclasses.replace(CONFIG, backend="auto")).snapshot())
    whole = path.read_bytes()
    accepted = []
    for place in range(first, 8 * len(whole), 7):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            checkpoints.load(path)
        except ValueError:
            continue
        accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize(
    "entry", ["[" * 100_000, '{"format": ' + "[" * 100_000, "9" * 5000], ids=["list", "map", "int"]
)
def test_json_that_cannot_be_read_is_refused(path: Path, entry: str) -> None:
    path.write_bytes(serialise({"weight": torch.ones(2)}, {"memformer_lab": entry}))
    with pytest.raises(ValueError, match=f"{path.name} is not a checkpoint"):
        checkpoints.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a folder, a device or a FIFO, expected a memformer_lab\.checkpoint"):
        checkpoints.load(tmp_path / "pipe")


@pytest.mark.skipif(os.name == "nt", reason="names are text on this system")
def test_a_path_that_is_no_text(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(FileNotFoundError):
        checkpoints.load(path)
    checkpoints.save(path, checkpoint)
    assert checkpoints.load(path).step == checkpoint.step


@pytest.mark.parametrize("data", [b"hello", b"\x80\x04\x95" + bytes(100), os.urandom(4096)])
def test_another_kind_of_file_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is not a whole safetensors file"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"memformer_lab": "{"}, {"memformer_lab": "3"}, {"memformer_lab": '{"format": "other"}'}],
)
def test_foreign_safetensors_are_refused(path: Path, metadata: dict[str, str] | None) -> None:
    path.write_bytes(serialise({"weight": torch.ones(2)}, metadata))
    with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint: .* expected format 'memformer_lab"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has format version 2, expected 3"),
        ({"version": None}, "has format version None, expected 3"),
        ({"step": True}, "has step = True in its header, expected int"),
        ({"step": "three"}, "has step = 'three' in its header, expected int"),
        ({"step": -3}, "step = -3"),
        ({"loss_sum": None}, "loss_sum = None"),
        ({"loss_sum": float("nan")}, "loss_sum = nan"),
        ({"config": {}}, "holds no usable configuration: .*missing"),
        ({"config": {**CONFIG.to_dict(), "steps": 0}}, "holds no usable configuration: steps must be at least 1"),
        ({"config": {**CONFIG.to_dict(), "rule": 3}}, "holds no usable configuration: rule must be a string"),
    ],
)
def test_bad_headers_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    _rewrite(path, **changes)
    with pytest.raises(ValueError, match=f"{path.name} {message}|{path.name} has .*{message}"):
        checkpoints.load(path)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        checkpoints.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "absent")


def test_parameters_of_another_model_are_refused(path: Path) -> None:
    _rewrite(path, config={**CONFIG.to_dict(), "layers": 3})
    with pytest.raises(ValueError, match=rf"{path.name}: the parameters are .* expected .*\(3, 1, 3, 3\)"):
        load_model(path)
    with pytest.raises(ValueError, match=path.name):
        continue_training(path.parent)


def test_tensors_that_do_not_belong_are_refused(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
    checkpoints.save(path, dataclasses.replace(checkpoint, generator=torch.zeros(3, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=f"{path.name}: the generator's state is not one of device 'cpu'"):
        continue_training(path.parent)
    moments = {**checkpoint.first, "q": torch.zeros(2)}
    checkpoints.save(path, dataclasses.replace(checkpoint, first=moments))
    with pytest.raises(ValueError, match=rf"{path.name}: a moment of q is \(2,\), expected"):
        continue_training(path.parent)


def test_the_generator_is_there_where_tasks_are_drawn_by_one(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
    checkpoints.save(path, dataclasses.replace(checkpoint, generator=None))
    with pytest.raises(ValueError, match=rf"{path.name} has tensors .* expected 'generator' among them"):
        checkpoints.load(path)
    steps = dataclasses.replace(CONFIG, backend="auto")
    checkpoints.save(path, dataclasses.replace(checkpoint, config=steps))
    with pytest.raises(ValueError, match=rf"{path.name} has tensors .* for backend 'torch' alone"):
        checkpoints.load(path)


def test_a_generator_of_another_device_is_refused(checkpoint: checkpoints.Checkpoint) -> None:
    with pytest.raises(ValueError, match="draws its tasks on 'cuda', expected device 'cpu'"):
        Trainer.resume(dataclasses.replace(checkpoint, device="cuda"))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    checkpoint: checkpoints.Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(path, dataclasses.replace(checkpoint, step=9))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
