"""`python -m benchmarks` from end to end on tiny batches."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.record import read_report


@pytest.mark.parametrize("workload", ["W", "W_full"])
def test_quick_run_prints_a_table_and_writes_a_record(tmp_path: Path, workload: str) -> None:
    path = tmp_path / "record.json"
    options = ["--quick", "--workload", workload, "--json", str(path), "--provider", "eager", "--provider", "memformer"]
    result = CliRunner().invoke(app, [*options, "--batch", "30", "--batch", "50"])
    assert result.exit_code == 0, result.output
    report = read_report(path)
    assert [timing.workload.batch for timing in report.timings] == [30] * 6 + [50] * 6
    assert {timing.workload.name for timing in report.timings} == {workload}
    statuses = {timing.provider: timing.status for timing in report.timings}
    assert set(statuses.values()) == {"timed", "unsupported"}
    assert statuses["memformer_kernels (torch)"] == "timed"
    assert report.machine.copy_gb_s > 0
    assert report.machine.fma_gflop_s > 0
    assert f"{workload}, B = 50" in result.output
    assert "published n-by-n, eager" in result.output
    assert json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--workload", "V"], "V"), (["--provider", "jax"], "jax"), (["--batch", "0"], "--batch")],
)
def test_a_bad_option_is_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    path = tmp_path / "record.json"
    result = CliRunner().invoke(app, [*options, "--json", str(path)])
    assert result.exit_code == 2
    assert message in result.output
    assert not path.exists()
