"""Native steps that end in a prox: sizes, instruction sets, precision, layouts, orders of summation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import lfom_solve, reference
from memformer_kernels.testing import FLOAT64_ERROR, GRADIENT_FACTOR, OUTPUT_FACTOR, relative_error
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.native import LAYOUTS, assert_same_bits_on_threads, instruction_set, with_gradients

__all__ = ["instruction_set"]

L = 3
PROXES = ("level", "level and bounds", "ball")


def _given(prox: str, tasks: int, d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A method with all that it may have, and a prox that changes about half of the weights."""
    generator = seeded(d)
    scale = d**-0.5
    made = {"h": normal(generator, tasks, d, d, scale=scale), "b": normal(generator, tasks, d)}
    made |= {"a": normal(generator, L, d, d, scale=scale), "gamma": normal(generator, L, L, d, scale=0.7)}
    made |= {"beta": normal(generator, L, 1, scale=0.5), "w0": normal(generator, tasks, d)}
    if prox == "ball":
        made["radius"] = (0.9 * d**0.5 + 0.1 * normal(generator, L, 1)).abs()
    else:
        made["level"] = 0.5 + 0.1 * normal(generator, L, d)
    if prox == "level and bounds":
        made |= {"lower": -0.8 + 0.1 * normal(generator, L, 1), "upper": 0.8 + 0.1 * normal(generator, d)}
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def _run(given: dict[str, Tensor], backend: Any = "cpu", layers: bool = True) -> list[Tensor]:
    """Iterates, and gradients of all arguments."""
    return with_gradients(lfom_solve(**given, layers=layers, backend=backend), list(given.values()))


def _assert_right(prox: str, tasks: int, d: int) -> None:
    given = _given(prox, tasks, d)
    expected = with_gradients(reference.lfom_solve(**given), list(given.values()))
    for made, exact in zip(_run(given), expected, strict=True):
        assert relative_error(made, exact) < FLOAT64_ERROR
    plain = {name: x for name, x in given.items() if name not in ("level", "lower", "upper", "radius")}
    assert relative_error(expected[0], reference.lfom_solve(**plain)) > 0.05


@pytest.mark.parametrize("prox", PROXES)
@pytest.mark.parametrize("d", [1, 3, 16, 17, 33, 70])
def test_every_instruction_set(instruction_set: str, d: int, prox: str) -> None:
    _assert_right(prox, 3, d)


@pytest.mark.parametrize("d", range(1, 41))
def test_every_width(d: int) -> None:
    for prox in PROXES:
        _assert_right(prox, 2, d)


@pytest.mark.parametrize("d", [4, 20])
@pytest.mark.parametrize("prox", PROXES)
def test_the_last_iterate_alone(prox: str, d: int) -> None:
    given = _given(prox, 5, d)
    expected = with_gradients(reference.lfom_solve(**given)[-1], list(given.values()))
    for made, exact in zip(_run(given, layers=False), expected, strict=True):
        assert relative_error(made, exact) < FLOAT64_ERROR


@pytest.mark.parametrize("d", [3, 5, 7, 8, 16, 30])
@pytest.mark.parametrize("prox", PROXES)
def test_float32_errs_as_its_twin(prox: str, d: int) -> None:
    """The twin is the same method on torch, in float32: see `memformer_kernels.testing`."""
    given = _given(prox, 500, d, torch.float32)
    exact = _run({name: x.detach().double().requires_grad_() for name, x in given.items()}, "torch")
    for place, (made, twin, right) in enumerate(zip(_run(given), _run(given, "torch"), exact, strict=True)):
        factor = GRADIENT_FACTOR if place else OUTPUT_FACTOR
        assert relative_error(made, right) < factor * relative_error(twin, right) + 1e-7


@pytest.mark.parametrize("d", [5, 20])
@pytest.mark.parametrize("tasks", [7, 1030, 2100])
def test_sums_over_tasks_are_those_of_their_blocks(tasks: int, d: int) -> None:
    """Of levels and bounds too: a gradient over many tasks is the sum, in double, of those of blocks of 1024."""
    for prox in PROXES[1:]:
        given = _given(prox, tasks, d, torch.float32)
        own = {name: x for name, x in given.items() if name not in ("h", "b", "w0")}

        def gradients(start: int, stop: int, own: dict[str, Tensor] = own, given: Any = given) -> tuple[Tensor, ...]:
            tasks = {name: given[name][start:stop].detach() for name in ("h", "b", "w0")}
            made = lfom_solve(**tasks, **own, backend="cpu")
            return torch.autograd.grad(made, list(own.values()), torch.ones_like(made))

        blocks = [gradients(start, start + 1024) for start in range(0, tasks, 1024)]
        for (name, parameter), whole, *parts in zip(own.items(), gradients(0, tasks), *blocks, strict=True):
            total = torch.stack([part.double() for part in parts]).sum(0)
            if parameter.shape == (L, L, d) or name == "a" or (name, prox) == ("level", "level and bounds"):
                assert torch.equal(whole, total.float())
            else:  # entries that share a coefficient are added up in double before they are rounded
                assert relative_error(whole, total) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [6, 21])
def test_results_are_the_same_bits_for_any_number_of_threads(d: int, dtype: torch.dtype) -> None:
    assert_same_bits_on_threads(lambda: [x for prox in PROXES for x in _run(_given(prox, 1100, d, dtype))])


@pytest.mark.parametrize("d", [5, 19])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str, d: int) -> None:
    for prox in PROXES:
        given = {name: x.detach() for name, x in _given(prox, 5, d, torch.float32).items()}
        strided = {"h": LAYOUTS[layout](given["h"])}
        strided |= {name: x.T.contiguous().T for name, x in given.items() if x.shape in ((L, d), (L, 1))}
        plain = {name: x.contiguous().clone() for name, x in strided.items()}
        made = [
            _run({name: x.detach().requires_grad_() for name, x in {**given, **changed}.items()})
            for changed in (strided, plain)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("d", [4, 20])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_task_that_is_no_number_is_alone(value: float, d: int) -> None:
    for prox in PROXES:
        given = _given(prox, 21, d)
        spoilt = given["b"].detach().clone()
        spoilt[11, 1] = value
        clean, made = _run(given), _run({**given, "b": spoilt.requires_grad_()})
        kept = [task for task in range(21) if task != 11]
        assert torch.equal(made[0][:, kept], clean[0][:, kept])
        for place in (1, 2, 6):  # of h, b and w0
            assert torch.equal(made[place][kept], clean[place][kept])


@pytest.mark.parametrize("d", [4, 20])
def test_one_gradient_alone_is_that_among_all(d: int) -> None:
    for prox in PROXES:
        given = _given(prox, 5, d)
        everything = dict(zip(given, _run(given)[1:], strict=True))
        for name in given:
            alone = {other: x.detach().requires_grad_(other == name) for other, x in given.items()}
            iterates = lfom_solve(**alone, layers=True, backend="cpu")
            assert torch.equal(with_gradients(iterates, [alone[name]])[1], everything[name])


@pytest.mark.parametrize("d", [4, 20])
def test_no_task_and_one(d: int) -> None:
    for prox in PROXES:
        iterates, *grads = _run(_given(prox, 0, d))
        assert iterates.shape == (L, 0, d)
        assert all(not grad.any() for grad in grads)
        _assert_right(prox, 1, d)
