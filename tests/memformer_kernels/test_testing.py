"""The error budgets themselves: they pass what is right and catch what is slightly wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import (
    Case,
    Implementation,
    float64_violations,
    in_form,
    public,
    relative_error,
    results,
    twin_errors,
    twin_violations,
)
from tests.memformer_kernels.cases import make_case


def _changed(change: Callable[[Tensor], Tensor]) -> Implementation:
    def run(case: Case) -> tuple[Tensor, Tensor]:
        tokens, predictions = in_form("reassociated")(case)
        return change(tokens), predictions

    return run


class _WrongBackward(torch.autograd.Function):
    """The identity, with a gradient that is off by one part in 100,000."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * (1 + 1e-5)


def test_uninitialised_memory_is_poisoned() -> None:
    assert torch.empty(64).isnan().all()
    assert torch.empty_like(torch.zeros(64, dtype=torch.float64)).isnan().all()
    assert torch.zeros(1).new_empty(8, 8).isnan().all()


def test_relative_error() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(exact, exact) == 0.0
    assert relative_error(exact + torch.tensor([0.0, 1.0]), exact) == pytest.approx(0.2)
    assert relative_error(torch.tensor([0.5]), torch.zeros(1)) == 0.5
    assert relative_error(torch.tensor([torch.nan]), exact[:1]) != 0.0


def test_right_results_pass() -> None:
    case = make_case(tasks=64)
    assert float64_violations(in_form("gram"), case) == {}
    assert twin_violations(in_form("gram"), case) == {}


def test_a_wrong_float64_result_is_named() -> None:
    case = make_case()
    violations = float64_violations(_changed(lambda tokens: tokens * (1 + 1e-9)), case)
    assert "tokens" in violations
    assert violations["tokens"] == pytest.approx(1e-9, rel=1e-3)
    assert "predictions" not in violations


def test_a_low_precision_result_exceeds_the_budget() -> None:
    violations = twin_violations(_changed(lambda tokens: tokens.bfloat16().float()), make_case(tasks=64))
    error, budget = violations["tokens"]
    assert error > 100 * budget


def test_a_wrong_gradient_exceeds_the_budget() -> None:
    violations = twin_violations(_changed(_WrongBackward.apply), make_case(tasks=64))
    assert "grad_q" in violations
    assert "tokens" not in violations


def test_nan_is_a_violation() -> None:
    case = make_case()
    assert "tokens" in float64_violations(_changed(lambda tokens: tokens * torch.nan), case)
    assert "tokens" in twin_violations(_changed(lambda tokens: tokens * torch.nan), case)


def test_results_have_a_gradient_for_every_argument() -> None:
    case = make_case(rule="gated_heads").to(torch.float64)
    made = results(in_form("literal"), case)
    assert made.keys() == {
        "tokens",
        "predictions",
        "grad_z",
        "grad_q",
        "grad_p",
        "grad_gamma",
        "grad_gate",
    }
    assert all(value.isfinite().all() for value in made.values())


def test_another_order_of_the_tasks_is_the_same_network_of_the_same_tasks() -> None:
    case = make_case(tasks=5, context=torch.tensor([1, 2, 3, 4, 5]))
    shuffled = case.shuffled(3)
    lengths = shuffled.context
    assert isinstance(lengths, torch.Tensor)
    order = lengths - 1
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4] != order.tolist()
    plain, moved = (results(in_form("literal"), x.to(torch.float64)) for x in (case, shuffled))
    torch.testing.assert_close(moved["tokens"], plain["tokens"][order])
    assert shuffled.q is case.q


def test_more_orders_draw_the_twins_chance_again() -> None:
    case = make_case(tasks=5)
    exact = results(in_form("literal"), case.to(torch.float64))
    once, often = twin_errors(case, exact), twin_errors(case, exact, 4)
    assert all(often[name] >= error for name, error in once.items())
    assert any(often[name] > error for name, error in once.items())


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("part", ["border", "projections", "weight"])
def test_a_fault_of_the_reference_is_no_fault_of_what_it_judges(
    backend: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share no code: a factor in the one is a difference between the two."""
    case = make_case(rule="lfom", structure="block")
    assert float64_violations(public(backend), case) == {}
    right = getattr(reference, part)

    def wrong(*arguments: object) -> object:
        made = right(*arguments)
        return tuple(1.5 * x for x in made) if isinstance(made, tuple) else None if made is None else 1.5 * made

    monkeypatch.setattr(reference, part, wrong)
    assert {"tokens", "predictions"} <= float64_violations(public(backend), case).keys()
