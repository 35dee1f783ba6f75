"""Networks of learned iterative shrinkage: both ways to run them, what they begin as, and what is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memformer_lab.runs.shrinkage import STRIDE, Shrinkage
from memformer_lab.solvers.proximal import analytic_weights, decibels, ista
from memformer_lab.tasks.sparse import SparseTasks

TASKS = SparseTasks(16, 10, 0.2)
LEVELS = (0.2, 0.1, 0.05)


def _network(*, learned: bool) -> Shrinkage:
    """One whose parameters have moved."""
    model = Shrinkage(TASKS.dictionary, analytic_weights(TASKS.dictionary), LEVELS, learned=learned)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def _drawn(batch: int = 7) -> tuple[Tensor, Tensor]:
    return TASKS.measurements(batch, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("learned", [False, True])
def test_products_and_lfom_solve_are_the_same_layers(learned: bool) -> None:
    y, codes = _drawn()
    model = _network(learned=learned)
    made = model(y)
    assert made.shape == (len(LEVELS), *codes.shape)
    assert bool((made == 0).any())
    torch.testing.assert_close(model.codes(y), made, rtol=1e-4, atol=1e-5)


def test_the_layers_are_their_formula() -> None:
    y, _ = _drawn()
    model = _network(learned=True)
    w, dictionary = torch.zeros(len(y), TASKS.d), TASKS.dictionary.float()
    for layer, made in enumerate(model(y)):
        matrix = analytic_weights(TASKS.dictionary).float() + STRIDE * model.change[layer]
        point = w + (y - w @ dictionary.T) @ matrix
        w = point.sign() * (point.abs() - model.log_level[layer].exp()).clamp(min=0)
        torch.testing.assert_close(made, w, rtol=1e-4, atol=1e-5)


def test_with_the_dictionary_over_its_largest_eigenvalue_it_is_ista() -> None:
    drawn = TASKS.quadratics(7, torch.Generator().manual_seed(0))
    y, codes = _drawn()
    torch.testing.assert_close(drawn.weights, codes)
    largest = float(torch.linalg.matrix_norm(TASKS.dictionary, 2)) ** 2
    model = Shrinkage(TASKS.dictionary, TASKS.dictionary / largest, [0.1 / largest] * 3, learned=False)
    torch.testing.assert_close(model(y), ista(drawn.h, drawn.b, 3, 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_all_that_is_learned_has_gradients(learned: bool) -> None:
    y, codes = _drawn(50)
    model = Shrinkage(TASKS.dictionary, analytic_weights(TASKS.dictionary), LEVELS, learned=learned)
    before = decibels(model(y).detach(), codes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        ((model(y) - codes).square().sum((1, 2)) / codes.square().sum()).log().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(bool((parameter.grad != 0).any()) for parameter in model.parameters() if parameter.grad is not None)
    assert float(decibels(model(y).detach(), codes).mean()) < float(before.mean())
    assert len(list(model.parameters())) == 2


def test_what_does_not_fit_is_told() -> None:
    dictionary = TASKS.dictionary
    with pytest.raises(ValueError, match=r"levels must be positive, one a layer, got \[0.1, 0.0\]"):
        Shrinkage(dictionary, dictionary, [0.1, 0.0], learned=False)
    with pytest.raises(ValueError, match=r"analysis must be of shape \(10, 16\) or \(2, 10, 16\), got \(16, 10\)"):
        Shrinkage(dictionary, dictionary.T, [0.1, 0.1], learned=False)
