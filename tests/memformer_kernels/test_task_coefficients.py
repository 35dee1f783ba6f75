"""Coefficients of each task in `lfom_solve`: against the reference, and against a call a task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from memformer_kernels import explain, lfom_solve, reference
from tests.memformer_kernels.cases import normal, seeded

B, L, D, M = 3, 4, 5, 2

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "gamma": {"gamma": (B, L, L, D)},
    "gamma, one number": {"gamma": (B, L, L, 1)},
    "gamma shared by layers": {"gamma": (B, 1, L, D)},
    "gamma, one task's": {"gamma": (1, L, L, 1)},
    "beta": {"beta": (B, L, D)},
    "beta of all layers": {"beta": (B, 1, 1)},
    "both": {"gamma": (B, L, L, D), "beta": (B, L, 1)},
    "gamma of each, beta of all": {"gamma": (B, L, L, 1), "beta": (D,)},
    "beta of each, gamma of all": {"gamma": (1, L, D), "beta": (B, L, 1)},
}


def _given(name: str, *, start: bool = True, columns: bool = False) -> dict[str, Tensor]:
    generator = seeded(5)
    shape = (B, D, M) if columns else (B, D)
    made = {"h": normal(generator, B, D, D, scale=0.4), "b": normal(generator, *shape)}
    made["a"] = normal(generator, L, D, D, scale=0.4)
    made |= {key: normal(generator, *shape, scale=0.5) for key, shape in SHAPES[name].items()}
    return made | ({"w0": normal(generator, *shape)} if start else {})


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_reference(name: str, start: bool, columns: bool) -> None:
    given = _given(name, start=start, columns=columns)
    expected = reference.lfom_solve(**given)
    made = lfom_solve(**given, layers=True)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(lfom_solve(**given), made[-1])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_each_task_is_a_call_with_its_own_coefficients(backend: Any) -> None:
    given = _given("both")
    made = lfom_solve(**given, backend=backend)
    for task in range(B):
        own = {name: x if name == "a" else x[task : task + 1] for name, x in given.items()}
        alone = own | {"gamma": own["gamma"][0], "beta": own["beta"][0]}
        torch.testing.assert_close(made[task : task + 1], lfom_solve(**alone), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["both", "beta of each, gamma of all"])
def test_derivatives(name: str) -> None:
    """Of first and second order, forward and backward, in every argument."""
    given = _given(name)
    names, values = tuple(given), [x.requires_grad_() for x in given.values()]

    def run(*tensors: Tensor) -> Tensor:
        return lfom_solve(**dict(zip(names, tensors, strict=True)), layers=True)

    assert gradcheck(run, values, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, values, fast_mode=True)


def test_weights_of_later_registers_are_never_read() -> None:
    given = _given("gamma")
    expected = lfom_solve(**given)
    gamma = torch.where(torch.ones(L, L).triu(1).bool()[..., None], torch.nan, given["gamma"]).requires_grad_()
    made = lfom_solve(**(given | {"gamma": gamma}))
    assert torch.equal(made, expected)
    (grad,) = torch.autograd.grad(made.sum(), gamma)
    later = torch.ones(L, L).triu(1).bool()
    assert not bool(grad[:, later].any())
    assert bool(grad[:, ~later].all())


def test_a_task_that_is_not_finite_keeps_it_to_itself() -> None:
    given = _given("both")
    expected = lfom_solve(**given)
    given["gamma"][1, 0, 0, 0] = torch.nan
    made = lfom_solve(**given)
    assert bool(made[1].isnan().any())
    assert torch.equal(made[[0, 2]], expected[[0, 2]])


def test_transforms_and_compilers_see_operations_of_torch() -> None:
    given = _given("gamma", start=False)
    h, b, a, gamma = given.values()
    mapped = torch.func.vmap(lambda h, b, gamma: lfom_solve(h[None], b[None], a, gamma[None])[0])(h, b, gamma)
    torch.testing.assert_close(mapped, lfom_solve(h, b, a, gamma))
    compiled = torch.compile(lfom_solve, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(h, b, a, gamma), lfom_solve(h, b, a, gamma))


def test_autocast_keeps_full_precision() -> None:
    given = {name: x.float() for name, x in _given("both").items()}
    expected = lfom_solve(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lfom_solve(**given), expected)
        mixed = lfom_solve(**(given | {"gamma": given["gamma"].bfloat16()}))
    assert torch.equal(mixed, lfom_solve(**(given | {"gamma": given["gamma"].bfloat16().float()})))


def test_no_task_at_all() -> None:
    given = {name: x if name == "a" else x[:0] for name, x in _given("both").items()}
    gamma = given["gamma"].requires_grad_()
    a = given["a"].requires_grad_()
    made = lfom_solve(**given, layers=True)
    assert made.shape == (L, 0, D)
    of_gamma, of_a = torch.autograd.grad(made.sum(), [gamma, a])
    assert of_gamma.shape == (0, L, L, D)
    assert not bool(of_a.any())


def test_torch_serves_them_and_says_why() -> None:
    for name in SHAPES:
        given = _given(name)
        plan = explain(**given)
        assert plan.backend == "torch"
        assert "coefficients that all tasks share" in plan.reason
        assert "asked for" in explain(**given, backend="torch").reason


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_another_backend_is_refused(name: str, backend: Any) -> None:
    message = rf'backend: expected "auto" or "torch", since gamma or beta has an axis of tasks .*, got "{backend}"'
    with pytest.raises(ValueError, match=message):
        lfom_solve(**_given(name), backend=backend)


@pytest.mark.parametrize("prox", [{"level": 0.1}, {"lower": 0.0}, {"upper": 1.0}, {"radius": 1.0}], ids=str)
def test_a_prox_is_refused(prox: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gamma, beta: expected no axis of tasks where steps end in a prox"):
        lfom_solve(**_given("both"), **prox)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("gamma", (B + 1, L, L, D)),
        ("gamma", (B, L, 2, D)),
        ("gamma", (B, B, L, L, D)),
        ("beta", (B + 1, L, D)),
        ("beta", (B, 2, D)),
        ("beta", (1, B, L, D)),
    ],
)
def test_shapes_are_checked(argument: str, shape: tuple[int, ...]) -> None:
    given = _given("both") | {argument: torch.ones(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=rf"{argument}: expected .*broadcastable to .*got"):
        lfom_solve(**given)


def test_a_quadratic_that_is_no_number_is_none_after_the_first_step_from_zero() -> None:
    """As with coefficients that tasks share: 0 times what is no number is none."""
    h, b, a = torch.full((1, 2, 2), torch.nan), torch.ones(1, 2), -torch.eye(2)[None]
    for gamma in (torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1)):
        assert bool(lfom_solve(h, b, a, gamma).isnan().all())
