"""What was found, as plain data: curves with one row a seed, matrices, numbers; and all of the main job."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import memformer_kernels
from memformer_lab.solvers.estimates import Estimate
from memformer_lab.tasks.seeds import seed_for

RESAMPLES = 2000
LEVEL = 0.95

LABELS = {
    "gradient_descent": "gradient descent",
    "momentum": "momentum",
    "nesterov": "Nesterov",
    "conjugate_gradient": "CGD",
    "iterative_newton": "iterative Newton",
    "response-only": "LFOM, Bm = 0",
    "block": "LFOM, Bm free",
    "memformer": "Memformer (LFOM, Bm free)",
    "ols": "OLS",
    "ridge": "ridge",
    "context mean": "context mean",
}
"""How methods are called in tables and figures."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: what it is.
        x: places, in increasing order.
        values: (seeds, len(x)); one row where nothing is random from seed to seed.
        reference: whether the values are known from elsewhere and not this run's.
    """

    label: str
    x: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    reference: bool = False

    def __post_init__(self) -> None:
        if not self.values or any(len(row) != len(self.x) for row in self.values):
            widths = sorted({len(row) for row in self.values})
            raise ValueError(f"values of {self.label!r}: expected rows of {len(self.x)} numbers, got rows of {widths}")

    def column(self, x: float) -> list[float]:
        """The values of all seeds at one place.

        Raises:
            KeyError: if the curve has no such place.
        """
        if x not in self.x:
            raise KeyError(f"{self.label} has places {self.x}, got {x}")
        place = self.x.index(x)
        return [row[place] for row in self.values]

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
        """Bootstrap interval of the mean over seeds."""
        return bootstrap(self.column(x))


@dataclass(frozen=True)
class Panel:
    """Curves on shared axes, which are a figure and a table alike.

    Attributes:
        name: key.
        title: heading of the figure.
        x_label: name of the places.
        y_label: name of the values.
        series: the curves.
        log_x: logarithmic places.
        log_y: logarithmic values.
        categories: names of the places 0, 1, ..., where they are not numbers.
        digits: decimals in the table; significant digits where log_y.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    categories: tuple[str, ...] = ()
    digits: int = 2

    @property
    def places(self) -> list[float]:
        """The places of all curves."""
        return sorted({x for series in self.series for x in series.x})

    def __getitem__(self, label: str) -> Series:
        for series in self.series:
            if series.label == label:
                return series
        raise KeyError(f"panel {self.name} has {[series.label for series in self.series]}, got {label!r}")


@dataclass(frozen=True)
class Matrix:
    """Numbers between 0 and 1, rows against columns, drawn as a heat map."""

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Results:
    """All that an experiment found.

    Attributes:
        panels: curves.
        numbers: further numbers by name, which verdicts read and the report lists.
        matrices: heat maps.
        notes: sentences computed from the numbers.
    """

    panels: tuple[Panel, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    matrices: tuple[Matrix, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Panel:
        for panel in self.panels:
            if panel.name == name:
                return panel
        raise KeyError(f"results have panels {[panel.name for panel in self.panels]}, got {name!r}")

    def to_plain(self) -> dict[str, Any]:
        """Strict JSON values; a number that is not finite becomes its name."""
        encoded: dict[str, Any] = plain(asdict(self))
        return encoded

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Results:
        """The inverse of `to_plain`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        panels = []
        for panel in plain["panels"]:
            series = tuple(
                Series(one["label"], _row(one["x"]), tuple(map(_row, one["values"])), one["reference"])
                for one in panel["series"]
            )
            panels.append(Panel(**{**panel, "series": series, "categories": tuple(panel["categories"])}))
        matrices = tuple(
            Matrix(
                one["name"], one["title"], tuple(one["rows"]), tuple(one["columns"]), tuple(map(_row, one["values"]))
            )
            for one in plain["matrices"]
        )
        numbers = {name: float(value) for name, value in plain["numbers"].items()}
        return cls(tuple(panels), numbers, matrices, tuple(plain["notes"]))


@dataclass(frozen=True)
class RunSummary:
    """One training run: its name, configuration, tasks trained on, seconds, and mean loss of its last metrics line."""

    name: str
    config: dict[str, Any]
    tasks: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class MethodResult:
    """A method on the random tasks: one estimate for each depth 1, 2, ... (layers, or steps of an optimiser)."""

    name: str
    depths: tuple[Estimate, ...]


@dataclass(frozen=True)
class SetResult:
    """A measured set: its rows, features d, context length n, contexts drawn, ridge's penalty, estimates by method."""

    name: str
    rows: int
    d: int
    n: int
    contexts: int
    penalty: float
    methods: dict[str, Estimate]


@dataclass(frozen=True)
class Report:
    """All of the main job.

    Attributes:
        seed: the run's seed.
        methods: results on the random tasks.
        sets: results on the measured sets.
        layers: layers of the models for measured sets, and steps of the optimisers that they are compared with.
        runs: the training runs.
        workers: processes that shared the work.
        seconds: wall time by phase.
        versions: of the package and what it runs on.
    """

    seed: int
    methods: tuple[MethodResult, ...]
    sets: tuple[SetResult, ...]
    layers: int
    runs: tuple[RunSummary, ...]
    workers: int
    seconds: dict[str, float]
    versions: dict[str, str]

    def to_json(self) -> str:
        """Strict JSON; a number that is not finite becomes null."""
        return (
            json.dumps(plain({"format": "memformer_lab.report", "version": 1, **asdict(self)}, name=False), indent=1)
            + "\n"
        )


def series(
    label: str, x: Sequence[float], rows: Sequence[Sequence[float]] | Sequence[float], *, reference: bool = False
) -> Series:
    """A `Series` from any sequences; one flat row of values stands for one seed."""
    nested: Any = [rows] if rows and isinstance(rows[0], (int, float)) else rows
    values = tuple(tuple(float(value) for value in row) for row in nested)
    return Series(label, tuple(float(place) for place in x), values, reference)


def versions() -> dict[str, str]:
    """Of the package and what it runs on, by name."""
    return {
        "memformer_kernels": memformer_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean at level `LEVEL`; NaN where a value is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return math.nan, math.nan
    draws = np.random.default_rng(seed_for("bootstrap", seed)).integers(len(array), size=(RESAMPLES, len(array)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(array[draws].mean(1), [tail, 1 - tail])
    return float(low), float(high)


def _row(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def plain(value: Any, *, name: bool = True) -> Any:
    """Strict JSON values of dicts, lists, tuples and what is in them.

    Args:
        value: what to convert.
        name: a number that is not finite becomes its name; else null.
    """
    if isinstance(value, dict):
        return {key: plain(item, name=name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, name=name) for item in value]
    return (str(value) if name else None) if isinstance(value, float) and not math.isfinite(value) else value
