from __future__ import annotations

import json
import math

import pytest

from memformer_lab.reports.results import Matrix, Panel, Results, bootstrap, series


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
    with pytest.raises(ValueError, match="rows of 2 numbers, got rows of \\[1, 2\\]"):
        series("a", (1, 2), [[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="got rows of \\[\\]"):
        series("a", (1, 2), [])


def test_the_bootstrap_covers_the_mean_and_shrinks() -> None:
    low, high = bootstrap([0.0, 1.0, 2.0, 3.0, 4.0])
    assert 0 < low < 2 < high < 4
    narrow = bootstrap([0.0, 1.0, 2.0, 3.0, 4.0] * 20)
    assert narrow[1] - narrow[0] < 0.4 * (high - low)
    assert bootstrap([1.0, 2.0]) == bootstrap([1.0, 2.0])
    assert math.isnan(bootstrap([1.0, math.inf])[0])
