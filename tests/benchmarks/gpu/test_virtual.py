"""Kernels counted on virtual GPUs: cases that run, the record, the command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu import virtual
from benchmarks.gpu.floors import COUNTED
from benchmarks.gpu.trainer import LARGE_BATCH
from benchmarks.gpu.virtual_cases import LARGE_SHARE, Case, cases, loss
from benchmarks.gpu.virtual_cuda import library
from benchmarks.gpu.virtual_record import CHANGED, FORMAT, GPUS, read, short, write
from benchmarks.measure.sources import of_kernels
from benchmarks.measure.workloads import W
from tests.benchmarks.gpu.virtual_records import counted, use
from virtual_gpu import Report
from virtual_gpu.hardware import find_ptxas

needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="no ptxas to allocate registers")
ONE = use("kernel", 1.0, 100, issue=0.5)


def test_the_commands_are_there_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import benchmarks.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def case_of(name: str, backend: str) -> Case:
    return next(case for case in cases() if (case.name, case.backend) == (name, backend))


def test_the_trainer_is_counted_on_as_many_tasks_as_are_timed_on_a_gpu() -> None:
    """A multiprocessor's share of them, in whole turns of its three blocks of four warps."""
    turn = 3 * 128
    assert LARGE_SHARE % turn == 0
    assert LARGE_SHARE - turn < LARGE_BATCH / GPUS[90].multiprocessors <= LARGE_SHARE


def test_a_case_may_be_what_a_longer_call_does_beyond_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps of the persistent trainer, on the multiprocessors that a whole GPU has."""
    case = case_of("step, B = 1000", "cuda")
    assert case.whole
    found = [use("steps", 120.0, 1200, issue=0.5), use("steps", 20.0, 200, issue=0.5)]
    monkeypatch.setattr(
        virtual.Machines, "_uses", lambda self, one, architecture: ([found[one.make is case.beyond]], 132)
    )
    made = virtual.Machines().count(case, 90)
    (steps,) = made.kernels
    assert made.predicted_ns(steps) == pytest.approx(10_000)
    assert made.device_bytes == pytest.approx(100)
    assert steps.prediction.busy == pytest.approx({"issue": 0.5})


@pytest.mark.slow
@needs_ptxas
@pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
def test_a_case_of_the_cuda_backend_is_counted_as_the_committed_record_has_it() -> None:
    """Of fewer tasks: a task's work does not depend on how many there are, but for what a block does once."""
    tasks = 4224
    case = case_of("W", "cuda")._replace(units=tasks, make=lambda: loss(W.with_batch(tasks), "cuda"))
    made = virtual.Machines().count(case, 90)
    (kept,) = (one for one in read(COUNTED) if one.key == made.key)
    now, then = made.kernels[0], kept.kernels[0]
    assert short(now.kernel) == short(then.kernel) == "ResponseGram"
    assert now.counters.floating_point / tasks == pytest.approx(then.counters.floating_point / kept.units, rel=0.05)
    assert now.counters.global_bytes_read >= W.bytes_per_task * tasks
    assert now.device_bytes / tasks == pytest.approx(then.device_bytes / kept.units, rel=0.05)
    assert made.predicted_ns(now) > 0
    assert made.sources == of_kernels("cuda")


@pytest.mark.compiled
@needs_ptxas
def test_a_case_of_the_triton_backend_is_counted() -> None:
    made = virtual.Machines().count(case_of("register_update", "triton"), 90)
    (kernel,) = made.kernels
    assert made.sources == of_kernels("triton")
    assert made.floor <= made.device_bytes < 1.05 * made.floor
    assert kernel.prediction.bound == "memory"
    assert made.predicted_ns(kernel) > 1e9 * made.floor / virtual.GPUS[90].bandwidth


@pytest.mark.slow
@pytest.mark.compiled
@needs_ptxas
def test_other_architectures_are_counted() -> None:
    case = case_of("register_update", "triton")
    older, newer = (virtual.Machines().count(case, architecture) for architecture in (80, 90))
    assert older.floor <= older.device_bytes < 1.05 * older.floor
    assert older.predicted_ns(older.kernels[0]) > newer.predicted_ns(newer.kernels[0])


def test_what_a_check_found_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Report("race-shared", 1, "kernel", "", "two threads")
    monkeypatch.setattr(virtual, "_triton", lambda case, architecture: ([], [found], 1))
    with pytest.raises(RuntimeError, match="race-shared"):
        virtual.Machines().count(case_of("register_update", "triton"), 90)


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    made = [counted(ONE), replace(counted(ONE, ONE), name="other", architecture=80)]
    write(path, made)
    assert read(path) == made
    content = json.loads(path.read_text())
    assert (content["format"], content["measured"]) == (FORMAT, False)
    for broken in ({**content, "format": 0}, {"format": FORMAT, "cases": [{}]}, []):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"record\.json is not a record"):
            read(path)


def test_the_committed_record_has_every_case() -> None:
    kept = {one.key: one for one in read(COUNTED)}
    for case in cases():
        one = kept[case.name, case.backend, 90]
        assert (one.unit, one.units, one.floor) == (case.unit, case.units, case.floor)
    for one in kept.values():
        assert one.device_bytes >= one.floor
        for kernel in one.kernels:
            counters = kernel.counters
            classes = (counters.floating_point, counters.integer, counters.control, counters.memory)
            assert sum(classes) == counters.warp_instructions > 0
            assert counters.global_sectors >= counters.global_ideal_sectors > 0
            assert counters.shared_wavefronts >= counters.shared_ideal_wavefronts
            assert one.predicted_ns(kernel) > 0


def test_names_of_kernels() -> None:
    assert short("_ZN9memformer4cuda10run_kernelINS0_6TotalsIfEEEEvNT_9ArgumentsE") == "Totals"
    assert short("sum_kernel") == "sum_kernel"


def test_the_command_says_which_kernels_have_changed_since(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    current = counted(ONE, sources=of_kernels("cuda"))
    for other, marked in ((replace(current, name="W_full"), False), (counted(ONE, architecture=80), True)):
        write(path, [other, current])
        done = CliRunner().invoke(app, ["virtual", "--show", "--json", str(path)])
        assert done.exit_code == 0, done.output
        assert (CHANGED in done.output) == ("cuda, W *" in done.output) == marked


def test_the_command_shows_a_record_and_says_that_nothing_was_confirmed() -> None:
    done = CliRunner().invoke(app, ["virtual", "--show", "--json", str(COUNTED)])
    assert done.exit_code == 0, done.output
    assert "no hardware has confirmed one" in done.output
    assert "…" not in done.output
    for part in ("ResponseGram", "solve_backward_kernel", "triton, tile, d = 64", "a task on an H200"):
        assert part in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "nothing"], "no case holds it"),
        (["--architecture", "70"], "70 is not one of 90, 80"),
        (["--show"], "none.json"),
    ],
)
def test_what_the_command_refuses(options: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["virtual", *options, "--json", str(tmp_path / "none.json")])
    assert done.exit_code == 2
    # However narrow the terminal: words may be broken anywhere.
    assert "".join(said.split()) in "".join(done.output.replace("│", " ").split())


def test_the_command_keeps_what_it_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write(path, [replace(counted(ONE), name="W_full"), counted(ONE, floor=1)])
    monkeypatch.setattr(virtual.Machines, "count", lambda self, case, architecture: counted(ONE, floor=2))
    done = CliRunner().invoke(app, ["virtual", "--case", "cuda, W", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert [(one.name, one.floor) for one in read(path)] == [("W_full", 500), ("W", 2)]


def test_the_command_ends_where_a_case_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, case: Case, architecture: int) -> None:
        raise RuntimeError("nothing to run it on")

    monkeypatch.setattr(virtual.Machines, "count", fail)
    done = CliRunner().invoke(app, ["virtual", "--json", str(tmp_path / "record.json")])
    assert done.exit_code == 1
    assert "cuda, W: nothing to run it on" in done.output
