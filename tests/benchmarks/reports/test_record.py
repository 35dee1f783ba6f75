"""Records survive the round trip and are never half-written."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.measure.results import Quantiles, Timing
from benchmarks.measure.sources import ROOT
from benchmarks.measure.workloads import W_FULL, W
from benchmarks.reports.record import read_report, read_reports, write_json, write_reports
from tests.benchmarks.made_up import mixed_report


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "W.json"
    write_reports(path, [mixed_report()])
    assert read_report(path) == mixed_report()
    assert [entry.name for entry in path.parent.iterdir()] == ["W.json"]


def test_a_timing_has_a_line_and_its_figures_six_digits(tmp_path: Path) -> None:
    path = tmp_path / "W.json"
    write_reports(path, [mixed_report()])
    lines = [line for line in path.read_text().splitlines() if '"provider"' in line]
    assert [json.loads(line.strip().strip(","))["provider"] for line in lines] == ["fast", "slow", "ours", "fast"]
    precise = replace(mixed_report().timings[0], quantiles=Quantiles(1.23456789, 1.0, 2.0, 3))
    write_reports(path, [replace(mixed_report(), timings=(precise,))])
    (timing,) = read_report(path).timings
    assert timing.quantiles == Quantiles(1.23457, 1.0, 2.0, 3)


@dataclass(frozen=True)
class Square:
    side: float

    RECORDED: ClassVar = ("area",)

    @property
    def area(self) -> float:
        return self.side**2


def test_any_result_is_written_with_the_figures_it_names(tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    write_json(path, {"format": 1, "machine": {"threads": 2}}, Square(2.0), {"rows": [Square(1.0), Square(3.0)]})
    rows = ['{"side": 1.0, "area": 1.0}', '{"side": 3.0, "area": 9.0}']
    assert path.read_text() == (
        '{\n "format": 1,\n "machine": {"threads": 2},\n "side": 2.0,\n "area": 4.0,\n "rows": [\n'
        f"  {rows[0]},\n  {rows[1]}\n ]\n}}\n"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name)
def test_committed_records_are_as_they_would_be_written_again(path: Path, tmp_path: Path) -> None:
    write_json(tmp_path / path.name, json.loads(path.read_text(encoding="utf-8")))
    assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_several_runs_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "several.json"
    single = replace(mixed_report(), timings=mixed_report().timings[:3])
    solved = Timing("solver", True, W_FULL, "timed", "", Quantiles(1.0, 0.9, 1.1, 3), 1e-7, 0.0, 0.1, 8, solver=True)
    other = replace(mixed_report(), timings=(mixed_report().timings[3], solved))
    write_reports(path, [single, other])
    assert read_reports(path) == (single, other)
    with pytest.raises(ValueError, match="has 2 reports, expected one"):
        read_report(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of benchmark reports"):
        read_reports(path)


def test_the_best_peer_is_neither_ours_nor_a_solver() -> None:
    solver = Timing("solver", True, W, "timed", "", Quantiles(0.1, 0.1, 0.1, 30), solver=True)
    assert replace(mixed_report(), timings=(*mixed_report().timings, solver)).best_peer_ms(W) == 1.5
    assert mixed_report().best_peer_ms(W_FULL) is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "W.json"
    write_json(path, {"figure": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"figure": float("nan")})
    assert json.loads(path.read_text()) == {"figure": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["W.json"]


def test_a_record_from_before_the_read_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "W.json"
    write_reports(path, [mixed_report()])
    content = json.loads(path.read_text())
    del content["reports"][0]["machine"]["read_gb_s"]
    path.write_text(json.dumps(content))
    assert read_report(path).machine.read_gb_s is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 99}', '{"format": 2, "reports": [{"began": "x", "seconds": 1, "machine": {}}]}'],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"foreign\.json is not a file of benchmark reports"):
        read_report(path)
