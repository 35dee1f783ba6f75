from __future__ import annotations

import json
import math

import pytest

from memformer_lab.reports.curves import interval, series
from memformer_lab.reports.results import Matrix, Panel, Results


def _results() -> Results:
    panel = Panel(
        "p",
        "Title",
        "depth",
        "ln error",
        (series("a", (1, 2), [[1.0, math.inf], [3.0, math.nan]]), series("b", (1,), [2.5], reference=True)),
        log_x=True,
        categories=("one", "two", "three"),
    )
    matrix = Matrix("m", "Matrix", ("r",), ("c", "d"), ((0.5, math.nan),))
    return Results((panel,), {"n": 3.0, "far": -math.inf}, (matrix,), ("a note",))


def test_plain_values_are_strict_json_and_read_back_exactly() -> None:
    results = _results()
    text = json.dumps(results.to_plain(), allow_nan=False)
    again = Results.from_plain(json.loads(text))
    assert json.dumps(again.to_plain(), allow_nan=False) == text
    assert again["p"]["b"] == results["p"]["b"]
    assert again["p"]["a"].values[0] == (1.0, math.inf)
    assert math.isnan(again["p"]["a"].values[1][1])
    assert again.numbers["far"] == -math.inf
    assert again.notes == ("a note",)


def test_means_and_spreads_are_over_seeds() -> None:
    curve = series("a", (1, 2), [[1.0, 5.0], [3.0, 5.0]])
    assert curve.mean(1) == 2.0
    assert curve.spread(1) == pytest.approx(math.sqrt(2))
    assert curve.spread(2) == 0.0
    assert series("one", (1,), [4.0]).spread(1) == 0.0
    assert _results()["p"]["a"].mean(2) != _results()["p"]["a"].mean(2)
    assert math.isnan(_results()["p"]["a"].spread(2))


def test_unknown_keys_are_named() -> None:
    with pytest.raises(KeyError, match=r"panels \['p'\], got 'q'"):
        _results()["q"]
    with pytest.raises(KeyError, match=r"\['a', 'b'\], got 'c'"):
        _results()["p"]["c"]
    with pytest.raises(KeyError, match="got 7"):
        _results()["p"]["a"].mean(7)


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 2 numbers, got rows of \\[1\\]"):
        series("a", (1, 2), [[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="expected at least one row, got none"):
        series("a", (1, 2), [])
    for wrong in ({"sampling": (0.1,)}, {"optimum": (0.1,)}, {"longer": ((0.1,),)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of 'a': expected rows of 2 numbers"):
            series("a", (1, 2), (1.0, 2.0), **wrong)


def test_what_is_left_to_train() -> None:
    nan = math.nan
    known = series("a", (1, 2, 3), [[1.0, 2.0, 3.0]], optimum=(0.99, 1.5, nan), longer=[(nan, nan, 2.0)])
    assert [known.excess(x) for x in (1, 2, 3)] == [pytest.approx(0.01), 0.5, None]
    assert [known.gain(x) for x in (1, 2, 3)] == [None, None, 1.0]
    assert [known.converged(x) for x in (1, 2, 3)] == [True, False, False]
    # How seeds spread is how training went: it excuses nothing where the optimum is known.
    assert series("a", (1,), [[1.0], [1.1]], optimum=(1.0,)).converged(1) is False
    assert series("a", (1,), [[1.0], [4.0]], optimum=(1.0,)).converged(1) is False  # an interval that settles nothing
    # Longer training is of the first seed, and compared with it, or with the mean where that is further.
    assert series("a", (1,), [[1.0], [0.4]], longer=[[0.6]]).gain(1) == pytest.approx(0.4)
    assert series("a", (1,), [[1.0], [2.0]], longer=[[1.0]]).gain(1) == pytest.approx(0.5)
    assert series("a", (1,), (1.0,)).converged(1) is None


def test_the_interval_covers_the_mean_and_shrinks() -> None:
    low, high = interval([0.0, 1.0, 2.0, 3.0, 4.0])
    assert 0 < low < 2 < high < 4
    narrow = interval([0.0, 1.0, 2.0, 3.0, 4.0] * 20)
    assert narrow[1] - narrow[0] < 0.4 * (high - low)
    assert interval([1.0, 2.0]) == interval([1.0, 2.0])
    assert math.isnan(interval([1.0, math.inf])[0])
