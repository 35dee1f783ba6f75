"""A run that is killed at any moment, and continued, is the run that was never killed; no partial file is ever seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.files import LOCK
from memformer_lab.runs.metrics import read_metrics
from memformer_lab.runs.training import CHECKPOINT, METRICS, train

CONFIG = TrainingConfig(
    d=3, n=6, layers=2, tasks="isotropic", batch=16, steps=200, learning_rate=0.02, log_every=7, backend="auto"
)
EVERY = 2

# One process imports everything and forks a child for every attempt, so that a kill costs no start of an interpreter.
ATTEMPTS = """
import json, os, random, signal, sys, time
from pathlib import Path
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.metrics import read_metrics
from memformer_lab.runs.training import CHECKPOINT, METRICS, continue_training, train

def attempt(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child

config, every = TrainingConfig.from_dict(json.loads(sys.argv[1])), int(sys.argv[2])
rehearsal, folder, kills = Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
begin = time.perf_counter()
assert os.waitpid(attempt(lambda: train(config, rehearsal, checkpoint_every=every)), 0)[1] == 0
seconds = time.perf_counter() - begin
written = config.steps // every
moments, seen, landed = random.Random(0), [], 0

def version():
    try:
        return (folder / CHECKPOINT).stat().st_mtime_ns
    except FileNotFoundError:
        return None

# The moment is a number of checkpoints and a random part of the time between two, so that load changes nothing.
def wait(child):
    last = version()
    for _ in range(moments.randrange(written // kills)):
        while (now := version()) == last:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(1e-4)
        last = now
    time.sleep(moments.uniform(0, 2 * seconds / written))

while landed < kills:
    fresh = not (folder / CHECKPOINT).exists()
    start = (lambda: train(config, folder, checkpoint_every=every)) if fresh else (
        lambda: continue_training(folder, checkpoint_every=every))
    child = attempt(start)
    wait(child)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
    landed += 1
    if (folder / CHECKPOINT).exists():
        step = checkpoints.load(folder / CHECKPOINT).step
        lines = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
        assert not lines or lines[-1]["step"] >= step - config.log_every
        seen.append(step)
    shown = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    assert set(shown) <= {CHECKPOINT, METRICS}, shown
assert os.waitpid(attempt(lambda: continue_training(folder, checkpoint_every=every)), 0)[1] == 0
print(json.dumps({"landed": landed, "steps": seen}))
"""


def _lines(folder: Path) -> list[dict[str, float]]:
    return [{**record, "tasks_per_second": 0} for record in read_metrics(folder / METRICS)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_continues_the_exact_trace(kills: int, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(CONFIG, straight, checkpoint_every=EVERY)
    arguments = [json.dumps(CONFIG.to_dict()), str(EVERY), str(tmp_path / "rehearsal"), str(broken), str(kills)]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["landed"] == kills
    assert report["steps"] == sorted(report["steps"])
    assert any(0 < step < CONFIG.steps for step in report["steps"])
    one, other = (checkpoints.load(folder / CHECKPOINT) for folder in (straight, broken))
    assert (one.step, one.loss_sum) == (other.step, other.loss_sum)
    for group in ("model", "first", "second"):
        for name, value in getattr(one, group).items():
            assert torch.equal(value, getattr(other, group)[name])
    assert _lines(straight) == _lines(broken)
    assert sorted(path.name for path in broken.iterdir()) == sorted([CHECKPOINT, LOCK, METRICS])
