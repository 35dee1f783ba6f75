"""Verdicts, computed from numbers by stated rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memformer_lab.reports.results import Series

_FAILS = "does not hold: "

Label = Literal["reproduced", "reproduced with a caveat", "not reproduced"]


@dataclass(frozen=True)
class Check:
    """One rule applied to one run's numbers.

    Attributes:
        text: the rule with the numbers in it.
        passed: whether it holds.
        essential: whether the claim stands or falls with it; other checks only add caveats.
    """

    text: str
    passed: bool
    essential: bool = True


@dataclass(frozen=True)
class Verdict:
    """The label, the checks it follows from, and what qualifies it."""

    label: Label
    checks: tuple[Check, ...]
    caveats: tuple[str, ...]

    @property
    def failed(self) -> list[str]:
        """The rules that do not hold."""
        return [check.text for check in self.checks if not check.passed]

    @property
    def remarks(self) -> list[str]:
        """The caveats that are not rules that do not hold."""
        return [caveat for caveat in self.caveats if not caveat.startswith(_FAILS)]


def decide(checks: Sequence[Check], caveats: Sequence[str] = ()) -> Verdict:
    """Not reproduced if an essential check fails; with a caveat if another fails or a caveat is given; else reproduced.

    Raises:
        ValueError: if no check is essential.
    """
    if not any(check.essential for check in checks):
        raise ValueError(f"checks: expected an essential one, got {len(checks)} checks without")
    failed = [check for check in checks if not check.passed]
    qualified = (*(f"{_FAILS}{check.text}" for check in failed if not check.essential), *caveats)
    label: Label
    if any(check.essential for check in failed):
        label = "not reproduced"
    else:
        label = "reproduced with a caveat" if qualified else "reproduced"
    return Verdict(label, tuple(checks), qualified)


def at_most(name: str, value: float, limit: float, slack: float = 0.0, *, essential: bool = True) -> Check:
    """value <= limit + slack. A NaN fails."""
    return Check(f"{name}: {value:.4g} ≤ {limit:.4g}{_slack('+', slack)}", value <= limit + slack, essential)


def all_at_most(
    name: str, one: Series, other: Series, places: Iterable[float], slack: float = 0.0, *, essential: bool = True
) -> list[Check]:
    """`at_most` for the means of two curves at each place, which takes the place of "{}" in the name."""
    return [at_most(name.format(f"{x:g}"), one.mean(x), other.mean(x), slack, essential=essential) for x in places]


def at_least(name: str, value: float, limit: float, slack: float = 0.0, *, essential: bool = True) -> Check:
    """value >= limit - slack. A NaN fails."""
    return Check(f"{name}: {value:.4g} ≥ {limit:.4g}{_slack('-', slack)}", value >= limit - slack, essential)


def close(name: str, value: float, target: float, tolerance: float, *, essential: bool = True) -> Check:
    """|value - target| <= tolerance. A NaN fails."""
    holds = math.isfinite(value) and abs(value - target) <= tolerance
    return Check(f"{name}: {value:.4g} = {target:.4g} ± {tolerance:.2g}", holds, essential)


def _slack(sign: str, slack: float) -> str:
    return f" {sign} {slack:.2g}" if slack else ""
