from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from memformer_lab import checkpoint as checkpoints
from memformer_lab.cli import app
from memformer_lab.metrics import read_metrics
from memformer_lab.training import CHECKPOINT, METRICS

QUICK = ["train", "--steps", "40", "--batch", "16", "--layers", "2", "--log-every", "10"]


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    result = _call(*QUICK, "--output", folder)
    assert result.exit_code == 0, result.output
    assert "Trained on 640 tasks" in result.output
    return folder


def test_train_writes_a_checkpoint_and_metrics(folder: Path) -> None:
    held = checkpoints.load(folder / CHECKPOINT)
    assert (held.step, held.config.layers, held.config.batch, held.config.clip) == (40, 2, 16, 1.0)
    assert [record["step"] for record in read_metrics(folder / METRICS)] == [10, 20, 30, 40]


def test_every_option_reaches_the_configuration(tmp_path: Path) -> None:
    options = {
        "d": 3, "n": 7, "layers": 2, "heads": 2, "rule": "gated_heads", "granularity": "scalar", "structure": "block",
        "tasks": "isotropic", "rotation-seed": 4, "queries": 2, "batch": 5, "steps": 3, "resample": 2,
        "learning-rate": 0.01, "schedule": "step", "warmup": 1, "decay": 0.9, "decay-every": 11, "seed": 6,
        "log-every": 2,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = _call("train", *flags, "--betas", 0.8, 0.95, "--clip", 0, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    config = checkpoints.load(tmp_path / CHECKPOINT).config
    assert config.to_dict() == {
        **{name.replace("-", "_"): value for name, value in options.items()}, "betas": [0.8, 0.95], "clip": None,
        "backend": "torch",
    }  # fmt: skip
    assert "Training step by step: rule 'gated_heads' trains gates" in result.output


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_the_backend_is_kept_with_the_run(backend: str, tmp_path: Path) -> None:
    assert _call(*QUICK, "--output", tmp_path, "--backend", backend).exit_code == 0
    held = checkpoints.load(tmp_path / CHECKPOINT)
    assert held.config.backend == backend
    assert (held.generator is None) == (backend == "auto")
    assert ("gradient_norm" in read_metrics(tmp_path / METRICS)[0]) == (backend == "torch")


def test_tensorboard_gets_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a writer that only takes notes, since the package is optional."""
    scalars: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert isinstance(value, float)
            scalars.append((name, step))

        def close(self) -> None:
            scalars.append(("closed", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert _call(*QUICK, "--output", tmp_path, "--tensorboard").exit_code == 0
    assert [step for name, step in scalars if name == "loss"] == [10, 20, 30, 40]
    assert {name for name, _ in scalars} == {"loss", "learning_rate", "tasks_per_second", "closed"}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _assert_refused(_call(*QUICK, "--output", tmp_path / "none", "--tensorboard"), "pip install tensorboard")
    assert not (tmp_path / "none").exists()


def test_resume_goes_on_from_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes())
    result = _call("train", "--output", tmp_path, "--resume")
    assert result.exit_code == 0
    assert "Trained on 0 tasks" in result.output


def test_resume_takes_no_other_run(folder: Path, tmp_path: Path) -> None:
    _assert_refused(_call("train", "--output", folder, "--resume", "--steps", 9), "--steps cannot go with --resume")
    _assert_refused(_call("train", "--output", folder, "--resume", "--overwrite"), "--overwrite")
    _assert_refused(_call("train", "--output", tmp_path, "--resume"), str(tmp_path / CHECKPOINT))


def test_a_run_is_not_lost_by_accident(folder: Path, tmp_path: Path) -> None:
    before = (folder / CHECKPOINT).read_bytes()
    _assert_refused(_call(*QUICK, "--output", folder), str(folder), "--resume", "--overwrite")
    assert (folder / CHECKPOINT).read_bytes() == before
    for _ in range(2):
        assert _call(*QUICK, "--output", tmp_path, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--steps", 0, "steps must be at least 1, got 0"),
        ("--learning-rate", "nan", "learning_rate must be a finite number"),
        ("--learning-rate", "inf", "learning_rate"),
        ("--clip", "inf", "clip"),
        ("--decay", "nan", "decay"),
        ("--rule", "adam", "rule: expected one of"),
        ("--structure", "sparse", "structure: expected one of"),
        ("--tasks", "real", "tasks must be one of"),
        ("--d", 4, "d must be 5"),
        ("--backend", "cuda", "backend must be one of torch, auto, cpu"),
        ("--device", "abacus", "device 'abacus' cannot be used"),
    ],
)
def test_bad_values_end_in_one_line(option: str, value: object, words: str, tmp_path: Path) -> None:
    _assert_refused(_call(*QUICK, "--output", tmp_path / "run", option, value), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [["train", "--steps", "many"], ["train", "--speed", "3"], ["fly"], ["evaluate"], ["run", "--workers", "0"]],
)
def test_bad_usage_has_exit_code_2(arguments: list[str]) -> None:
    result = _call(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stderr


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _assert_refused(_call(*QUICK, "--output", tmp_path / "file" / "run"), str(tmp_path / "file"))


def test_a_run_that_diverges_has_exit_code_1(tmp_path: Path) -> None:
    result = _call(*QUICK, "--output", tmp_path, "--learning-rate", "1e30", "--schedule", "constant")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("stopped: loss")
    assert checkpoints.load(tmp_path / CHECKPOINT).step == 0


def test_evaluate_prints_a_row_for_the_model_or_for_each_layer(folder: Path) -> None:
    result = _call("evaluate", folder, "--tasks", 3000)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines() if line.strip().endswith("3,000")] == ["2"]
    by_layer = _call("evaluate", folder / CHECKPOINT, "--tasks", 3000, "--layers")
    rows = [line.split() for line in by_layer.output.splitlines() if line.strip().endswith("3,000")]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) < float(rows[0][1])


def test_evaluate_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a checkpoint")
    _assert_refused(_call("evaluate", bad), str(bad), "is not a whole safetensors file")
    _assert_refused(_call("evaluate", tmp_path / "absent"), str(tmp_path / "absent"))
    _assert_refused(_call("info", tmp_path), str(tmp_path / CHECKPOINT))


def test_info_says_what_runs_here_and_what_a_checkpoint_holds(folder: Path) -> None:
    here = _call("info")
    assert here.exit_code == 0
    assert "memformer_kernels" in here.output
    assert f"results: {Path('results').resolve()}" in here.output
    held = _call("info", folder)
    assert "memformer_lab.checkpoint, version 3, step 40 of 40" in held.output
    config = next(json.loads(line) for line in held.output.splitlines() if line.startswith("{"))
    assert config == checkpoints.load(folder / CHECKPOINT).config.to_dict()
    assert "q: (2, 1, 5, 5) torch.float32" in held.output


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains(tmp_path: Path) -> None:
    """Two ranks share batches of three blocks; the first writes. A run that is there is refused by one of them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python"]
    command = [sys.executable, "-m", "memformer_lab", *QUICK, "--batch", "2500", "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, words in (("one", command), ("two", launcher + command)):
        arguments = [*words, str(tmp_path / folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Trained on 100,000 tasks") == 1
    one, two = (checkpoints.load(tmp_path / folder / CHECKPOINT) for folder in ("one", "two"))
    assert (one.step, one.loss_sum) == (two.step, two.loss_sum)
    assert all(torch.equal(value, two.model[name]) for name, value in one.model.items())
    refused = subprocess.run([*launcher, *command, str(tmp_path / "two")], capture_output=True, check=False)
    assert refused.returncode != 0


def test_help_lists_the_commands() -> None:
    result = _call("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in ("train", "evaluate", "info", "run"))


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "memformer_lab", "evaluate", str(tmp_path / "absent")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent" in done.stderr
