"""Verdicts, computed from numbers and their intervals by stated rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memformer_lab.reports.curves import FURTHER, Series

Label = Literal["reproduced", "reproduced in part", "not reproduced", "not concluded", "inconclusive at this scale"]

THE_CLAIM = "the claim"
"""The one part of a claim that has no parts."""


RULES = (
    "Every part of a claim has essential rules, and holds if all of them do: reproduced if all parts hold, in part if "
    "some do, not reproduced if none does and one falls, not concluded if all are open. A rule on two curves holds or "
    "falls with the whole interval of their difference, and is open else, or where further training could turn it: "
    f"down to the optimum where that is known, else by {FURTHER:g} times what longer training gains. A rule with a "
    "limit is one on what training finds. Runs below full scale conclude nothing."
)
"""How verdicts follow from rules, for readers of a report."""


@dataclass(frozen=True)
class Check:
    """One rule applied to one run's numbers.

    Attributes:
        text: the rule with the numbers in it.
        passed: whether it holds; None where the numbers leave it open.
        essential: whether a part of the claim stands or falls with it; other checks qualify and decide nothing.
        part: which part of the claim, in a few words.
    """

    text: str
    passed: bool | None
    essential: bool = True
    part: str = THE_CLAIM


@dataclass(frozen=True)
class Verdict:
    """The label, the checks it follows from, and whether each part of the claim holds, None where that is open."""

    label: Label
    checks: tuple[Check, ...]
    parts: dict[str, bool | None]

    @property
    def held(self) -> str:
        """How many of the rules that decide hold."""
        deciding = [check.passed is True for check in self.checks if check.essential]
        return f"{sum(deciding)} of {len(deciding)}"

    def rules(self, passed: bool | None, *, essential: bool) -> list[str]:
        """Those with an outcome, that decide or that do not."""
        return [check.text for check in self.checks if (check.passed, check.essential) == (passed, essential)]


def decide(checks: Sequence[Check], *, conclusive: bool = True) -> Verdict:
    """The verdict on a claim.

    A part of the claim holds if all its essential checks hold, and falls if one of them fails; else it is open.
    "reproduced": all parts hold. "reproduced in part": some do. "not reproduced": none does and one falls. "not
    concluded": all are open. A run that is too short to conclude is "inconclusive at this scale".

    Args:
        checks: at least an essential one.
        conclusive: whether the run was long enough for a label.

    Raises:
        ValueError: if no check is essential.
    """
    parts: dict[str, bool | None] = {}
    for check in checks:
        if check.essential:
            before = parts.get(check.part, True)
            parts[check.part] = False if False in (before, check.passed) else (before and check.passed)
    if not parts:
        raise ValueError(f"checks: expected an essential one, got {len(checks)} checks without")
    found = set(parts.values())
    label: Label
    if not conclusive:
        label = "inconclusive at this scale"
    elif True in found:
        label = "reproduced" if found == {True} else "reproduced in part"
    else:
        label = "not reproduced" if False in found else "not concluded"
    return Verdict(label, tuple(checks), parts)


def at_most(
    name: str, value: float, limit: float, slack: float = 0.0, *, essential: bool = True, part: str = THE_CLAIM
) -> Check:
    """value <= limit + slack, for numbers that are sure. A NaN fails."""
    return Check(f"{name}: {value:.4g} ≤ {limit:.4g}{_slack('+', slack)}", value <= limit + slack, essential, part)


def at_least(
    name: str, value: float, limit: float, slack: float = 0.0, *, essential: bool = True, part: str = THE_CLAIM
) -> Check:
    """value >= limit - slack, for numbers that are sure. A NaN fails."""
    return Check(f"{name}: {value:.4g} ≥ {limit:.4g}{_slack('-', slack)}", value >= limit - slack, essential, part)


def close(
    name: str, value: float, target: float, tolerance: float, *, essential: bool = True, part: str = THE_CLAIM
) -> Check:
    """|value - target| <= tolerance. A NaN fails."""
    holds = math.isfinite(value) and abs(value - target) <= tolerance
    return Check(f"{name}: {value:.4g} = {target:.4g} ± {tolerance:.2g}", holds, essential, part)


def below(
    name: str,
    one: Series,
    other: Series | float,
    x: float,
    slack: float = 0.0,
    *,
    essential: bool = True,
    part: str = THE_CLAIM,
) -> Check:
    """Whether one curve's mean at a place is at most another's, or a limit, plus the slack.

    It holds or fails if the whole interval of the difference does, and is open else. Two curves are compared as kinds
    of models: more training can only lower a curve, so the rule is open where that might turn it (`Series.left`). A
    limit is one on what training finds: there a curve fails unless longer training might lower it far enough. What
    diverged at all seeds is above what did so at none; at some, the rule on two curves is open and that of a limit
    fails.
    """
    if isinstance(other, Series):
        mean, low, high = one.difference(other, x)
        right, ours, theirs = other.mean(x), one.left(x), other.left(x)
        passed = _compared(one.column(x), other.column(x), mean, low, high, slack)
    else:
        (low, high), mean = one.interval(x), one.mean(x) - other
        low, high, right = low - other, high - other, other
        ours, theirs = one.left(x) if one.longer else 0.0, 0.0
        passed = False if _diverged(one.column(x)) else _decided(mean, low, high, slack)
    text = f"{name}: {one.mean(x):.4g} ≤ {right:.4g}{_slack('+', slack)}"
    if math.isfinite(mean):
        text += f", difference {mean:.3g} [{low:.3g}, {high:.3g}]"
    if passed is True and theirs > 0 and not (high if math.isfinite(mean) else mean) + theirs <= slack:
        passed, text = None, f"{text}; the second is not trained to its end, it might come down by {theirs:.3g}"
    elif passed is False and ours > 0 and not low - ours > slack and not _diverged(one.column(x)):
        passed, text = None, f"{text}; the first is not trained to its end, it might come down by {ours:.3g}"
    return Check(text, passed, essential, part)


def all_below(
    name: str,
    one: Series,
    other: Series | float,
    places: Iterable[float],
    slack: float = 0.0,
    *,
    essential: bool = True,
    part: str = THE_CLAIM,
) -> list[Check]:
    """`below` at each place, which takes the place of "{}" in the name."""
    return [below(name.format(f"{x:g}"), one, other, x, slack, essential=essential, part=part) for x in places]


def _compared(
    one: Sequence[float], other: Sequence[float], mean: float, low: float, high: float, slack: float
) -> bool | None:
    """Whether one column of values by seed is below another; open where seeds disagree on whether they diverged."""
    ours, theirs = _diverged(one), _diverged(other)
    if not ours and not theirs:
        return _decided(mean, low, high, slack)
    if not theirs:
        return False if ours == len(one) else None
    # What is no number need not be large.
    return True if not ours and all(value == math.inf for value in other) else None


def _diverged(values: Sequence[float]) -> int:
    """How many are no numbers or endless; -inf is the logarithm of no error at all."""
    return sum(math.isnan(value) or value == math.inf for value in values)


def _decided(mean: float, low: float, high: float, slack: float) -> bool | None:
    if math.isinf(mean):
        return mean < 0
    if high <= slack:
        return True
    return False if low > slack else None


def _slack(sign: str, slack: float) -> str:
    return f" {sign} {slack:.2g}" if slack else ""
