"""The automatic choice against every provider: which workloads, and when a choice counts as bad."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.measure.dispatch import AUTO, CATALOGUE, TOLERANCE, choices
from benchmarks.measure.results import Quantiles
from benchmarks.measure.workloads import DIRECTIONS
from benchmarks.readme import RESULTS
from benchmarks.reports.record import read_reports
from memformer_kernels.nn import RULES, STRUCTURES
from tests.benchmarks.made_up import report, timing


def test_the_workloads_cover_every_size_and_kind() -> None:
    found = list(CATALOGUE.values())
    assert len(found) >= 20
    assert [w.name for w in found] == list(CATALOGUE)
    assert {w.dtype for w in found} == {"float32", "float64", "bfloat16"}
    assert {w.granularity for w in found} == {"scalar", "feature", "token", "full"}
    assert {w.direction for w in found} == set(DIRECTIONS)
    assert {w.structure for w in found} == set(STRUCTURES)
    assert {w.rule for w in found} == set(RULES)
    assert {w.width for w in found} >= {8, 256}
    assert {w.n for w in found} >= {7, 1_000_000}
    assert {w.layers for w in found} >= {1, 64}
    assert {w.batch for w in found} >= {1, 100, 1000, 10_000, 100_000}


@pytest.mark.parametrize(
    ("auto", "spread", "good"), [(9.0, 0.0, True), (10.9, 0.0, True), (11.2, 0.0, False), (11.2, 0.05, True)]
)
def test_a_choice_may_be_slower_by_the_tolerance_and_the_noise(auto: float, spread: float, good: bool) -> None:
    assert TOLERANCE == 0.10
    ours = timing("ours", 10.0, spread=spread)
    (choice,) = choices([report(timing("peer", 30.0), ours, timing(AUTO, auto, spread=spread))])
    assert choice.best == "ours"
    assert choice.ratio == pytest.approx(auto / 10)
    assert choice.good is good


def test_passes_that_scatter_excuse_no_median() -> None:
    """One of 400 passes may take twice or half the time of another; their median is known to a few percent."""
    ours, peer = (
        replace(timing(name, 10.0), quantiles=Quantiles(median, 0.5 * median, 1.5 * median, 400))
        for name, median in ((AUTO, 14.5), ("peer", 10.0))
    )
    (choice,) = choices([report(ours, peer)])
    assert choice.noise < 0.1
    assert not choice.good


def test_the_record_counts_no_workload_as_good_on_which_a_peer_is_a_tenth_faster() -> None:
    found = list(choices(read_reports(RESULTS / "dispatch-cpu.json")))
    slower = [one.workload.name for one in found if one.ratio > 1.2]
    assert slower
    assert not any(one.good for one in found if one.workload.name in slower)


def test_without_the_automatic_choice_there_is_nothing_to_judge() -> None:
    assert list(choices([report(timing("peer", 30.0))])) == []
    assert list(choices([report(timing(AUTO, 30.0))])) == []


@pytest.mark.slow
def test_the_command_writes_its_record(tmp_path: Path) -> None:
    path, picture = tmp_path / "dispatch.json", tmp_path / "dispatch.png"
    words = [
        "dispatch",
        "--workload",
        "layers=1 ",
        "--provider",
        "Gram, eager",
        "--quick",
        "--json",
        str(path),
        "--figure",
        str(picture),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1), done.output
    assert "auto/best" in done.output
    (kept,) = read_reports(path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {timing.provider for timing in kept.timings} == {"Gram, eager", "batch-last Gram, eager", AUTO}
    assert CliRunner().invoke(app, [*words, "--workload", "layers=32"]).exit_code in (0, 1)
    first, second = read_reports(path)
    assert first == kept
    assert second.timings[0].workload.layers == 32
    unknown = CliRunner().invoke(app, ["dispatch", "--workload", "no such"])
    assert unknown.exit_code == 2
