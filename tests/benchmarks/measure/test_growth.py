"""The axes of growth, what is read off a report, and the picture."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.measure.growth import AXES, CONTEXT_TOKENS, PEERS, Axis, Point, held, median, points
from benchmarks.measure.providers import select
from benchmarks.measure.results import Quantiles, Report, Timing
from benchmarks.measure.workloads import W
from benchmarks.readme import RESULTS
from benchmarks.reports.figures import growth as draw
from benchmarks.reports.record import read_report
from benchmarks.reports.tables import growth_table
from tests.benchmarks.made_up import MACHINE
from tests.pages import ROOT, one_line, text_of

LAYERS = next(axis for axis in AXES if axis.field == "layers")


def timing(axis: Axis, value: int, provider: str, peer: bool, median: float | None) -> Timing:
    workload = next(w for w in axis.workloads() if getattr(w, axis.field) == value)
    if median is None:
        return Timing(provider, peer, workload, "unsupported", "no")
    return Timing(provider, peer, workload, "timed", "", Quantiles(median, 0.9 * median, 1.1 * median, 5), 0.0, 0.0)


REPORT = Report(
    "2030-01-01T00:00:00+00:00",
    1.0,
    MACHINE,
    (
        timing(LAYERS, 4, "a", True, 9.0),
        timing(LAYERS, 1, "a", True, 5.0),
        timing(LAYERS, 1, "b", True, 4.0),
        timing(LAYERS, 1, "ours", False, 1.0),
        timing(LAYERS, 4, "b", True, None),
        timing(LAYERS, 4, "ours", False, None),
    ),
)


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.field)
def test_an_axis_changes_one_size_of_workload_w(axis: Axis) -> None:
    workloads = axis.workloads()
    assert [getattr(workload, axis.field) for workload in workloads] == list(axis.values)
    for workload in workloads:
        as_in_w = {axis.field: getattr(W, axis.field), "name": "W", "batch": W.batch}
        assert replace(workload, **as_in_w) == W
    quick = axis.workloads(quick=True)
    assert all(w.batch * w.tokens <= 3_000_000 for w in quick)
    assert all(w.batch >= 1 for w in quick)


def test_the_ranges_reach_what_is_claimed() -> None:
    found = {axis.field: (axis.values[0], axis.values[-1]) for axis in AXES}
    assert found == {"batch": (1, 10**7), "n": (8, 10**6), "layers": (1, 64), "d": (2, 255)}
    context = next(axis for axis in AXES if axis.field == "n")
    assert {workload.batch * workload.n for workload in context.workloads()} == {CONTEXT_TOKENS}
    assert select(list(PEERS))


def test_a_point_is_ours_and_the_fastest_peer() -> None:
    first, second = points(LAYERS, REPORT)
    assert (first.value, second.value) == (1, 4)
    assert first.ours is not None
    assert first.ours.provider == "ours"
    assert first.peer is not None
    assert first.peer.provider == "b"
    assert second.ours is None
    assert second.peer is not None
    assert second.peer.provider == "a"
    assert points(AXES[0], REPORT) == ()


def test_what_is_held_is_read_off_the_points() -> None:
    def words(field: str, quick: bool) -> str:
        axis = next(axis for axis in AXES if axis.field == field)
        return held(axis, [Point(getattr(w, field), w, None, None) for w in axis.workloads(quick)])

    assert words("layers", False) == "B = 10,000, n = 20, d = 5"
    assert words("layers", True) == "B = 100, n = 20, d = 5"
    assert words("n", False) == "B n = 2,000,000, L = 4, d = 5"
    assert words("batch", False) == "n = 20, L = 4, d = 5"


def test_the_table_shows_the_ratio() -> None:
    text = StringIO()
    Console(width=80, file=text).print(growth_table(REPORT))
    rows = [line.split() for line in text.getvalue().splitlines() if "layers" in line]
    assert rows == [["layers", "L", "=", "1", "1", "100", "4", "4", "b"], ["layers", "L", "=", "4", "9", "a"]]


@pytest.mark.parametrize("read_gb_s", [44.0, None])
def test_the_picture_is_drawn_from_whatever_was_measured(read_gb_s: float | None) -> None:
    report = replace(REPORT, machine=replace(MACHINE, read_gb_s=read_gb_s))
    batch = AXES[0]
    more = (timing(batch, 1, "ours", False, 1.0), timing(batch, 1000, "ours", False, 2.0))
    one, two = draw(report), draw(replace(report, timings=(*report.timings, *more)))
    assert one.startswith(b"\x89PNG")
    assert two.startswith(b"\x89PNG")
    assert len(two) > len(one)


def test_what_the_page_says_of_long_contexts_is_what_the_record_and_the_code_say() -> None:
    """Throughput along n falls off where tasks, or a context's pieces, are too few for more than one part."""
    axis = next(axis for axis in AXES if axis.field == "n")
    found = {point.value: point for point in points(axis, read_report(RESULTS / "growth-cpu.json"))}
    rates = {n: axis.amount(point.workload) / median(point.ours) for n, point in found.items() if point.ours}
    assert rates[100_000] < rates[10_000] < min(rates[2000], rates[1_000_000])
    native = ROOT / "csrc" / "cpu" / "tasks"
    assert "part_tasks = 16 * Lanes<T>::width;" in (native / "parts.h").read_text()
    assert "piece_rows = 32 * core::gram_block;" in (native / "long_contexts.h").read_text()
    assert "gram_block = 32;" in (ROOT / "csrc" / "core" / "gram.h").read_text()
    assert [found[n].workload.batch for n in (10_000, 100_000)] == [200, 20]
    said = one_line(text_of("docs/performance.md"))
    assert f"B n = {CONTEXT_TOKENS:,}" in said
    assert f"16 vectors of tasks at a time ({16 * 16} in float32 with AVX-512)" in said
    assert f"pieces of {32 * 32:,} examples" in said
    assert f"so that 200 tasks, or a context's {100_000 // 1024} pieces, kept one of two cores busy" in said
    assert f"at n = 1,000,000 it has {1_000_000 // 1024} pieces" in said
