"""The table's figures by hand."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.measure.workloads import W
from benchmarks.reports.record import Quantiles, Report, Timing
from benchmarks.reports.table import floors_ms, memory_floor_ms, operations_floor_ms, print_report
from tests.benchmarks.test_record import MACHINE, report


def printed(value: Report) -> str:
    text = StringIO()
    print_report(value, Console(width=100, file=text))
    return text.getvalue()


def test_floors() -> None:
    machine = replace(MACHINE, copy_gb_s=33.0, fma_gflop_s=202.0)
    assert memory_floor_ms(W, machine.copy_gb_s) == pytest.approx((508 * 100_000 + 1568) / 33e9 * 1e3)
    assert operations_floor_ms(W, machine) == pytest.approx(1.0)
    assert floors_ms(W, machine) == {
        "bytes at copy bandwidth": memory_floor_ms(W, 33.0),
        "bytes at read bandwidth": memory_floor_ms(W, 44.0),
        "operations": operations_floor_ms(W, machine),
    }
    assert "bytes at read bandwidth" not in floors_ms(W, replace(machine, read_gb_s=None))


def test_ratios_are_to_the_best_peer_and_rows_go_fastest_first() -> None:
    lines = printed(report()).splitlines()
    rows = [line.split() for line in lines if line.split()[:1] in (["ours"], ["fast"], ["slow"])]
    assert [row[0] for row in rows] == ["ours", "fast", "slow"]
    assert [row[-3] for row in rows] == ["3.00", "1.00", "0.25"]
    assert rows[0][1:4] == ["0.5", "(0.4..0.6)", "5"]
    assert float(rows[0][-2]) == pytest.approx(100 * 1.539 / 0.5, rel=1e-2)
    assert float(rows[0][-1]) == pytest.approx(100 * 1.539 / 0.5 * 33 / 44, rel=1e-2)


def test_a_record_without_a_read_limit_is_shown_without_it() -> None:
    text = printed(replace(report(), machine=replace(MACHINE, read_gb_s=None)))
    assert "read bandwidth" not in text
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["ours"])
    assert row[-2] == "3.00"


def test_a_table_fits_eighty_columns() -> None:
    text = StringIO()
    long = tuple(
        replace(timing, provider="batch-last tokens, compiled", quantiles=Quantiles(7112.0, 7000.0, 8200.0, 3))
        for timing in report().timings
    )
    print_report(replace(report(), timings=long), Console(width=80, file=text))
    assert "…" not in text.getvalue()
    assert "batch-last tokens, compiled" in text.getvalue()


def test_what_was_not_timed_is_listed_with_its_reason() -> None:
    assert "W_full, B = 100,000, unsupported, token axis: fast" in printed(report())


def test_without_a_peer_there_is_no_ratio() -> None:
    timing = Timing("ours", False, W, "timed", "", Quantiles(2.0, 1.0, 3.0, 5))
    (row,) = (line.split() for line in printed(replace(report(), timings=(timing,))).splitlines() if "ours" in line)
    assert row[:4] == ["ours", "2", "(1..3)", "20"]
    assert len(row) == 6
