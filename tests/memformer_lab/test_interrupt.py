"""Ctrl-C on `memformer-lab train`: it ends soon, quietly, and goes on to the trace of a run that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memformer_lab import checkpoint
from memformer_lab.training import CHECKPOINT

MODEL = ("--layers", "2", "--batch", "2000", "--seed", "3", "--schedule", "constant")


def _train(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "memformer_lab", "train", "--output", str(folder), "--checkpoint-every", "200"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "run"
    new = (*MODEL, "--backend", backend)
    running = _train(folder, *new, "--steps", "100000000")
    deadline = time.monotonic() + 200
    while not (folder / CHECKPOINT).exists() or checkpoint.load(folder / CHECKPOINT).step < 200:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - begin < 5
    assert running.returncode not in (0, -signal.SIGINT)
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.strip()]) <= 1
    kept = checkpoint.load(folder / CHECKPOINT).step
    steps = str(kept + 200)
    for where, options in ((folder, ("--resume",)), (tmp_path / "whole", new)):
        done = _train(where, *options, "--steps", steps)
        _, errors = done.communicate(timeout=200)
        assert done.returncode == 0, errors
    stopped, whole = (checkpoint.load(where / CHECKPOINT) for where in (folder, tmp_path / "whole"))
    assert stopped.step == whole.step == kept + 200
    assert all((stopped.model[name] == value).all() for name, value in whole.model.items())
