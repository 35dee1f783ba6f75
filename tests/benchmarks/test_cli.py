"""`python -m benchmarks` and its commands from end to end on tiny batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app, best_backend
from benchmarks.measure import floors, growth
from benchmarks.reports.record import read_report
from memformer_kernels import build_info


def invoke(*options: str) -> str:
    result = CliRunner().invoke(app, [*options])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_writes_a_record_for_each_workload(tmp_path: Path) -> None:
    options = ["--quick", "--out", str(tmp_path), "--provider", "eager", "--provider", "kernels (torch)"]
    output = invoke(*options, "--batch", "30", "--batch", "50")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu-w-full.json", "cpu-w.json"]
    for name, workload in (("cpu-w", "W"), ("cpu-w-full", "W_full")):
        path = tmp_path / f"{name}.json"
        report = read_report(path)
        assert [timing.workload.batch for timing in report.timings] == [30] * 6 + [50] * 6
        assert {timing.workload.name for timing in report.timings} == {workload}
        statuses = {timing.provider: timing.status for timing in report.timings}
        assert set(statuses.values()) == {"timed", "unsupported"}
        assert statuses["memformer_kernels (torch)"] == "timed"
        assert report.machine.copy_gb_s > 0
        assert report.machine.read_gb_s is not None
        assert report.machine.fma_gflop_s > 0
        assert f"{workload}, B = 50" in output
        assert json.loads(path.read_text())["format"] == 1
    assert "published n-by-n, eager" in output


def test_one_workload_alone(tmp_path: Path) -> None:
    invoke("--quick", "--workload", "W", "--batch", "20", "--provider", "Gram, eager", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-w.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "V"], "V"),
        (["--provider", "numpy"], "numpy"),
        (["--batch", "0"], "--batch"),
        (["growth", "--axis", "heads"], "heads"),
        (["overhead", "--backend", "tpu"], "tpu"),
    ],
)
def test_a_bad_option_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_growth_writes_a_record_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = (growth.Axis("layers", "layers L", (1, 3)), growth.Axis("d", "features d", (2, 4)))
    monkeypatch.setattr(growth, "AXES", axes)
    record, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    providers = ["--provider", "Gram, eager", "--provider", "kernels (torch)"]
    output = invoke(
        "growth", "--quick", "--axis", "layers", *providers, "--json", str(record), "--figure", str(picture)
    )
    assert {timing.workload.layers for timing in read_report(record).timings} == {1, 3}
    assert {timing.workload.name for timing in read_report(record).timings} == {"growth in layers"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "layers L = 3" in output


def test_overhead_records_every_ratio(tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    output = invoke("overhead", "--quick", "--backend", "torch", "--json", str(path))
    record = json.loads(path.read_text())
    assert record["backend"] == "torch"
    assert len(record["ratios"]) == 6
    assert all(ratio > 0 for ratio in record["ratios"].values())
    assert "loss + backward" in output


def test_the_native_backend_is_looked_at_where_it_is_built() -> None:
    assert best_backend() == ("cpu" if build_info().backends["cpu"].available else "torch")


def test_floors_records_both_workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "buffer_count", lambda workload: 1)
    path = tmp_path / "floors.json"
    output = invoke("floors", "--quick", "--backend", "torch", "--json", str(path))
    record = json.loads(path.read_text())
    assert [profile["workload"]["name"] for profile in record["profiles"]] == ["W", "W_full"]
    assert {profile["backend"] for profile in record["profiles"]} == {"torch"}
    assert "reading the tokens" in output


def test_help_does_not_live_in_docstrings() -> None:
    """`python -OO` takes those away."""
    words = "import json, typer; from benchmarks.__main__ import app; group = typer.main.get_command(app); "
    words += "print(json.dumps([group.help, *(command.help for command in group.commands.values())]))"
    done = subprocess.run([sys.executable, "-OO", "-c", words], capture_output=True, text=True, check=True)
    helps = json.loads(done.stdout)
    assert len(helps) > 10
    assert all(helps)
    shown = " ".join(invoke("--help").replace("│", " ").split())
    assert helps[0] in shown
    assert all(" ".join(text.splitlines()[0].split()) in shown for text in helps)
