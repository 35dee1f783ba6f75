"""The GPU command without a GPU: its way through parts and records, then its own parts on the CPU at small sizes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from benchmarks import gpu, gpu_parts
from benchmarks.harness import Policy
from benchmarks.machine import ROOT
from benchmarks.providers import PROVIDERS, select
from benchmarks.record import Machine
from benchmarks.workloads import TILE_64, TILE_128
from memformer_kernels import build_info
from memformer_kernels.build import BackendInfo
from tests.benchmarks.test_record import MACHINE

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so_and_writes_nothing() -> None:
    before = sorted(gpu.RECORDS.iterdir())
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    assert "No NVIDIA GPU" in finished.stdout
    assert sorted(gpu.RECORDS.iterdir()) == before


class _Bench:
    """A pretended GPU "X-1" with two parts that count their runs; `fault` is raised by the second."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.records, self.unfinished = folder / "records", folder / "unfinished"
        self.ran: list[str] = []
        self.fault: BaseException | None = None
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr(gpu, "RECORDS", self.records)
        patch.setattr(gpu, "UNFINISHED", self.unfinished)
        patch.setattr(gpu, "sources", lambda: "0123")
        patch.setattr(gpu, "measure_machine", lambda device: _machine())
        patch.setattr(gpu, "PARTS", {"first": self._part("first"), "second": self._part("second")})

    def _part(self, name: str) -> gpu_parts.Part:
        def part(console: Console) -> dict[str, Any]:
            self.ran.append(name)
            if name == "second" and self.fault:
                raise self.fault
            return {"figure": len(self.ran)}

        return part

    def record(self) -> dict[str, Any]:
        (path,) = self.records.iterdir()
        assert path.name.startswith("gpu-x-1-")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def _machine(**changes: Any) -> Machine:
    return replace(MACHINE, gpu="GPU X-1", driver="600", **changes)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Bench:
    return _Bench(monkeypatch, tmp_path)


def test_the_record_holds_the_machine_and_every_part(bench: _Bench) -> None:
    gpu.main()
    record = bench.record()
    assert record["machine"]["gpu"] == "GPU X-1"
    assert (record["first"], record["second"], record["sources"]) == ({"figure": 1}, {"figure": 2}, "0123")
    assert not list(bench.unfinished.iterdir())


def test_a_failing_part_ends_the_run_without_a_record_and_the_next_goes_on_there(bench: _Bench) -> None:
    bench.fault = gpu.PartFailed("the tests ended with status 1")
    with pytest.raises(typer.Exit) as ended:
        gpu.main()
    assert ended.value.exit_code == 1
    assert not bench.records.exists()
    bench.fault = None
    gpu.main()
    assert bench.ran == ["first", "second", "second"]
    assert bench.record()["first"] == {"figure": 1}


def test_a_run_that_was_killed_goes_on_where_it_was(bench: _Bench) -> None:
    bench.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    bench.fault = None
    gpu.main()
    assert bench.ran == ["first", "second", "second"]


@pytest.mark.parametrize("changed", ["sources", "driver", "afresh"])
def test_nothing_is_kept_from_other_sources_or_another_driver(
    changed: str, bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.main(["first"])
    if changed == "sources":
        monkeypatch.setattr(gpu, "sources", lambda: "4567")
    if changed == "driver":
        monkeypatch.setattr(gpu, "measure_machine", lambda device: replace(_machine(), driver="601"))
    gpu.main(afresh=changed == "afresh")
    assert bench.ran == ["first", "first", "second"]


def test_parts_by_name_make_a_record_together(bench: _Bench, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["sec"])
    assert "Still to run before there is a record: first." in capsys.readouterr().out
    assert not bench.records.exists()
    gpu.main(["fir"])
    assert bench.ran == ["second", "first"]
    assert list(bench.record())[-2:] == ["first", "second"]
    with pytest.raises(typer.BadParameter, match="no part begins with third; the parts: first, second"):
        gpu.main(["third"])


def test_the_digest_of_the_sources_sees_every_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    made = [gpu.sources()]
    for name, text in (("csrc/core/a.h", "x"), ("csrc/core/a.h", "y"), ("csrc/core/b.h", "y"), ("tests/a.py", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        made.append(gpu.sources())
    (tmp_path / "tests" / "a.json").write_text("no source")
    assert len(set(made)) == 5
    assert gpu.sources() == made[-1]


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "DEVICE", CPU)
    monkeypatch.setattr(gpu_parts, "POLICY", Policy(seconds=0.0, min_runs=1, max_runs=1, admit_s=60.0))
    monkeypatch.setattr("benchmarks.run.measure_machine", lambda device, quick: MACHINE)
    # Collecting this process's garbage takes longer than all that is timed here.
    monkeypatch.setattr("benchmarks.harness.gc.collect", lambda: 0)
    monkeypatch.setattr(gpu_parts, "tf32_rate", lambda: 100.0)


@pytest.mark.usefixtures("_on_the_cpu")
def test_the_whole_run(bench: _Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part that a GPU would run, at small sizes and with peers that need no compiler."""
    commands: list[list[str]] = []

    def pretended(command: list[str], seconds: float) -> tuple[int, str]:
        commands.append(command)
        return 0, "noise\n===== 3 passed in 0.1s =====\n"

    monkeypatch.setattr(gpu_parts, "bounded", pretended)
    monkeypatch.setattr("shutil.which", lambda name: "/bin/compute-sanitizer")
    small = select(["re-associated, eager", "(torch)", "(triton)", "flash"])
    parts: dict[str, gpu_parts.Part] = {}
    for name, part in gpu_parts.PARTS.items():
        workload = part.args[0] if isinstance(part, partial) else None
        if workload in (TILE_64, TILE_128):
            parts[name] = partial(part.func, replace(workload, batch=3, n=9, d=17))  # type: ignore[attr-defined]
        elif name.startswith("W"):
            parts[name] = partial(part.func, workload.with_batch(50), small)  # type: ignore[attr-defined]
        else:
            parts[name] = part
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu_parts, "TILE_PROVIDERS", select(["Gram, eager", "(torch)", "(triton)"]))
    gpu.main()
    record = bench.record()
    assert list(record)[4:] == list(gpu_parts.PARTS)
    assert [record[name] for name in gpu_parts.TESTS] == [{"tests": "3 passed in 0.1s"}] * len(gpu_parts.TESTS)
    assert all("pytest" in command for command in commands[: len(gpu_parts.TESTS)])
    timings = {timing["provider"]: timing for timing in record["W_100000"]["timings"]}
    assert len(timings) == len(small)
    ours = timings["memformer_kernels (torch)"]
    assert ours["status"] == "timed"
    assert ours["tasks_per_s"] == pytest.approx(1e3 * 50 / ours["quantiles"]["median_ms"])
    assert timings["memformer_kernels (triton)"]["status"] == "unsupported"
    tile = {timing["provider"]: timing for timing in record["tile_64"]["timings"]}["batch-last Gram, eager"]
    assert tile["of_limit"] == pytest.approx(record["tile_64"]["limit_ms"] / tile["quantiles"]["median_ms"])
    assert "% of the limit" in capsys.readouterr().out


def test_every_file_of_gpu_tests_has_a_part_and_parts_end_in_time() -> None:
    named = {argument for arguments in gpu_parts.TESTS.values() for argument in arguments}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "gpu").glob("test_*.py")} <= named
    assert all((ROOT / name).exists() for name in named if name.startswith("tests/"))
    policy = gpu_parts.POLICY
    assert policy.total_s is not None
    assert policy.admit_s is not None
    longest = policy.total_s + policy.admit_s + len(PROVIDERS) * policy.longest_s
    assert longest < gpu_parts.PART_S < 480


def test_a_command_is_ended_with_its_children_when_its_time_is_over(tmp_path: Path) -> None:
    child = f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)"
    code = f"import subprocess, sys; print('hello', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu_parts.bounded([sys.executable, "-c", code], 3.0) == (None, "hello\n")
    assert (tmp_path / "begun").exists()
    assert gpu_parts.bounded([sys.executable, "-c", "print(1); raise SystemExit(3)"], 60.0) == (3, "1\n")


@pytest.mark.parametrize(
    ("made", "message"), [((None, "half\n"), "took more than 460 s"), ((1, "1 failed\n"), "ended with status 1")]
)
def test_tests_that_fail_or_take_too_long_end_the_run(
    made: tuple[int | None, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_parts, "bounded", lambda command, seconds: made)
    with pytest.raises(gpu.PartFailed, match=message):
        gpu_parts.run_tests(("tests/gpu",), Console())


def _verdict(status: int | None) -> Callable[[list[str], float], tuple[int | None, str]]:
    return lambda command, seconds: (status, "cannot attach\nERROR SUMMARY: 1 error\n")


def test_what_watches_memory_is_a_verdict_a_reason_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/compute-sanitizer")
    built = replace(build_info(), backends={"cuda": BackendInfo("cuda", True, (), "")})
    monkeypatch.setattr(gpu_parts, "build_info", lambda: built)
    for status, verdict in ((0, "ERROR SUMMARY"), (1, "did not run: ERROR"), (None, "did not end in 153 s")):
        monkeypatch.setattr(gpu_parts, "bounded", _verdict(status))
        assert all(found.startswith(verdict) for found in gpu_parts.watched(Console()).values())
    monkeypatch.setattr(gpu_parts, "bounded", _verdict(9))
    with pytest.raises(gpu.PartFailed, match="memcheck found an error"):
        gpu_parts.watched(Console())
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no compute-sanitizer here" in gpu_parts.watched(Console())["not run"]


def test_the_limit_of_tiles_is_the_larger_of_bytes_and_products() -> None:
    """By hand: 8192 tasks of 512 tokens of 64 numbers are 1.07 GB."""
    by_bytes = gpu_parts.tile_limit_ms(TILE_64, copy_gb_s=1000.0, tf32_gflop_s=1e9)
    assert by_bytes == pytest.approx(1.074, rel=0.01)
    by_products = gpu_parts.tile_limit_ms(TILE_64, copy_gb_s=1e9, tf32_gflop_s=3e6)
    assert by_products == pytest.approx(2 * 8192 * TILE_64.operations.total / 1e12)
