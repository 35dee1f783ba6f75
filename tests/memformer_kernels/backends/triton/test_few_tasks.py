"""Few tasks with long contexts: the passes over tokens are split, here at sizes an interpreter can run."""

from typing import Any

import pytest
import torch

from memformer_kernels import memformer_loss, memformer_predict
from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton import spread as triton_spread
from memformer_kernels.testing import float64_violations, public, relative_error, twin_violations
from tests.marks import slow_but
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded


@pytest.fixture
def _all_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "gram_splits", lambda tasks, tokens: 2)


CASES: dict[str, dict[str, Any]] = {
    "response-only": {"structure": "response-only", "rule": "recursive"},
    "block": {"structure": "block"},
    "dense": {"structure": "dense", "rule": "gated_heads", "layers": 2},
    "tile": {"structure": "response-only", "width": 17, "tokens": 40, "heads": 1},
    "block tile": {"structure": "block", "width": 17, "tokens": 40, "heads": 1, "layers": 2, "tasks": 1},
    "padding": {"structure": "block", "tokens": 45, "context": 34, "queries": 6, "layers": 2},
    "ragged": {"structure": "response-only", "tokens": 40, "context": torch.tensor([3, 39, 33]), "queries": 1},
    "one token": {"tokens": 1, "context": 1, "layers": 2},
}


@pytest.mark.usefixtures("_all_are_spread")
@pytest.mark.parametrize("name", slow_but(["response-only", "ragged"], CASES))
def test_results_and_gradients(name: str) -> None:
    assert float64_violations(public("triton", "gram"), make_case(**CASES[name])) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("_all_are_spread")
@pytest.mark.parametrize(
    ("structure", "sizes"), [("response-only", {"tasks": 1024}), ("block", {"tasks": 256, "layers": 2})]
)
def test_float32_is_within_the_twin_budget(structure: str, sizes: dict[str, int]) -> None:
    case = make_case(structure=structure, heads=1, **sizes)
    assert twin_violations(public("triton", "gram"), case) == {}


@pytest.mark.slow
def test_a_long_context_is_spread_over_programs() -> None:
    """Unpatched: one task of 600 tokens, its loss, predictions after every layer and all gradients."""
    assert triton_spread.spreads(1, 600)
    assert not triton_spread.spreads(1000, 600)
    assert not triton_spread.spreads(0, 600)
    sizes: dict[str, Any] = {"tasks": 1, "tokens": 600, "width": 3, "layers": 2, "heads": 1}
    case = make_case(structure="response-only", queries=40, context=500, **sizes).to(torch.float64)
    target = normal(seeded(1), 1, 40)
    given = list(leaves(case).values())

    def run(backend: str) -> list[torch.Tensor]:
        options: dict[str, Any] = {"context": 500, "queries": 40, "backend": backend, "algorithm": "gram"}
        loss = memformer_loss(case.z, target, case.q, *case.parameters, **options)
        every = memformer_predict(case.z, case.q, *case.parameters, layers=True, **options)
        return [loss.detach(), every.detach(), *torch.autograd.grad(loss + every.square().sum(), given)]

    for made, exact in zip(run("triton"), run("torch"), strict=True):
        assert relative_error(made, exact) < 1e-10


@pytest.mark.usefixtures("_all_are_spread")
def test_nothing_reads_padding() -> None:
    case = make_case(structure="block", tokens=9, context=4, queries=2, layers=2, heads=1, tasks=1).to(torch.float64)
    poisoned = case.z.detach().clone()
    poisoned[:, 4:7] = torch.nan
    poisoned.requires_grad_()
    made = memformer_predict(poisoned, case.q, *case.parameters, context=4, queries=2, backend="triton")
    grad, q_grad = torch.autograd.grad(made.sum(), [poisoned, case.q])
    assert not grad[:, 4:7].any()
    assert made.isfinite().all()
    assert grad[:, :4].isfinite().all()
    assert q_grad.isfinite().all()
