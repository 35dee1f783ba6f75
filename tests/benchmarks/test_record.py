"""Records survive the round trip and are never half-written."""

import json
from pathlib import Path

import pytest

from benchmarks.record import Machine, Quantiles, Report, Timing, read_report, write_json, write_report
from benchmarks.workloads import W_FULL, W

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


def test_the_best_peer_is_not_ours() -> None:
    assert report().best_peer_ms(W) == 1.5
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
