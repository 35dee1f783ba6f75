"""Calls with all their gradients, and what their results are held against."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import context_gram, lfom_solve, memformer_layer, memformer_loss
from memformer_kernels.calls.limits import TINY_WIDTH
from memformer_kernels.testing import FLOAT64_ERROR, GRADIENT_FACTOR, Case, relative_error
from tests.gpu.gpus import ALGORITHMS, STRUCTURES
from tests.marks import slow_but
from tests.memformer_kernels.cases import leaves, normal, seeded

CUDA_WIDTHS = slow_but(
    lambda width, structure, algorithm: width == 6,
    (
        (width, structure, algorithm)
        for width in range(2, 18)
        for structure in STRUCTURES
        for algorithm in ALGORITHMS
        if width <= TINY_WIDTH or (structure, algorithm) == ("response-only", "gram")
    ),
)
"""One width beyond where features move in registers: where they stay, d alone counts."""


def losses(case: Case, backend: str, algorithm: str = "auto", *, parameters_alone: bool = False) -> list[Tensor]:
    """The loss of a case and its gradients: of all arguments, the target among them, or of parameters alone."""
    given = {name: value.detach().clone().requires_grad_() for name, value in leaves(case).items()}
    assert case.target is not None
    target = case.target.detach().clone().requires_grad_(not parameters_alone)
    given["z"].requires_grad_(not parameters_alone)
    options: dict[str, Any] = {"context": case.context, "queries": case.queries, "algorithm": algorithm}
    loss = memformer_loss(target=target, **given, **options, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, [x for x in (target, *given.values()) if x.requires_grad])]


def with_target(case: Case, queries: int) -> Case:
    """The case with as many queries and something to compare their predictions with."""
    target = normal(seeded(1), case.z.shape[0], queries)
    return replace(case, target=target, queries=queries, context=case.z.shape[1] - queries)


def others(
    width: int, backend: str, dtype: torch.dtype = torch.float64, device: str = "cpu", tasks: int = 5, tokens: int = 9
) -> list[Tensor]:
    """A layer with a register before it, a first-order method and a Gram matrix, and all their gradients."""
    generator, shapes = seeded(2), ((tasks, tokens, width), (1, width, width), (tasks, 1, tokens, width))
    z, q, past, gamma = (normal(generator, *shape) for shape in (*shapes, (2, 1, 1, width)))
    h, b, a = (normal(generator, *shape) / 6 for shape in ((4, width, width), (4, width), (3, width, width)))
    weights, start = normal(generator, 3, 3, width), normal(generator, 4, width)
    given = [x.to(device, dtype).requires_grad_() for x in (z, q, past, gamma, h, b, a, weights, start)]
    z, q, past, gamma, h, b, a, weights, start = given
    context = tokens - 2
    moved, register = memformer_layer(z, q / tokens, q / 6, [past], gamma, gamma[0], context=context, backend=backend)
    found = lfom_solve(h, b, a, weights, w0=start, layers=True, backend=backend)
    gram = context_gram(z, context) if backend == "cuda" else z[:, :context].mT @ z[:, :context]
    total = moved.square().sum() + register.sin().sum() + found.square().sum() + gram.sin().sum()
    return [*(x.detach() for x in (moved, register, found, gram)), *torch.autograd.grad(total, given)]


def assert_budget(made: list[Tensor], twin: list[Tensor], exact: list[Tensor]) -> None:
    """An error against float64 of at most three times that of plain float32 PyTorch, as gradients may have.

    Of all results together: of few tasks a single number is now and then as good as exact in the twin.
    """
    ours, theirs, value = (torch.cat([x.double().flatten() for x in results]) for results in (made, twin, exact))
    budget = GRADIENT_FACTOR * max(relative_error(theirs, value), torch.finfo(torch.float32).eps)
    assert relative_error(ours, value) <= budget


def assert_equal(made: list[Tensor], exact: list[Tensor]) -> None:
    """The same numbers in float64, but for rounding."""
    for ours, value in zip(made, exact, strict=True):
        assert relative_error(ours, value) <= FLOAT64_ERROR


def assert_losses(case: Case, backend: str, algorithm: str) -> None:
    """The loss of a case is right in float64 and in float32, with all its gradients and with those of parameters."""
    for alone in (False, True):
        exact, single = losses(case, "torch", algorithm, parameters_alone=alone), case.to(torch.float32)
        assert_equal(losses(case, backend, algorithm, parameters_alone=alone), exact)
        ours, twin = (losses(single, name, algorithm, parameters_alone=alone) for name in (backend, "torch"))
        assert_budget(ours, twin, exact)
