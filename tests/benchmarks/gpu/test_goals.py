"""The goals: limits by bytes and by products, and a row of the committed sheet for every one."""

import io

import pytest
from rich.console import Console

from benchmarks.gpu.floors import row_of, sheet
from benchmarks.gpu.goals import GOALS, TF32_PRODUCTS_S, Goal, print_goals
from tests.benchmarks.gpu.virtual_records import counted, use
from virtual_gpu.hardware import H200

ROW = row_of(counted(use("only", 1.0, 60_000, issue=0.5), floor=430))


def test_the_limit_is_of_bytes_or_of_three_products_in_tf32() -> None:
    assert H200.copied == 4.3e12
    assert Goal("cuda", "W", share=0.5).limit_ns(ROW) == pytest.approx(0.1)
    assert pytest.approx(1024 * 132 * H200.clock) == TF32_PRODUCTS_S
    few, many = (Goal("cuda", "W", share=0.5, products=products) for products in (1, 10**6))
    assert few.limit_ns(ROW) == pytest.approx(0.1)
    assert many.limit_ns(ROW) == pytest.approx(3e15 / TF32_PRODUCTS_S)


def test_what_is_reached_of_a_limit_and_of_a_rate() -> None:
    assert Goal("cuda", "W", share=0.5).reached(ROW) == pytest.approx(0.1 / ROW.predicted_ns)
    rate = Goal("cuda", "W", rate=2e9 / ROW.predicted_ns)
    assert (rate.reached(ROW), rate.asked) == (pytest.approx(0.5), 1.0)


def test_every_goal_has_a_row_of_the_committed_sheet_and_is_shown() -> None:
    rows = sheet()
    console = Console(width=140, record=True, file=io.StringIO())
    print_goals(rows, console)
    shown = console.export_text()
    assert "worked out, not measured" in shown
    for goal in GOALS:
        assert (goal.backend, goal.case) in {(row.backend, row.name) for row in rows}
        assert f"{goal.backend}, {goal.case}" in shown
