"""The automatic choice against every provider: which workloads, and when a choice counts as bad."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.dispatch import AUTO, TOLERANCE, WORKLOADS, choices
from tests.benchmarks.test_compare import report, timing


def test_the_workloads_cover_every_size_and_kind() -> None:
    found = list(WORKLOADS.values())
    assert len(found) >= 20
    assert [w.name for w in found] == list(WORKLOADS)
    assert {w.dtype for w in found} == {"float32", "float64"}
    assert {w.granularity for w in found} == {"scalar", "feature", "token", "full"}
    assert min(w.d for w in found) == 2
    assert max(w.d for w in found) == 128
    assert {w.batch for w in found} >= {1, 100, 1000, 10_000, 100_000}


@pytest.mark.parametrize(
    ("auto", "spread", "good"), [(9.0, 0.0, True), (10.9, 0.0, True), (11.2, 0.0, False), (11.2, 0.05, True)]
)
def test_a_choice_may_be_slower_by_the_tolerance_and_the_noise(auto: float, spread: float, good: bool) -> None:
    assert TOLERANCE == 0.10
    ours = timing("ours", 10.0, spread=spread)
    (choice,) = choices(report(timing("peer", 30.0), ours, timing(AUTO, auto, spread=spread)))
    assert choice.best == "ours"
    assert choice.ratio == pytest.approx(auto / 10)
    assert choice.good is good


def test_without_the_automatic_choice_there_is_nothing_to_judge() -> None:
    assert list(choices(report(timing("peer", 30.0)))) == []
    assert list(choices(report(timing(AUTO, 30.0)))) == []


def test_the_command_writes_its_record(tmp_path: Path) -> None:
    path = tmp_path / "dispatch.json"
    words = ["dispatch", "--workload", "layers=1 ", "--provider", "Gram, eager", "--quick", "--json", str(path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1), done.output
    assert "auto/best" in done.output
    providers = {timing["provider"] for timing in json.loads(path.read_text(encoding="utf-8"))["timings"]}
    assert providers == {"Gram, eager", "batch-last Gram, eager", AUTO}
    unknown = CliRunner().invoke(app, ["dispatch", "--workload", "no such"])
    assert unknown.exit_code == 2
