"""Linear attention as it is compiled, at the widths whose heads are the longest sums, held to the twin's budget."""

import pytest
import torch
from torch import Tensor

from memformer_kernels import linear_attention
from memformer_kernels.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, relative_error
from tests.memformer_kernels.cases import normal, seeded
from tests.virtual_triton.gpus import ARCHITECTURES, clean_gpu

pytestmark = [pytest.mark.compiled, pytest.mark.timeout(1800)]


TASKS, FEW = 64, 2
"""Samples that the twin's error is taken of, since that of two is half as large as luck has it; and ours."""


def _leaves(width: int, tokens: int) -> list[Tensor]:
    """Of float32, in float64."""
    generator = seeded(1)
    drawn = (normal(generator, TASKS, tokens, 1, width, scale=width**-0.5) for _ in range(3))
    return [x.float().double().requires_grad_() for x in drawn]


def _made(backend: str, leaves: list[Tensor], causal: bool) -> list[Tensor]:
    out = linear_attention(*leaves, causal=causal, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


def _check(architecture: int, width: int, tokens: int, causal: bool) -> None:
    leaves = _leaves(width, tokens)
    single = [x.detach().float().requires_grad_() for x in leaves]
    right, plain = _made("torch", leaves, causal), _made("torch", single, causal)
    few = [x.detach()[:FEW].requires_grad_() for x in single]
    with clean_gpu(architecture):
        made = _made("triton", few, causal)
    for place, (ours, twin, exact) in enumerate(zip(made, plain, right, strict=True)):
        factor = GRADIENT_FACTOR if place else OUTPUT_FACTOR
        assert relative_error(ours, exact[:FEW]) <= factor * relative_error(twin, exact)


def test_heads_of_129_entries() -> None:
    _check(90, 129, 40, causal=True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "tokens"), [(16, 70), (64, 300), (65, 40), (129, 40), (192, 40), (256, 300)])
def test_every_number_of_parts(architecture: int, width: int, tokens: int, causal: bool) -> None:
    _check(architecture, width, tokens, causal)
