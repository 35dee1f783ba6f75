from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import memformer_kernels
from memformer_lab.cli import app
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.metrics import read_metrics
from memformer_lab.runs.training import CHECKPOINT, METRICS, continue_training, train

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
        "preconditioner": "scalar", "tasks": "gaussian", "prior": "inverse", "noise": 0.1, "optimizer": "sgd",
        "momentum": 0.5, "rotation-seed": 4, "queries": 2, "batch": 5, "steps": 3, "resample": 2,
        "learning-rate": 1e-6, "schedule": "step", "warmup": 1, "decay": 0.9, "decay-every": 11, "seed": 6,
        "log-every": 2,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = _call(
        "train", *flags, "--betas", 0.8, 0.95, "--clip", 0, "--scales", "1, .5, 2", "--tied", "--output", tmp_path
    )
    assert result.exit_code == 0, result.output
    config = checkpoints.load(tmp_path / CHECKPOINT).config
    assert config.to_dict() == {
        **{name.replace("-", "_"): value for name, value in options.items()}, "betas": [0.8, 0.95], "clip": None,
        "backend": "torch", "scales": [1.0, 0.5, 2.0], "tied": True,
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
    _assert_refused(_call("train", "--output", folder, "--resume", "--batch", 9), "--batch cannot go with --resume")
    _assert_refused(_call("train", "--output", folder, "--resume", "--steps", 39), "steps must be at least 40", "39")
    _assert_refused(_call("train", "--output", folder, "--resume", "--overwrite"), "--overwrite")
    _assert_refused(_call("train", "--output", tmp_path, "--resume"), str(tmp_path / CHECKPOINT))


def _losses(folder: Path) -> dict[float, float]:
    return {record["step"]: record["loss"] for record in read_metrics(folder / METRICS)}


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_resume_with_steps_extends_a_finished_run(backend: str, tmp_path: Path) -> None:
    """To what a longer run from the start is; a line of metrics at the first end, none counted twice."""
    words = [*QUICK, "--schedule", "constant", "--backend", backend]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert _call(*words, "--steps", 64, "--output", straight).exit_code == 0
    assert _call(*words, "--steps", 45, "--output", broken).exit_code == 0
    result = _call("train", "--resume", "--steps", 64, "--output", broken, "--checkpoint-every", 7)
    assert result.exit_code == 0, result.output
    assert f"Trained on {19 * 16} tasks" in result.output
    one, other = (checkpoints.load(folder / CHECKPOINT) for folder in (straight, broken))
    assert one.config == other.config
    assert (one.step, one.loss_sum) == (other.step, other.loss_sum)
    for group in ("model", "first", "second"):
        for name, value in getattr(one, group).items():
            assert torch.equal(value, getattr(other, group)[name])
    means, parts = (
        {record["step"]: record["loss"] for record in read_metrics(f / METRICS)} for f in (straight, broken)
    )
    assert list(parts) == [10, 20, 30, 40, 45, 50, 60, 64]
    assert (parts[45] + parts[50]) / 2 == pytest.approx(means[50])
    assert all(parts[step] == means[step] for step in (10, 20, 30, 40, 60, 64))
    again = _call("train", "--resume", "--steps", 64, "--output", broken)
    assert again.exit_code == 0
    assert "Trained on 0 tasks" in again.output


def test_an_extended_run_that_is_stopped_again_keeps_its_means(tmp_path: Path) -> None:
    """Its last line of metrics is at no multiple of the interval, which the next one must know."""
    config = TrainingConfig(batch=16, layers=2, log_every=10, steps=64, backend="auto", schedule="constant")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(config, straight)
    train(dataclasses.replace(config, steps=45), broken)

    class Stop(Exception):
        pass

    def stop(record: dict[str, float]) -> None:
        raise Stop

    with pytest.raises(Stop):
        continue_training(broken, steps=64, checkpoint_every=2, on_record=stop)
    assert checkpoints.load(broken / CHECKPOINT).step == 48
    continue_training(broken)
    means, parts = (
        {record["step"]: record["loss"] for record in read_metrics(f / METRICS)} for f in (straight, broken)
    )
    assert (parts[45] + parts[50]) / 2 == pytest.approx(means[50])
    assert parts[64] == means[64]


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
        ("--device", "meta", "device 'meta' cannot be used"),
        ("--device", "privateuseone", "device 'privateuseone' cannot be used"),
        ("--device", "", "device '' cannot be used"),
        ("--n", 10**26, "n must be at least 1 and at most"),
        ("--layers", 10**26, "layers must be at least 1 and at most"),
        ("--heads", 10**26, "heads must be at least 1 and at most"),
        ("--resample", 10**26, "resample must be at least 1 and at most"),
        ("--layers", 10**12, "layers: expected sizes that make tensors of less than 2^63 bytes"),
        ("--heads", 10**12, "heads = 1000000000000"),
        ("--batch", 10**12, "batch: expected an int of at most"),
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


def test_a_size_whose_arrays_overflow_is_named(tmp_path: Path) -> None:
    result = _call(*QUICK, "--tasks", "isotropic", "--d", 10**12, "--output", tmp_path / "run")
    _assert_refused(result, "d: expected sizes that make tensors of less than 2^63 bytes", "got 1000000000000")
    result = _call(*QUICK, "--backend", "torch", "--batch", 10**12, "--output", tmp_path / "run")
    _assert_refused(result, "batch = 1000000000000", "memory")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--d", 0, "d: expected at least 1"),
        ("--d", 10**12, "d: expected sizes that make tensors of less than 2^63 bytes"),
        ("--n", 10**26, "n: expected at least 1 and at most"),
        ("--n", 10**12, "n = 1000000000000"),
        ("--queries", 10**12, "queries = 1000000000000"),
        ("--layers", 10**12, "layers: expected sizes that make tensors of less than 2^63 bytes"),
        ("--heads", 10**26, "heads: expected at least 1 and at most"),
        ("--batch", 10**12, "batch = 1000000000000"),
        ("--device", "meta", "device 'meta' cannot be used"),
        ("--device", "hpu", "device 'hpu' cannot be used"),
        ("--backend", "metal", "backend: expected one of"),
        ("--rule", "adam", "rule: expected one of"),
        ("--seconds", "inf", "seconds: expected a finite time"),
    ],
)
def test_bad_values_of_a_profile_end_in_one_line(option: str, value: object, words: str) -> None:
    _assert_refused(_call("profile", "--batch", 16, "--seconds", 0, option, value), words)


def test_a_backend_that_is_not_there_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("backend='cuda' is not available: no reason")

    monkeypatch.setattr("memformer_lab.profiling.call.explain", missing)
    _assert_refused(_call("profile", "--batch", 16, "--seconds", 0, "--backend", "cuda"), "backend='cuda' is not")


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_more_workers_than_any_machine_has_cores_are_refused(command: str) -> None:
    result = _call(command, "--workers", 10**6)
    assert result.exit_code == 2
    assert "--workers" in result.stderr


def test_a_missing_package_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memformer_lab.solvers.comparison", None)
    _assert_refused(_call("solve", tmp_path / "a.csv", "--target", "y"), "comparison")


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


def test_help_does_not_live_in_docstrings() -> None:
    """`python -OO` takes those away."""
    words = "import json, typer; from memformer_lab.cli import app; commands = typer.main.get_command(app).commands; "
    words += "print(json.dumps({n: c.help for n, c in commands.items()}))"
    done = subprocess.run([sys.executable, "-OO", "-c", words], capture_output=True, text=True, check=True)
    helps = json.loads(done.stdout)
    assert helps.keys() == {"train", "evaluate", "explain", "info", "run", "profile", "reproduce", "solve"}
    shown = " ".join(_call("--help").output.replace("│", " ").split())
    for text in helps.values():
        assert text
        assert text in shown


def test_a_name_is_never_read_as_markup(tmp_path: Path) -> None:
    output = tmp_path / "e[bold]x [:heart:"
    result = _call(*QUICK, "--output", output)
    assert result.exit_code == 0, result.output
    assert f"Wrote {output / CHECKPOINT} and {output / METRICS}" in result.output
    _assert_refused(_call(*QUICK, "--output", output), f"{output} holds a run")
    for words in (["[/s]"], ["train", "[/s]"], ["train", "--steps", "[/s]"], ["evaluate", "[/s]"]):
        result = _call(*words)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


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


def test_the_version_and_the_help_are_a_letter_away() -> None:
    assert _call("--version").stdout == f"memformer-lab {memformer_kernels.__version__}\n"
    assert "--noise" in _call("train", "-h").stdout


def test_figures_as_json(folder: Path) -> None:
    found = json.loads(_call("evaluate", folder, "--tasks", 500, "--layers", "--json").stdout)
    assert [one["tasks"] for one in found] == [500, 500]
    assert found[1]["low"] <= found[1]["log_mean"] <= found[1]["high"]
    held = json.loads(_call("info", folder, "--json").stdout)
    assert (held["step"], held["config"]["layers"], held["model"]["q"]["shape"]) == (40, 2, [2, 1, 5, 5])
    assert json.loads(_call("info", "--json").stdout)["build"]["version"] == memformer_kernels.__version__


def test_a_backend_that_is_not_there_is_a_line() -> None:
    for name in ("--backend", "--device"):
        _assert_refused(_call("profile", name, "cuda"), "cuda")
