"""Curves of an experiment: values by place and seed, how sure they are, and whether their training came to its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
"""Probability of the intervals."""

RESOLUTION = 0.02
"""A trained row whose excess over its optimum, or whose gain by longer training, is at most this has converged."""

COARSEST = 0.1
"""Where the interval is wider than `RESOLUTION` it takes its place, up to this: noise does not settle a training."""

FURTHER = 5.0
"""What longer training gains, so many times over, is what still longer training is taken to gain at most."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: what it is.
        x: places, in increasing order.
        values: (seeds, len(x)); one row where nothing is random from seed to seed.
        reference: whether the values are known from elsewhere and not this run's.
        sampling: (len(x),) half the width of the interval that the tasks judged on leave, or empty where the seeds'
            spread has it in it.
        optimum: (len(x),) the least value known of any parameters of this kind of model, on the same tasks; NaN at
            places where it is not known. Empty where it is known nowhere.
        longer: (runs, len(x)) values of the first seed after longer training or after training at other rates, or of
            parameters found otherwise, a row each. NaN at places that have none. Empty for what is not trained, and
            where the optimum is known.
    """

    label: str
    x: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    reference: bool = False
    sampling: tuple[float, ...] = ()
    optimum: tuple[float, ...] = ()
    longer: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"values of {self.label!r}: expected at least one row, got none")
        given = {"values": self.values, "longer": self.longer}
        given |= {name: (row,) for name in ("sampling", "optimum") if (row := getattr(self, name))}
        for name, rows in given.items():
            widths = sorted({len(row) for row in rows} - {len(self.x)})
            if widths:
                raise ValueError(
                    f"{name} of {self.label!r}: expected rows of {len(self.x)} numbers, got rows of {widths}"
                )

    def column(self, x: float) -> list[float]:
        """The values of all seeds at one place.

        Raises:
            KeyError: if the curve has no such place.
        """
        return [row[self._place(x)] for row in self.values]

    def mean(self, x: float) -> float:
        """Mean over seeds; infinite or NaN if a seed's value is."""
        return float(np.mean(self.column(x)))

    def spread(self, x: float) -> float:
        """Standard deviation over seeds (n - 1 in the denominator); 0 for one seed, NaN if a value is not finite."""
        values = self.column(x)
        if not all(map(math.isfinite, values)):
            return math.nan
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def shown(self, digits: int = 2) -> str:
        """The means at all places, in order, as text."""
        return ", ".join(f"{self.mean(x):.{digits}f}" for x in self.x)

    def interval(self, x: float) -> tuple[float, float]:
        """Interval of the mean at level `LEVEL`, by Student's t over seeds and by `sampling`; NaN if not finite."""
        return interval(self.column(x), self._sampling(x))

    def difference(self, other: Series, x: float) -> tuple[float, float, float]:
        """Mean of this curve less another's at one place, and its interval.

        Seeds are paired where both curves have as many: such seeds share tasks and starts. `sampling` of both widens
        the interval all the same; it is too wide then, as far as the errors on the same tasks are alike.
        """
        one, two = self.column(x), other.column(x)
        if len(one) == len(two) > 1:
            pairs = [a - b for a, b in zip(one, two, strict=True)]
            return (float(np.mean(pairs)), *interval(pairs, math.hypot(self._sampling(x), other._sampling(x))))
        mean = self.mean(x) - other.mean(x)
        half = math.hypot(
            *(0.5 * (high - low) for low, high in (interval(values, width) for values, width in self._widths(other, x)))
        )
        return mean, mean - half, mean + half

    def excess(self, x: float) -> float | None:
        """Mean less the optimum at one place; None where the optimum is not known."""
        return None if not self.optimum or math.isnan(self.optimum[self._place(x)]) else self.mean(x) - self._best(x)

    def gain(self, x: float) -> float | None:
        """How far the lowest of `longer` is below the first seed, or below the mean where that is more, at one place.

        None where there is none.
        """
        found = [row[self._place(x)] for row in self.longer]
        found = [value for value in found if not math.isnan(value)]
        return max(self.mean(x), self.column(x)[0]) - min(found) if found else None

    def converged(self, x: float) -> bool | None:
        """Whether training came to its end at one place; None: not trained.

        The excess over the optimum is at most `RESOLUTION`: the optimum is judged on the same tasks, and how seeds
        spread is how training went. Where there is none, the gain by longer training is at most that, or half the
        interval where that is more, up to `COARSEST`.

        A trained row without an optimum or a longer training counts as not trained: give it one of them.
        """
        left = self.excess(x)
        if left is not None:
            return bool(left <= RESOLUTION)
        left = self.gain(x)
        if left is None:
            return None
        low, high = self.interval(x)
        return bool(left <= max(RESOLUTION, min(0.5 * (high - low), COARSEST)))

    def left(self, x: float) -> float:
        """How far more training might lower the mean at one place; 0 where it came to its end or there is none.

        Down to the optimum where that is known, else `FURTHER` times as far as longer training brings the first seed.
        """
        if self.converged(x) is not False:
            return 0.0
        excess, gain = self.excess(x), self.gain(x)
        left = excess if excess is not None else FURTHER * gain if gain is not None else math.inf
        return left if math.isfinite(left) else math.inf

    def _place(self, x: float) -> int:
        if x not in self.x:
            raise KeyError(f"{self.label} has places {self.x}, got {x}")
        return self.x.index(x)

    def _best(self, x: float) -> float:
        return self.optimum[self._place(x)]

    def _sampling(self, x: float) -> float:
        return self.sampling[self._place(x)] if self.sampling else 0.0

    def _widths(self, other: Series, x: float) -> list[tuple[list[float], float]]:
        return [(one.column(x), one._sampling(x)) for one in (self, other)]


def series(
    label: str,
    x: Sequence[float],
    rows: Sequence[Sequence[float]] | Sequence[float],
    *,
    reference: bool = False,
    sampling: Sequence[float] = (),
    optimum: Sequence[float] = (),
    longer: Sequence[Sequence[float]] = (),
) -> Series:
    """A `Series` from any sequences; one flat row of values stands for one seed."""
    nested: Any = [rows] if rows and isinstance(rows[0], (int, float)) else rows
    return Series(
        label,
        _floats(x),
        tuple(map(_floats, nested)),
        reference,
        _floats(sampling),
        _floats(optimum),
        tuple(map(_floats, longer)),
    )


def interval(values: Sequence[float], sampling: float = 0.0) -> tuple[float, float]:
    """Student's interval of a mean at level `LEVEL`, widened by `sampling` in quadrature; NaN if not finite."""
    mean, count = float(np.mean(values)), len(values)
    if not math.isfinite(mean):
        return math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    quantile = float(student.ppf(0.5 + 0.5 * LEVEL, count - 1)) if count > 1 else 0.0
    half = math.hypot(quantile * error, sampling)
    return mean - half, mean + half


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))
