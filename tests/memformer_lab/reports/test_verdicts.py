from __future__ import annotations

import math

import pytest

from memformer_lab.reports.verdicts import Check, at_least, at_most, close, decide


def test_a_verdict_follows_from_its_checks() -> None:
    good, bad = Check("good", True), Check("bad", False)
    hint = Check("hint", False, essential=False)
    assert decide([good]).label == "reproduced"
    assert decide([good, Check("also", True, essential=False)]).label == "reproduced"
    assert decide([good, hint]).label == "reproduced with a caveat"
    assert decide([good], ["short"]).label == "reproduced with a caveat"
    assert decide([good, bad]).label == "not reproduced"
    assert decide([bad, hint], ["short"]).label == "not reproduced"


def test_caveats_say_what_does_not_hold() -> None:
    verdict = decide([Check("good", True), Check("a rule", False, essential=False)], ["quick scale"])
    assert verdict.caveats == ("does not hold: a rule", "quick scale")


def test_a_verdict_needs_an_essential_check() -> None:
    with pytest.raises(ValueError, match="expected an essential one, got 1 checks"):
        decide([Check("hint", True, essential=False)])


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
