"""What was found, as plain data: curves with one row a seed, matrices, numbers; and all of the main job."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import memformer_kernels
from memformer_lab.reports.curves import Series
from memformer_lab.reports.networks import Network
from memformer_lab.solvers.estimates import Estimate

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
        networks: trained networks behind some of the values.
    """

    panels: tuple[Panel, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    matrices: tuple[Matrix, ...] = ()
    notes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

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
                Series(
                    one["label"],
                    _row(one["x"]),
                    tuple(map(_row, one["values"])),
                    one["reference"],
                    _row(one["sampling"]),
                    _row(one["optimum"]),
                    tuple(map(_row, one["longer"])),
                )
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
        networks = tuple(Network(**one) for one in plain["networks"])
        return cls(tuple(panels), numbers, matrices, tuple(plain["notes"]), networks)


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

    def digest(self) -> str:
        """Of its JSON: "SHA-256 ..."."""
        return f"SHA-256 {hashlib.sha256(self.to_json().encode()).hexdigest()}"


def versions() -> dict[str, str]:
    """Of the package and what it runs on, by name; "sources" is a digest of the Python files of both packages."""
    return {
        "memformer_kernels": memformer_kernels.__version__,
        "sources": _digest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@cache
def _digest() -> str:
    folders = [Path(inspect.getfile(memformer_kernels)).parent, Path(__file__).parents[1]]
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


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
