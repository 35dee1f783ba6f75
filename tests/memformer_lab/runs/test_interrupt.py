"""Ctrl-C on `memformer-lab`: it ends soon, quietly, and a run goes on to the trace of one that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memformer_lab.runs import checkpoint
from memformer_lab.runs.training import CHECKPOINT
from tests.marks import slow_but

MODEL = ("--layers", "2", "--batch", "2000", "--seed", "3", "--schedule", "constant")


@contextmanager
def _started(command: list[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive its test."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _training(folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "memformer_lab", "train", "--output", str(folder), "--checkpoint-every", "200"]
    return [*command, *options]


SLEEPS = {
    "waits": "time.sleep(60)",
    "catches all": "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)",
    "turns it into another error": "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('broken')",
}


@pytest.mark.parametrize("code", SLEEPS.values(), ids=SLEEPS)
@pytest.mark.parametrize("imported", slow_but(["torch"], ["torch", "typer"]))
@pytest.mark.parametrize("start", ["-m memformer_lab", "-c from memformer_lab.__main__ import main; main()"])
def test_ctrl_c_while_packages_are_imported_says_nothing(tmp_path: Path, start: str, imported: str, code: str) -> None:
    begun = tmp_path / "begun"
    (tmp_path / f"{imported}.py").write_text(f"import time\nopen({str(begun)!r}, 'w').close()\n{code}\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    deadline = time.monotonic() + 200
    with _started([sys.executable, *start.split(" ", 1), "info"], PYTHONPATH=path) as running:
        while not begun.exists():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=30) == ("", "")
        assert running.returncode == 130


def test_the_installed_command_is_the_one_that_is_started_here() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'memformer-lab = "memformer_lab.__main__:main"' in project


@pytest.mark.parametrize("backend", slow_but(["cpu"], ["cpu", "torch"]))
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "run"
    new = (*MODEL, "--backend", backend)
    deadline = time.monotonic() + 200
    with _started(_training(folder, *new, "--steps", "100000000"), OMP_NUM_THREADS="1") as running:
        while not (folder / CHECKPOINT).exists() or checkpoint.load(folder / CHECKPOINT).step < 200:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)  # the whole run takes an hour
        assert running.returncode == 130
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.strip()]) <= 1
    kept = checkpoint.load(folder / CHECKPOINT).step
    steps = str(kept + 200)
    for where, options in ((folder, ("--resume",)), (tmp_path / "whole", new)):
        with _started(_training(where, *options, "--steps", steps), OMP_NUM_THREADS="1") as done:
            _, errors = done.communicate(timeout=200)
            assert done.returncode == 0, errors
    stopped, whole = (checkpoint.load(where / CHECKPOINT) for where in (folder, tmp_path / "whole"))
    assert stopped.step == whole.step == kept + 200
    assert all((stopped.model[name] == value).all() for name, value in whole.model.items())
