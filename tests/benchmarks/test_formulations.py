"""All peers compute the same loss and gradients, and the same as memformer_kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.peers import formulations
from memformer_kernels import memformer_loss

GRAM_SPACE = (formulations.gram, formulations.batch_last_gram)
TOKEN_SPACE = (formulations.reassociated, formulations.batch_last_tokens)
SHAPES = [(5, 20, 4, 1, 1), (3, 7, 3, 2, 2), (1, 1, 1, 1, 1), (2, 65, 2, 3, 1)]


def arguments(
    d: int, n: int, layers: int, heads: int, queries: int, granularity: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Random float64 arguments; the query's response slot is not 0 and must count as it stands."""
    generator = torch.Generator().manual_seed(d + n)
    tokens = n + queries
    shape = (layers, layers, 1, tokens if granularity in ("token", "full") else 1)
    features = d + 1 if granularity in ("feature", "full") else 1

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    z, target = draw(9, tokens, d + 1), draw(9, queries)
    q = (0.3 * draw(layers, heads, d, d)).requires_grad_()
    gamma = (0.5 * draw(*shape, features)).requires_grad_()
    return z, target, q, gamma, n


def evaluated(loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> tuple[Tensor, ...]:
    value = loss(*inputs)
    return (value.detach(), *torch.autograd.grad(value, inputs[2:4]))


def ours(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    return memformer_loss(z, target, q, gamma=gamma, context=n, backend="torch")


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for value, reference in zip(found, expected, strict=True):
        assert value.shape == reference.shape
        assert (value - reference).norm() <= 1e-10 * reference.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("granularity", ["scalar", "feature"])
@pytest.mark.parametrize("loss", [*GRAM_SPACE, formulations.reassociated, ours])
def test_equals_the_published_form_without_a_token_axis(
    loss: formulations.Loss, granularity: str, shape: tuple[int, int, int, int, int]
) -> None:
    inputs = arguments(*shape, granularity)
    assert_equal(evaluated(loss, inputs), evaluated(formulations.published, inputs))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("granularity", ["token", "full"])
@pytest.mark.parametrize("loss", [*TOKEN_SPACE, ours])
def test_equals_the_published_form_with_a_token_axis(
    loss: formulations.Loss, granularity: str, shape: tuple[int, int, int, int, int]
) -> None:
    inputs = arguments(*shape, granularity)
    assert_equal(evaluated(loss, inputs), evaluated(formulations.published, inputs))


@pytest.mark.parametrize("n", [6, formulations.UNROLLED_CONTEXT + 1])
@pytest.mark.parametrize("loss", [formulations.published, *GRAM_SPACE, *TOKEN_SPACE])
def test_what_is_traced_under_compile_equals_the_eager_form(loss: formulations.Loss, n: int) -> None:
    torch.compiler.reset()
    inputs = arguments(3, n, 2, 1, 1, "full" if loss in TOKEN_SPACE else "feature")
    traced = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)
    assert_equal(evaluated(traced, inputs), evaluated(loss, inputs))


def test_the_published_form_forms_the_n_by_n_matrix() -> None:
    z, target, q, gamma, n = arguments(2, 30, 3, 1, 1, "feature")
    shapes: list[tuple[int, ...]] = []

    def note(kept: Tensor) -> Tensor:
        shapes.append(tuple(kept.shape))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        formulations.published(z, target, q, gamma, n)
    # The first layer's matrix is not kept: its values depend on no parameter.
    assert shapes.count((9, 31, 31)) == 2
