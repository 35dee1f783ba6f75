"""A record against a run of today: ratios within one run, and when one of them counts as a fall."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.measure.providers import select
from benchmarks.measure.run import run
from benchmarks.measure.workloads import W
from benchmarks.reports.compare import LARGEST_BATCH, LEAST_BAND, WIDEST_BAND, changes, contenders, missing, sizes
from benchmarks.reports.record import Quantiles, Report, Timing, write_report
from tests.benchmarks.test_record import MACHINE
from tests.benchmarks.test_run import CPU, ONCE


def timing(provider: str, median: float, *, batch: int = 1000, spread: float = 0.01) -> Timing:
    quantiles = Quantiles(median, median * (1 - spread), median * (1 + spread), 9)
    return Timing(provider, not provider.startswith("ours"), W.with_batch(batch), "timed", "", quantiles, 0.0, 0.0)


def report(*timings: Timing) -> Report:
    return Report("2030-01-01T00:00:00+00:00", 1.0, MACHINE, timings)


RECORD = report(timing("slow peer", 30.0), timing("peer", 10.0), timing("ours", 1.0))


@pytest.mark.parametrize(
    ("now", "verdict"), [(1.0, "same"), (1.09, "same"), (1.2, "slower"), (0.95, "same"), (0.8, "faster")]
)
def test_a_ratio_falls_beyond_the_band_or_not(now: float, verdict: str) -> None:
    (change,) = changes(RECORD, report(timing("peer", 10.0), timing("ours", now)))
    assert (change.provider, change.peer) == ("ours", "peer")
    assert change.recorded == pytest.approx(10.0)
    assert change.measured == pytest.approx(10.0 / now)
    assert change.band == LEAST_BAND
    assert change.verdict == verdict


def test_a_machine_twice_as_slow_changes_no_ratio() -> None:
    (change,) = changes(RECORD, report(timing("peer", 20.0), timing("ours", 2.0)))
    assert change.verdict == "same"


@pytest.mark.parametrize(("spread", "band"), [(0.001, LEAST_BAND), (0.1, 0.1 * 2**0.5), (2.0, WIDEST_BAND)])
def test_the_band_follows_the_spread_of_all_four_timings(spread: float, band: float) -> None:
    now = report(timing("peer", 10.0, spread=spread), timing("ours", 1.0, spread=spread))
    (change,) = changes(RECORD, now)
    assert change.band == pytest.approx(band, rel=0.01)


def test_the_peer_is_the_records_fastest_that_ran_again() -> None:
    (change,) = changes(RECORD, report(timing("slow peer", 30.0), timing("new peer", 0.1), timing("ours", 1.0)))
    assert (change.peer, change.recorded) == ("slow peer", pytest.approx(30.0))
    assert list(changes(RECORD, report(timing("ours", 1.0)))) == []
    assert contenders(RECORD, frozenset({"slow peer", "ours"})) == {"slow peer", "ours"}
    assert contenders(RECORD, frozenset({"slow peer", "peer", "ours"})) == {"peer", "ours"}


def test_large_sizes_are_left_out() -> None:
    large = report(*RECORD.timings, timing("ours", 9.0, batch=LARGEST_BATCH + 1))
    assert sizes(large) == (W.with_batch(1000),)


def test_what_no_longer_runs_is_named() -> None:
    failed = replace(timing("ours", 1.0), status="failed", reason="it broke", quantiles=None)
    assert missing(RECORD, RECORD) == []
    assert missing(RECORD, report(timing("peer", 10.0), failed)) == ["W, B = 1,000: ours was not timed: it broke"]
    assert missing(RECORD, report()) == ["W, B = 1,000: ours was not timed: it did not run"]


@pytest.mark.slow
def test_the_command_fails_where_a_ratio_fell(tmp_path: Path) -> None:
    providers = select(["Gram, eager", "(torch)"])
    found = run([W.with_batch(1000)], providers, CPU, quick=True, policy=ONCE)
    honest, boastful = tmp_path / "honest.json", tmp_path / "boastful.json"
    ours = [t for t in found.timings if not t.peer]
    write_report(honest, replace(found, timings=tuple(_scaled(t, 1e3) if t in ours else t for t in found.timings)))
    write_report(boastful, replace(found, timings=tuple(_scaled(t, 1e-3) if t in ours else t for t in found.timings)))
    runner = CliRunner()
    good = runner.invoke(app, ["compare", str(honest), "--quick"])
    assert good.exit_code == 0, good.output
    assert "faster" in good.output
    bad = runner.invoke(app, ["compare", str(boastful), "--quick"])
    assert bad.exit_code == 1
    assert "slower" in bad.output
    assert "memformer_kernels (torch)" in bad.output
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    assert runner.invoke(app, ["compare", str(broken)]).exit_code == 2


def _scaled(found: Timing, factor: float) -> Timing:
    assert found.quantiles is not None
    median = found.quantiles.median_ms * factor
    return replace(found, quantiles=Quantiles(median, median, median, 1))
