"""The machine's name and rates."""

import math
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.measure import machine
from benchmarks.measure.clock import milliseconds, peak_bytes

CPU = torch.device("cpu")


def test_rates_and_names() -> None:
    found = machine.measure_machine(CPU, quick=True)
    assert found.device == "cpu"
    assert found.processor
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert found.gpu is None
    assert found.driver is None
    for rate in (found.copy_gb_s, found.fma_gflop_s, found.read_gb_s):
        assert rate is not None
        assert math.isfinite(rate)
        assert rate > 0


def test_the_revision_tells_a_changed_tree_and_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.git_revision() == "unknown"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    revision = git("rev-parse", "--short=12", "HEAD")
    assert machine.git_revision() == revision
    (tmp_path / "file").write_text("2")
    assert machine.git_revision() == f"{revision}+"


def test_the_clock_runs_the_action_once() -> None:
    calls: list[int] = []
    assert milliseconds(lambda: calls.append(1), CPU) >= 0
    assert calls == [1]


def test_peak_memory_sees_a_large_temporary() -> None:
    size = 256 << 20
    found = peak_bytes(lambda: torch.ones(size // 4).sum(), CPU)
    assert found is None or found > size // 2
