"""Standard output that is closed, full or plain ASCII: the work is saved, and one line says where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memformer_lab.reports.terminal import memory_for
from memformer_lab.runs.training import CHECKPOINT, METRICS

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a shell and a device that is always full")

LAB = f"exec '{sys.executable}' -m memformer_lab"
TRAIN = "train --steps 2 --batch 4 --layers 1 --output run"


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, check=False)


@pytest.mark.parametrize(("end", "reason"), [(">/dev/full", b"No space left"), (">&-", b"it is closed")])
def test_a_stdout_that_takes_nothing_is_told_when_the_work_is_saved(end: str, reason: bytes, tmp_path: Path) -> None:
    done = _shell(f"{LAB} {TRAIN} {end}", tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: standard output cannot be written: " + reason)
    assert done.stderr.endswith(b"; what was made is in run\n")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {CHECKPOINT, METRICS}


def test_a_pipe_that_is_closed_early_stops_no_work(tmp_path: Path) -> None:
    done = _shell(f"({LAB} {TRAIN}; echo $? >code) | exec true".replace("exec '", "'"), tmp_path)
    assert (tmp_path / "code").read_text() == "2\n"
    assert done.stderr.count(b"\n") == 1
    assert b"Broken pipe; what was made is in run" in done.stderr
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_help_for_a_stdout_that_takes_nothing(tmp_path: Path) -> None:
    done = _shell(f"{LAB} --help >/dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


def test_what_ascii_lacks_is_escaped(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i * i % 7}\n" for i in range(12))
    (tmp_path / "data.csv").write_text(f"Größe,y\n{rows}", encoding="utf-8")
    line = f"{LAB} solve data.csv --target Größe --figure é.png"
    done = _shell(f"export PYTHONIOENCODING=ascii; {line}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"Gr\\xf6\\xdfe from 1 columns" in done.stdout
    assert b"Wrote \\xe9.png\n" in done.stdout
    assert (tmp_path / "é.png").exists()


def test_only_a_want_of_memory_is_the_sizes_fault() -> None:
    with pytest.raises(ValueError, match="batch = 3 need more memory than there is"), memory_for(batch=3):
        raise MemoryError
    with pytest.raises(RuntimeError, match="another fault"), memory_for(batch=3):
        raise RuntimeError("another fault")
