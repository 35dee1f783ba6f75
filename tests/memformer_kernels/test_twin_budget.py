"""float32 on every path errs at most twice as much as its twin (three times for gradients), over 1024 tasks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from memformer_kernels.testing import Case, public, twin_violations
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path

TASKS = 1024
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "workload W": {"width": 6, "tokens": 21, "layers": 4, "heads": 1, "structure": "response-only"},
    "workload W, full gamma": {
        "width": 6,
        "tokens": 21,
        "layers": 4,
        "heads": 1,
        "structure": "response-only",
        "granularity": "full",
    },
    "linear, block": {"rule": "linear", "width": 6, "tokens": 21, "layers": 4},
    "linear, dense": {"rule": "linear", "width": 5, "tokens": 16, "layers": 3, "structure": "dense"},
    "cgd, response-only": {"rule": "cgd", "granularity": "scalar", "structure": "response-only", "tokens": 21},
    "recursive, full beta": {"rule": "recursive", "granularity": "full", "tokens": 12},
    "recursive, feature beta": {"rule": "recursive", "structure": "dense", "tokens": 12},
    "shared gamma, deep": {"rule": "lfom_shared", "layers": 8, "structure": "response-only", "tokens": 33},
    "residual gamma, block": {"rule": "lfom_residual", "layers": 4, "tokens": 17},
    "gated heads": {"rule": "gated_heads", "heads": 4, "tokens": 16, "structure": "response-only"},
    "gated heads, token gamma": {"rule": "gated_heads", "granularity": "token", "heads": 3, "tokens": 15},
    "one context token": {"width": 3, "tokens": 2, "structure": "dense"},
    "many queries": {"width": 4, "tokens": 40, "context": 8, "structure": "block"},
    "padding": {"width": 4, "tokens": 24, "context": 8, "queries": 3},
    "wide": {"width": 24, "tokens": 48, "layers": 2, "heads": 1},
    "ragged": {"width": 5, "tokens": 20, "context": "ragged"},
}


def _case(configuration: str) -> Case:
    sizes = dict(CONFIGURATIONS[configuration])
    if sizes.get("context") == "ragged":
        sizes["context"] = torch.randint(1, sizes["tokens"], (TASKS,), generator=seeded(5))
    return make_case(tasks=TASKS, **sizes)


ON_PATHS = slow_but(
    lambda configuration, path: path.backend != "torch" or configuration in ("workload W", "ragged"),
    [(name, path) for name in CONFIGURATIONS for path in PATHS if path.serves(_case(name))],
)


@pytest.mark.parametrize(("configuration", "path"), ON_PATHS, ids=str)
def test_stack_and_predictions(configuration: str, path: Path) -> None:
    assert twin_violations(public(*path), _case(configuration)) == {}


@pytest.mark.parametrize(("configuration", "path"), ON_PATHS, ids=str)
def test_loss(configuration: str, path: Path) -> None:
    """The gradients of the loss alone, which a training step sees: no token of Z_L weighs in."""
    case = _case(configuration)
    queries = 1 if case.queries is None else case.queries
    if case.queries is None and isinstance(case.context, int):
        queries = case.z.shape[1] - case.context
    target = normal(seeded(6), TASKS, queries)
    assert twin_violations(public(*path), replace(case, target=target)) == {}
