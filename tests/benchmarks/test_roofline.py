"""The roofline's points: every kernel is there, its limits are right, and the picture is drawn from them."""

from pathlib import Path

import pytest

from benchmarks.measure import roofline
from benchmarks.measure.dispatch import AUTO, choices
from benchmarks.measure.roofline import Point
from benchmarks.measure.workloads import DIRECTIONS
from benchmarks.reports.pictures import dispatch as draw_dispatch
from benchmarks.reports.pictures import roofline as draw
from tests.benchmarks.test_compare import report, timing
from tests.benchmarks.test_record import MACHINE


def test_a_points_limit_is_its_higher_floor() -> None:
    """By hand, at 44 GB/s read, 33 GB/s copied and 150 GFLOP/s."""
    reads = Point("a", "cpu", "", bytes=44_000_000, multiply_adds=30_000_000, moves="read", ms=2.0)
    assert reads.intensity == pytest.approx(60 / 44)
    assert reads.gflop_s == pytest.approx(30.0)
    assert reads.limit_ms(MACHINE) == pytest.approx(1.0)
    copies = Point("b", "cpu", "", bytes=33_000_000, multiply_adds=300_000_000, moves="copy", ms=8.0)
    assert copies.limit_ms(MACHINE) == pytest.approx(4.0)


def test_every_regime_and_direction_has_a_kernel() -> None:
    found = roofline.networks(100)
    native = [w for backend, w in found if backend == "cpu"]
    assert {w.direction for w in native} == set(DIRECTIONS)
    assert {(w.structure, w.token_axis) for w in native} == {
        ("response-only", False),
        ("response-only", True),
        ("block", False),
        ("block", True),
    }
    assert len({roofline.kernel_of(w) + str(w.d) for _, w in found}) == len(found)


def test_the_functions_beside_networks_are_right_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    names = []
    for piece in roofline.pieces(50, 2):
        point = roofline._timed(piece, 1)
        assert point.ms > 0
        names.append(point.kernel)
        with pytest.raises(RuntimeError, match=f"{piece.kernel} is wrong"):
            roofline._timed(piece._replace(call=lambda i, call=piece.call: [2 * x for x in call(i)]), 1)
    assert names == ["context_gram", "memformer_layer", "lfom_solve", "register_update", "linear_attention"]


def test_records_and_pictures() -> None:
    points = (
        Point("a", "cpu", "d = 5", 44_000_000, 30_000_000, "read", 2.0),
        Point("b", "torch", "d = 64", 33_000_000, 300_000_000, "copy", 8.0),
    )
    assert roofline.from_record(roofline.as_record(MACHINE, points)) == (MACHINE, points)
    with pytest.raises(ValueError, match="expected 1"):
        roofline.from_record({})
    assert draw(MACHINE, points).startswith(b"\x89PNG")
    found = list(choices([report(timing("peer", 30.0), timing(AUTO, 10.0))]))
    assert draw_dispatch(MACHINE, found).startswith(b"\x89PNG")
