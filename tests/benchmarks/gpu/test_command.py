"""The GPU command without a GPU: its way through parts and records, then its own parts on the CPU at small sizes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu.parts import Part
from benchmarks.measure.harness import Policy
from benchmarks.measure.provider import Provider
from benchmarks.measure.providers import select
from benchmarks.measure.results import Machine
from benchmarks.measure.sources import ROOT
from benchmarks.measure.workloads import TILE_64, TILE_128, Workload
from memformer_kernels import build_info
from memformer_kernels.availability import BackendInfo
from tests.benchmarks.made_up import MACHINE

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
    """A pretended GPU "X-1" with two parts that count their runs; `fault` is raised by the first."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.records = folder / "records"
        self.ran: list[str] = []
        self.fault: BaseException | None = None
        self.records.mkdir()
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr(gpu, "RECORDS", self.records)
        patch.setattr(gpu, "digest", lambda *folders: "0123")
        patch.setattr(gpu, "measure_machine", lambda device: _machine())
        patch.setattr(gpu, "PARTS", {name: Part(20.0, self._part(name)) for name in ("first", "second")})

    def _part(self, name: str) -> Callable[[float, Console], dict[str, Any]]:
        def part(seconds: float, console: Console) -> dict[str, Any]:
            assert seconds <= 20.0
            self.ran.append(name)
            if name == "first" and self.fault:
                raise self.fault
            return {"figure": len(self.ran)}

        return part

    def run(self, *names: str, failed: bool = False, **options: Any) -> None:
        status = 0
        try:
            gpu.main(list(names), **{"records": self.records, **options})
        except typer.Exit as ended:
            status = ended.exit_code
        assert status == failed

    def record(self) -> dict[str, Any]:
        (path,) = self.records.iterdir()
        assert path.name.startswith("gpu-x-1-")
        found: dict[str, Any] = json.loads(path.read_text())
        assert path.stem.endswith(found["date"])
        return found


def _machine(**changes: Any) -> Machine:
    return replace(MACHINE, gpu="GPU X-1", driver="600", **changes)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Bench:
    return _Bench(monkeypatch, tmp_path)


def test_the_record_holds_the_machine_and_every_part(bench: _Bench) -> None:
    bench.run()
    record = bench.record()
    assert record["machine"]["gpu"] == "GPU X-1"
    assert (record["first"]["figure"], record["second"]["figure"], record["sources"]) == (1, 2, "0123")
    assert record["missing"] == []


def test_a_failing_part_loses_nothing_and_runs_again(bench: _Bench) -> None:
    bench.fault = RuntimeError("the losses are wrong")
    bench.run(failed=True)
    assert bench.record()["first"]["failed"] == "RuntimeError: the losses are wrong"
    assert bench.record()["second"]["figure"] == 2
    bench.fault = None
    bench.run()
    assert bench.ran == ["first", "second", "first"]
    assert "failed" not in bench.record()["first"]


def test_a_run_that_was_stopped_goes_on_where_it_was(bench: _Bench) -> None:
    bench.run("second")
    bench.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gpu.main(minutes=35.0, records=bench.records)
    assert bench.record()["second"]["figure"] == 1
    bench.fault = None
    bench.run()
    assert bench.ran == ["second", "first", "first"]


def test_parts_that_time_does_not_allow_are_left_to_the_next_run(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 0.0, 0.0, 0.0, 50.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(now)))
    bench.run(minutes=1.0)
    assert "Not run yet: second." in capsys.readouterr().out
    assert (bench.ran, bench.record()["missing"]) == (["first"], ["second"])


@pytest.mark.parametrize("changed", ["sources", "driver", "afresh"])
def test_nothing_is_kept_from_other_sources_or_another_driver(
    changed: str, bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run("first")
    if changed == "sources":
        monkeypatch.setattr(gpu, "digest", lambda *folders: "4567")
    if changed == "driver":
        monkeypatch.setattr(gpu, "measure_machine", lambda device: replace(_machine(), driver="601"))
    bench.run(afresh=changed == "afresh")
    assert bench.ran == ["first", "first", "second"]


def test_a_part_begins_where_it_can_end_and_the_first_of_a_run_anyhow(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 60 s: 16 left for a first part that may take 20, then 19 for the second, which is left to the next run."""
    now = iter([0.0, 44.0, 44.0, 41.0, 41.0])
    clock = SimpleNamespace(monotonic=lambda: next(now), time=lambda: 1000.0)
    monkeypatch.setattr(gpu, "time", clock)
    bench.run(until=1060.0)
    assert bench.ran == ["first"]
    now = iter([0.0] * 8)
    bench.run(until=1010.0)
    assert bench.ran == ["first"]
    now = iter([0.0] * 8)
    bench.run(until=1020.0)
    assert bench.ran == ["first", "second"]


def test_the_record_lies_where_it_is_wanted_and_is_gone_on_with_there(bench: _Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    bench.run("first", records=out)
    bench.run(records=out)
    assert bench.ran == ["first", "second"]
    assert list(bench.records.iterdir()) == []
    assert len(list(out.iterdir())) == 1


def test_what_the_interpreter_lacks_is_told(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run("first")
    assert "Not here" not in capsys.readouterr().out
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_module"))
    bench.run("second")
    assert "Not here: no_such_module; `make gpu-packages`" in capsys.readouterr().out


def test_parts_by_name_make_a_record_together(bench: _Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run("sec")
    assert "Not run yet: first." in capsys.readouterr().out
    assert bench.record()["missing"] == ["first"]
    bench.run("fir")
    assert bench.ran == ["second", "first"]
    assert list(bench.record())[-2:] == ["first", "second"]
    with pytest.raises(typer.BadParameter, match="no part begins with third; the parts: first, second"):
        bench.run("third")


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "DEVICE", CPU)
    monkeypatch.setattr(gpu_parts, "POLICY", Policy(seconds=0.0, min_runs=1, max_runs=1, admit_s=60.0))
    monkeypatch.setattr("benchmarks.measure.run.measure_machine", lambda device, quick: MACHINE)
    # Collecting this process's garbage takes longer than all that is timed here.
    monkeypatch.setattr("benchmarks.measure.harness.gc.collect", lambda: 0)
    monkeypatch.setattr(gpu_parts, "tf32_rate", lambda: 100.0)


def _small(name: str, part: Part, providers: tuple[Provider, ...]) -> Part:
    workload = part.run.args[0] if isinstance(part.run, partial) else None
    if workload in (TILE_64, TILE_128):
        return Part(part.longest_s, partial(gpu_parts.time_tile, replace(workload, batch=3, n=9, d=17)))
    if isinstance(workload, Workload):
        return Part(part.longest_s, partial(gpu_parts.time_workload, workload.with_batch(50), providers))
    return part


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
    monkeypatch.setattr(gpu, "PARTS", {name: _small(name, part, small) for name, part in gpu_parts.PARTS.items()})
    monkeypatch.setattr(gpu_parts, "TILE_PROVIDERS", select(["Gram, eager", "(torch)", "(triton)"]))
    bench.run(failed=not all(build_info().backends[name].available for name in ("cpu", "cuda", "triton")))
    record = bench.record()
    assert list(record)[5:] == list(gpu_parts.PARTS)
    assert "failed" in record["build"] or not record["missing"]
    assert all(record[name]["tests"] == "3 passed in 0.1s" for name in gpu_parts.TESTS)
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


def _collected(*arguments: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.slow
def test_every_gpu_test_is_in_one_part() -> None:
    parts = [_collected(*gpu_parts.TESTS[name]) for name in ("tests_cuda", "tests_triton", "tests_torch")]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) == _collected("-m", "gpu", "tests/gpu")
    assert all((ROOT / name).exists() for name in gpu_parts.TESTS["tests_package"] if name.startswith("tests/"))
    assert set(gpu_parts.TESTS) <= set(gpu_parts.PARTS)


def test_what_is_worth_most_comes_first_and_in_time() -> None:
    longest = {name: part.longest_s for name, part in gpu_parts.PARTS.items()}
    names = list(longest)
    hot = ["trainer", "W_4000000", "W_full_1000000", "tile_64", "tile_128"]
    assert names[:8] == ["build", "tests_cuda", "tests_triton", *hot]
    assert longest["tests_cuda"] + longest["tests_triton"] <= 4 * 60
    assert sum(longest[name] for name in hot) <= 6 * 60
    assert sum(longest.values()) < 35 * 60
    window = int(re.findall(r"^GPU_SECONDS \?= (\d+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0])
    assert window < 8 * 60
    assert max(longest.values()) <= window - 60


def test_what_one_part_of_the_packages_tests_runs_the_other_leaves_out() -> None:
    contract, package = gpu_parts.TESTS["tests_contract"], gpu_parts.TESTS["tests_package"]
    files = [path for path in contract if path.startswith("tests/")]
    assert len(files) > 10
    assert {f"--ignore={path}" for path in files} == {word for word in package if word.startswith("--ignore=")}
    assert "tests/memformer_kernels" in package


def test_the_last_provider_may_take_what_it_is_admitted_with() -> None:
    policy = gpu_parts.POLICY
    assert policy.admit_s is not None
    assert policy.admit_s < gpu_parts.AFTER_LAST_S


def test_a_command_is_ended_with_its_children_when_its_time_is_over(tmp_path: Path) -> None:
    child = f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)"
    code = f"import subprocess, sys; print('hello', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu_parts.bounded([sys.executable, "-c", code], 3.0) == (None, "hello\n")
    assert (tmp_path / "begun").exists()
    assert gpu_parts.bounded([sys.executable, "-c", "print(1); raise SystemExit(3)"], 60.0) == (3, "1\n")


def test_processes_that_share_the_cores_compute_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert gpu_parts.bounded([sys.executable, "-c", code], 60.0) == (0, "1\n")


@pytest.mark.parametrize(
    ("made", "message"),
    [((None, "half\n"), "took more than 9 s: half"), ((1, "FAILED a\n1 failed\n"), "ended with status 1: 1 failed")],
)
def test_tests_that_fail_or_take_too_long_are_told(
    made: tuple[int | None, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_parts, "bounded", lambda command, seconds: made)
    found = gpu_parts.run_tests(("tests/gpu",), 9.0, Console(quiet=True))
    assert found["failed"].endswith(message)
    assert found["tests"] == [line for line in made[1].splitlines() if line.startswith("FAILED")]


def _verdict(status: int | None) -> Callable[[list[str], float], tuple[int | None, str]]:
    return lambda command, seconds: (status, "cannot attach\nERROR SUMMARY: 1 error\n")


def test_what_watches_memory_is_a_verdict_a_reason_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/compute-sanitizer")
    built = replace(build_info(), backends={"cuda": BackendInfo("cuda", True, (), "")})
    monkeypatch.setattr(gpu_parts, "build_info", lambda: built)
    for status, verdict in ((0, "ERROR SUMMARY"), (1, "did not run: ERROR"), (None, "did not end in 25 s")):
        monkeypatch.setattr(gpu_parts, "bounded", _verdict(status))
        assert all(found.startswith(verdict) for found in gpu_parts.watched(100.0, Console(quiet=True)).values())
    monkeypatch.setattr(gpu_parts, "bounded", _verdict(9))
    assert "found an error" in gpu_parts.watched(100.0, Console(quiet=True))["failed"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no compute-sanitizer here" in gpu_parts.watched(100.0, Console(quiet=True))["not run"]


def test_the_limit_of_tiles_is_the_larger_of_bytes_and_products() -> None:
    """By hand: 8192 tasks of 513 tokens of 65 numbers are 1.09 GB."""
    by_bytes = gpu_parts.tile_limit_ms(TILE_64, copy_gb_s=1000.0, tf32_gflop_s=1e9)
    assert by_bytes == pytest.approx(1.093, rel=0.01)
    by_products = gpu_parts.tile_limit_ms(TILE_64, copy_gb_s=1e9, tf32_gflop_s=3e6)
    assert by_products == pytest.approx(2 * 8192 * TILE_64.operations.total / 1e12)
