"""Records survive the round trip and are never half-written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measure.workloads import W_FULL, W
from benchmarks.reports.record import (
    Machine,
    Quantiles,
    Report,
    Timing,
    read_report,
    read_reports,
    write_json,
    write_report,
    write_reports,
)

MACHINE = Machine(
    device="cpu",
    processor="a processor",
    threads=2,
    copy_gb_s=33.0,
    fma_gflop_s=150.0,
    read_gb_s=44.0,
    python="3.11.7",
    torch="2.13.0",
    package="0.1.0",
    revision="abc",
)


def report() -> Report:
    return Report(
        began="2030-01-01T00:00:00+00:00",
        seconds=12.5,
        machine=MACHINE,
        timings=(
            Timing("fast", True, W, "timed", "", Quantiles(1.5, 1.4, 2.0, 30), 1e-7, 2e-7, 3.5, 1024),
            Timing("slow", True, W, "timed", "", Quantiles(6.0, 5.0, 7.0, 3), 1e-7, 2e-7, 0.5, None),
            Timing("ours", False, W, "timed", "", Quantiles(0.5, 0.4, 0.6, 30), 1e-7, 2e-7, 0.5, None),
            Timing("fast", True, W_FULL, "unsupported", "token axis"),
        ),
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "W.json"
    write_report(path, report())
    assert read_report(path) == report()
    assert [entry.name for entry in path.parent.iterdir()] == ["W.json"]


def test_many_runs_of_one_workload_each_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "several.json"
    single = replace(report(), timings=report().timings[:3])
    solved = Timing("solver", True, W_FULL, "timed", "", Quantiles(1.0, 0.9, 1.1, 3), 1e-7, 0.0, 0.1, 8, solver=True)
    other = replace(report(), timings=(report().timings[3], solved))
    write_reports(path, [single, other])
    assert read_reports(path) == (single, other)
    with pytest.raises(ValueError, match="to unpack"):
        write_reports(path, [report()])
    assert read_reports(path) == (single, other)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of benchmark reports"):
        read_reports(path)


def test_the_best_peer_is_neither_ours_nor_a_solver() -> None:
    solver = Timing("solver", True, W, "timed", "", Quantiles(0.1, 0.1, 0.1, 30), solver=True)
    assert replace(report(), timings=(*report().timings, solver)).best_peer_ms(W) == 1.5
    assert report().best_peer_ms(W_FULL) is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "W.json"
    write_json(path, {"figure": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"figure": float("nan")})
    assert json.loads(path.read_text()) == {"figure": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["W.json"]


def test_a_record_from_before_the_read_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "W.json"
    write_report(path, report())
    content = json.loads(path.read_text())
    del content["machine"]["read_gb_s"]
    path.write_text(json.dumps(content))
    assert read_report(path).machine.read_gb_s is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 99}', '{"format": 1, "began": "x", "seconds": 1, "machine": {}, "timings": []}'],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"foreign\.json is not a benchmark report"):
        read_report(path)
