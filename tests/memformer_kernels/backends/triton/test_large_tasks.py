"""Tasks too large for one program: batched products with fused updates, here at sizes an interpreter can run."""

from typing import Any

import pytest
import torch

from memformer_kernels import explain
from memformer_kernels.backends.triton import registers, sums
from memformer_kernels.backends.triton.registers import update, update_backward
from memformer_kernels.calls import plan
from memformer_kernels.testing import float64_violations, public, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.backends.triton.test_operations import LAYERS, agree, run_layer
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDEST_MATRICES", 0)


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
@pytest.mark.parametrize("name", slow_but(lambda name: name not in RULES or name == "recursive", NETWORKS))
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


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("rule", ["full", "lfom_shared"])
def test_more_registers_than_a_launch_adds(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "MOST_TERMS", 2)
    assert float64_violations(public("triton", "gram"), make_case(rule=rule, layers=6)) == {}


def test_float32_sums_are_of_float32_grade() -> None:
    """The update and its backward alone, against the same formulas in float64: a few roundings each."""
    generator = seeded(3)
    shapes = ((40, 9, 5), (40, 2, 9, 5), (2, 40, 2, 9, 5), (3, 2, 1, 5), (40, 2, 9, 5), (2, 9, 5), (3, 40, 9, 5))
    exact = [normal(generator, *shape) for shape in shapes]
    state, fresh, kept, gamma, before, beta, updates = (x.float() for x in exact)
    register = torch.empty_like(fresh)
    moved = update(state, fresh, kept, gamma, before, beta, register)
    made = [moved, register, *update_backward(updates, register, gamma, before, beta)]

    state, fresh, kept, gamma, before, beta, updates = exact
    register = fresh + beta * before
    together = torch.cat([kept, register[None]])
    expected = [
        state + (gamma[:, None] * together).sum((0, 2)),
        register,
        (gamma[:, None] * updates[:, :, None]).sum(0) + beta * before,
        torch.einsum("kbmd,brmd->krd", updates, register)[:, :, None],
        (register * before).sum(0),
    ]
    for ours, theirs in zip(made, expected, strict=True):
        assert ours is not None
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-6
