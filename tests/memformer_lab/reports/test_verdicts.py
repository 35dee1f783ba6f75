from __future__ import annotations

import math

import pytest

from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.verdicts import Check, at_least, at_most, below, close, decide


def _part(name: str, passed: bool | None) -> Check:
    return Check(name, passed, part=name)


@pytest.mark.parametrize(
    ("parts", "label"),
    [
        ([True], "reproduced"),
        ([True, True], "reproduced"),
        ([True, False], "reproduced in part"),
        ([True, None], "reproduced in part"),
        ([False], "not reproduced"),
        ([False, None], "not reproduced"),
        ([None], "not concluded"),
    ],
)
def test_a_label_follows_from_the_parts_of_a_claim(parts: list[bool | None], label: str) -> None:
    checks = [_part(f"part {index}", passed) for index, passed in enumerate(parts)]
    assert decide(checks).label == label
    # What is not essential decides nothing, and a short run labels nothing.
    assert decide([*checks, Check("hint", False, essential=False)]).label == label
    assert decide(checks, conclusive=False).label == "inconclusive at this scale"


def test_a_part_holds_if_all_its_essential_rules_do() -> None:
    good, bad, undecided = Check("good", True), Check("bad", False), Check("undecided", None)
    assert decide([good, bad, undecided]).parts == {"the claim": False}
    assert decide([undecided, good]).parts == {"the claim": None}
    assert decide([good, good]).parts == {"the claim": True}
    verdict = decide([good, bad, undecided])
    assert (verdict.rules(False, essential=True), verdict.rules(None, essential=True)) == (["bad"], ["undecided"])
    assert decide([good, bad, Check("hint", True, essential=False)]).held == "1 of 2"


def test_a_verdict_needs_an_essential_check() -> None:
    with pytest.raises(ValueError, match="expected an essential one, got 1 checks"):
        decide([Check("hint", True, essential=False)])


def _curve(*values: float, **more: tuple[float, ...] | tuple[tuple[float, ...], ...]) -> Series:
    """One place, a value a seed."""
    return series("curve", (1,), [[value] for value in values], **more)


@pytest.mark.parametrize(
    ("one", "other", "passed"),
    [
        (_curve(0.0, 0.1, -0.1), _curve(1.0, 1.1, 0.9), True),
        (_curve(1.0, 1.1, 0.9), _curve(0.0, 0.1, -0.1), False),
        (_curve(0.0, 0.1, -0.1), _curve(0.01, 0.0, 0.02), None),
        # Seeds that share their tasks are compared in pairs.
        (_curve(0.0, 5.0, 9.0), _curve(0.1, 5.1, 9.1), True),
        (_curve(0.0), _curve(0.1), True),
        (_curve(0.0, sampling=(0.2,)), _curve(0.1), None),
        (_curve(math.inf), _curve(0.1), False),
        (_curve(0.1), _curve(math.inf), True),
        (_curve(math.nan), _curve(0.1), False),
        (_curve(0.1), _curve(math.nan), None),
        (_curve(-math.inf), _curve(0.1), True),
        (_curve(math.inf), _curve(math.inf), None),
        # Where some seeds diverged nothing is known.
        (_curve(1.5, 1.5), _curve(1.0, math.inf), None),
        (_curve(1.0, math.inf), _curve(1.5, 1.5), None),
        (_curve(0.0, 0.1, sampling=(0.2,)), _curve(0.1, 0.2), None),
        # More training can only lower a curve.
        (_curve(0.0), _curve(1.0, optimum=(-0.5,)), None),
        (_curve(0.0), _curve(1.0, optimum=(0.5,)), True),
        (_curve(0.0), _curve(1.0, optimum=(0.99,)), True),
        (_curve(0.0), _curve(1.0, longer=((0.7,),)), None),
        (_curve(0.0), _curve(1.0, longer=((0.9,),)), True),
        (_curve(-math.inf), _curve(1.0, longer=((0.7,),)), True),
        (_curve(0.0), _curve(1.0, longer=((1.1,), (0.99,))), True),
        (_curve(1.0, optimum=(-0.5,)), _curve(0.0), None),
        (_curve(1.0, optimum=(0.5,)), _curve(0.0), False),
        (_curve(1.0, longer=((0.7,),)), _curve(0.0), None),
        (_curve(1.0, longer=((0.9,),)), _curve(0.0), False),
        (_curve(1.0, optimum=(1.0,)), _curve(0.0), False),
        (_curve(0.1), _curve(math.inf, optimum=(0.0,)), None),
        (_curve(math.inf, optimum=(0.5,)), _curve(0.0), False),
        (_curve(math.nan, longer=((0.5,),)), _curve(0.0), False),
        (_curve(0.0), 0.1, True),
        (_curve(0.2), 0.1, False),
        (_curve(0.2, sampling=(0.2,)), 0.1, None),
        # A limit is one on what training finds.
        (_curve(0.2, optimum=(0.0,)), 0.1, False),
        (_curve(0.2, longer=((0.05,),)), 0.1, None),
        (_curve(0.7, longer=((0.6,),)), 0.1, False),
        (_curve(0.2, longer=((0.2,),)), 0.1, False),
        (_curve(0.0, math.inf), 0.1, False),
        (_curve(math.nan), 0.1, False),
    ],
)
def test_a_curve_is_below_another_where_the_interval_and_the_training_say_so(
    one: Series, other: Series | float, passed: bool | None
) -> None:
    check = below("x", one, other, 1.0)
    assert check.passed is passed, check.text
    assert check.text.startswith("x: ")


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (at_most("x", 1.0, 1.0), True),
        (at_most("x", 1.1, 1.0), False),
        (at_most("x", 1.1, 1.0, 0.2), True),
        (at_most("x", -math.inf, 1.0), True),
        (at_most("x", math.nan, 1.0), False),
        (at_least("x", 1.0, 1.0), True),
        (at_least("x", 0.9, 1.0), False),
        (at_least("x", 0.9, 1.0, 0.2), True),
        (at_least("x", math.nan, 1.0), False),
        (close("x", 1.04, 1.0, 0.05), True),
        (close("x", 1.06, 1.0, 0.05), False),
        (close("x", math.nan, 1.0, 0.05), False),
        (close("x", math.inf, math.inf, 0.05), False),
    ],
)
def test_rules(check: Check, holds: bool) -> None:
    assert check.passed is holds
    assert check.text.startswith("x: ")
    assert check.essential


def test_rules_show_their_numbers() -> None:
    assert at_most("error", 1.25, 1.0, 0.1).text == "error: 1.25 ≤ 1 + 0.1"
    assert at_least("share", 0.5, 1.0).text == "share: 0.5 ≥ 1"
    assert close("CGD", 0.6872, 0.69, 0.05, essential=False).text == "CGD: 0.6872 = 0.69 ± 0.05"
