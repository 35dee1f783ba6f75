"""Worker processes end with the process that started them, within two seconds and without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from memformer_lab.runs.parallel import Job, Report, Workers

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs a system that lists processes")

SOON = 2.0


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _alive(process: int) -> bool:
    """A zombie, which nobody has waited for yet, is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until(done: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def _started(tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The lab with two workers, in a session of its own, and its workers."""
    arguments = [sys.executable, "-m", "memformer_lab", *words, "--workers", "2"]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(arguments, stdout=out, stderr=err, start_new_session=True)
    try:
        _until(lambda: len(_children(process.pid)) == 2, 120)
        yield process, _children(process.pid)
    finally:
        process.kill()
        process.wait()


def _at_work(tmp_path: Path) -> bool:
    trained = any((tmp_path / "results").glob("runs/*/checkpoint.safetensors"))
    return trained or "running" in (tmp_path / "out").read_text()


RUN = ("run", "--quick", "--output")
REPRODUCE = ("reproduce", "--tiny", "--out")


@pytest.mark.parametrize(
    ("words", "number", "busy"),
    [
        (RUN, signal.SIGTERM, True),
        pytest.param(RUN, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(REPRODUCE, signal.SIGKILL, True, marks=pytest.mark.slow),
        (REPRODUCE, signal.SIGTERM, False),
        pytest.param(RUN, signal.SIGKILL, False, marks=pytest.mark.slow),
        pytest.param(RUN, signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(REPRODUCE, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(REPRODUCE, signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_the_command(words: tuple[str, ...], number: int, busy: bool, tmp_path: Path) -> None:
    """An interrupt goes to the whole process group, as a terminal sends it; the rest to the command alone."""
    with _started(tmp_path, *words, str(tmp_path / "results")) as (process, workers):
        if busy:
            _until(lambda: _at_work(tmp_path), 120)
        begin = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _until(lambda: not any(map(_alive, workers)), 30)
        assert time.monotonic() - begin < SOON
        # After its workers the command only tears down its interpreter, which takes as long as other work lets it.
        process.wait(5)
        assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (tmp_path / "err").read_text().strip() == ""


def _sleep(seconds: float, report: Report) -> None:
    report(1, str(os.getpid()))
    time.sleep(seconds)


def _fail(report: Report) -> None:
    raise LookupError("no such luck")


class _Stubborn(Exception):
    """An error that cannot be made again from what it keeps."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def _fail_stubbornly(report: Report) -> None:
    raise _Stubborn(1, 2)


def _print(report: Report) -> str:
    print("a job's own words")
    return "done"


def _die(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _square(value: int, report: Report) -> int:
    report(1, "")
    return value * value


def _silent(_: int, __: str) -> None:
    pass


def test_errors_end_the_other_jobs_too_and_the_pool_goes_on() -> None:
    with Workers(2) as workers:
        begin = time.monotonic()
        with pytest.raises(LookupError, match="no such luck") as raised:
            workers.run([Job(_sleep, (0.5,)), Job(_fail)], _silent)
        assert "_fail" in str(raised.value.__cause__)
        seen: list[int] = []
        results = workers.run([Job(_square, (value,)) for value in range(7)], lambda units, _: seen.append(units))
        assert results == [value * value for value in range(7)]
        assert seen == [1] * 7
        with pytest.raises(RuntimeError, match="_Stubborn: 1 and 2"):
            workers.run([Job(_fail_stubbornly)], _silent)
        assert workers.run([Job(_print)], _silent) == ["done"]
        pids: list[str] = []
        with pytest.raises(LookupError):
            workers.run([Job(_sleep, (60.0,)), Job(_fail)], lambda _, text: pids.append(text))
        assert time.monotonic() - begin < 30
        begin = time.monotonic()
    assert time.monotonic() - begin < SOON


def test_a_worker_that_dies_is_an_error() -> None:
    with Workers(2) as workers, pytest.raises(ChildProcessError, match="a worker process died: by signal 9"):
        workers.run([Job(_die), Job(_square, (2,))], _silent)


def test_tensors_travel() -> None:
    with Workers(2) as workers:
        assert torch.equal(workers.run([Job(_twice, (torch.arange(3.0),))], _silent)[0], torch.arange(3.0) * 2)


def _twice(value: torch.Tensor, report: Report) -> torch.Tensor:
    return value * 2
