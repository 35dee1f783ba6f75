"""What the main job found, as plain data: printed by `tables`, drawn by `figures`, written as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

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
        layers: layers of the models for measured sets, and steps of the optimisers beside them.
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
        return json.dumps(_finite({"format": "memformer_lab.report", "version": 1, **asdict(self)}), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
