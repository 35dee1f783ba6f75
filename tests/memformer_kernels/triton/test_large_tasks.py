"""Tasks too large for one program: batched products with fused updates, here at sizes an interpreter can run."""

from typing import Any

import pytest
import torch

from memformer_kernels import explain
from memformer_kernels.backends import triton
from memformer_kernels.kernels import sums
from memformer_kernels.testing import float64_violations, public, twin_violations
from tests.memformer_kernels.cases import RULES, make_case
from tests.memformer_kernels.triton.test_operations import LAYERS, agree, run_layer


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "WIDEST_MATRICES", 0)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{rule: ("gram", {"rule": rule}) for rule in RULES},
    "tokens": ("token", {"structure": "dense"}),
    "token axis": ("token", {"granularity": "token"}),
    "full, heads": ("token", {"rule": "gated_heads", "granularity": "full"}),
    "recursive, full": ("token", {"rule": "recursive", "granularity": "full"}),
    "padding": ("gram", {"tokens": 9, "context": 4, "queries": 2}),
    "padding on tokens": ("token", {"tokens": 9, "context": 4, "queries": 2, "granularity": "token"}),
    "ragged": ("token", {"context": torch.tensor([3, 6, 1]), "rule": "recursive"}),
    "no tasks": ("gram", {"tasks": 0}),
}


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    algorithm, sizes = NETWORKS[name]
    assert float64_violations(public("triton", algorithm), make_case(**sizes)) == {}


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("rule", LAYERS)
def test_layers(rule: str) -> None:
    agree(run_layer("triton", rule, 7, 4, False), run_layer("torch", rule, 7, 4, False))


@pytest.mark.usefixtures("_all_are_large")
def test_coefficients_with_a_token_axis_over_blocks_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "TASKS_A_BLOCK", 2)
    case = make_case(rule="recursive", granularity="full", structure="dense", tasks=5, tokens=2, layers=2)
    assert float64_violations(public("triton", "token"), case) == {}


def test_wider_tasks_than_a_tile() -> None:
    """More columns than a tile has, and more rows."""
    case = make_case(structure="block", rule="recursive", width=130, tokens=3, layers=2, heads=1, tasks=1)
    for algorithm in ("gram", "token"):
        assert float64_violations(public("triton", algorithm), case) == {}
    assert explain(case.z, case.q, case.p, backend="triton").regime == "large"


@pytest.mark.slow
@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("rule", RULES)
def test_float32_is_within_the_twin_budget(rule: str) -> None:
    case = make_case(rule=rule, width=5, tokens=20, tasks=1024)
    assert twin_violations(public("triton", "gram"), case) == {}
