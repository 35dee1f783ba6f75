"""The native context Gram matrices of tasks that are too wide for a lane: sizes, layouts, orders of summation."""

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, explain
from memformer_kernels.testing import FLOAT64_ERROR, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.native import LAYOUTS, assert_same_bits_on_threads, instruction_set, with_gradients

__all__ = ["instruction_set"]

EPS = torch.finfo(torch.float32).eps


def _made(z: Tensor, context: int | Tensor) -> list[Tensor]:
    """The matrices and the gradient of the tokens, of the native kernels."""
    assert explain(z, context=context)[0:3:2] == ("cpu", "wide Gram")
    leaf = z.detach().requires_grad_()
    return with_gradients(context_gram(leaf, context), [leaf])


def _twin(z: Tensor, context: int | Tensor) -> list[Tensor]:
    """The same in plain PyTorch."""
    leaf = z.detach().requires_grad_()
    lengths = torch.as_tensor(context).expand(len(z))
    rows = torch.where((torch.arange(z.shape[1]) < lengths[:, None])[:, :, None], leaf, 0.0)
    return with_gradients(rows.mT @ rows, [leaf])


def _assert_right(z: Tensor, context: int | Tensor) -> None:
    """In float64 to 1e-10; in float32 within its budget of the twin's error, for which some sizes are too small."""
    for made, exact in zip(_made(z, context), _twin(z, context), strict=True):
        assert relative_error(made.detach(), exact.detach()) < FLOAT64_ERROR
    for made, exact in zip(_made(z.float(), context), _twin(z.float().double(), context), strict=True):
        assert relative_error(made.detach(), exact.detach()) < 10 * EPS


@pytest.mark.parametrize("width", [18, 19, 24, 31, 32, 33, 47, 64, 65, 127, 255, 256, 257])
@pytest.mark.parametrize("tokens", [21, 98])
def test_every_width(instruction_set: str, width: int, tokens: int) -> None:
    z = normal(seeded(width), 3, tokens, width)
    _assert_right(z, tokens - 1)
    _assert_right(z, torch.tensor([tokens, 1, tokens // 2]))


@pytest.mark.parametrize("width", [511, 512])
def test_the_widest(width: int) -> None:
    _assert_right(normal(seeded(width), 2, 67, width), 67)


@pytest.mark.parametrize("context", [1, 2, 3, 5, 31, 32, 33, 64, 65, 97])
def test_every_length(instruction_set: str, context: int) -> None:
    for tokens in (context, context + 1, context + 70):
        _assert_right(normal(seeded(tokens), 2, tokens, 21), context)


@pytest.mark.parametrize("tasks", [0, 1, 7])
def test_any_number_of_tasks(tasks: int) -> None:
    z = normal(seeded(1), tasks, 40, 20)
    made, grad = _made(z, 33)
    assert made.shape == (tasks, 20, 20)
    assert grad.shape == z.shape
    if tasks:
        _assert_right(z, 33)


@pytest.mark.parametrize("width", slow_but([18, 65], [33, 128]))
def test_float32_errs_as_its_twin(width: int) -> None:
    z = normal(seeded(2), 1024, 70, width).float()
    exact = [x.detach() for x in _twin(z.double(), 69)]
    errors = [[relative_error(x.detach(), y) for x, y in zip(of(z, 69), exact, strict=True)] for of in (_made, _twin)]
    (matrix, grad), (twin_matrix, twin_grad) = errors
    assert matrix < 2 * twin_matrix
    assert grad < 3 * twin_grad


def test_float32_errors_do_not_grow_with_the_context() -> None:
    z = normal(seeded(3), 1, 50_000, 20).float()
    exact = z.double().mT @ z.double()
    assert relative_error(context_gram(z, 50_000), exact) < 5 * EPS


@pytest.mark.parametrize("width", [18, 40])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_same_bits_alone_and_among_many(width: int, ragged: bool) -> None:
    """Few tasks have their contexts cut into pieces, the more the fewer they are; many do not."""
    z = normal(seeded(4), 70, 3300, width).float()
    lengths = torch.randint(1, 3301, (70,), generator=seeded(5))
    lengths[0] = 3300
    made = []
    for count in (1, 3, 20, 70):
        context = lengths[:count] if ragged else 3277
        leaf = z[:count].clone().requires_grad_()
        matrix = context_gram(leaf, context)
        (grad,) = torch.autograd.grad(matrix, leaf, matrix.detach())
        made.append((matrix[0].detach(), grad[0]))
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("tasks", [1, 5, 70])
def test_the_same_bits_for_any_number_of_threads(tasks: int) -> None:
    z = normal(seeded(6), tasks, 2500, 19).float()
    lengths = torch.randint(1, 2501, (tasks,), generator=seeded(7))
    assert_same_bits_on_threads(lambda: [*_made(z, 2499), *_made(z, lengths)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    for width in (19, 32):
        z = LAYOUTS[layout](normal(seeded(8), 5, 71, width).float())
        for context in (70, torch.tensor([70, 1, 71, 33, 40])):
            plain = _made(z.contiguous().clone(), context)
            assert all(torch.equal(a, b) for a, b in zip(_made(z, context), plain, strict=True))


def test_the_gradient_of_the_matrices_may_have_any_layout() -> None:
    z, grad = normal(seeded(9), 5, 30, 21), normal(seeded(10), 5, 21, 21)
    leaf = z.requires_grad_()
    for given in (grad, grad.mT, grad[:1].expand(5, 21, 21), grad[:, :1].expand(5, 21, 21)):
        (made,) = torch.autograd.grad(context_gram(leaf, 29), leaf, given)
        exact = z[:, :29].detach() @ (given + given.mT)
        assert relative_error(made[:, :29], exact) < FLOAT64_ERROR
        assert not made[:, 29:].any()


@pytest.mark.parametrize("width", [19, 32])
def test_tokens_past_a_context_are_never_read(width: int) -> None:
    z = normal(seeded(11), 3, 50, width).float()
    for context in (33, torch.tensor([33, 1, 40])):
        spoilt = z.clone()
        for own, n in zip(spoilt, torch.as_tensor(context).expand(3).tolist(), strict=True):
            own[n:] = torch.nan
        matrix, grad = _made(spoilt, context)
        assert all(torch.equal(a, b) for a, b in zip((matrix, grad), _made(z, context), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(instruction_set: str, dtype: torch.dtype) -> None:
    z = normal(seeded(12), 3, 50, 21).to(dtype)
    for tokens in (z, z.mT.contiguous().mT):
        made, grad = _made(tokens, 47)
        exact, exact_grad = _twin(tokens.double(), 47)
        assert made.dtype == torch.float32
        assert relative_error(made.detach(), exact.detach()) < 10 * EPS
        assert grad.dtype == dtype
        assert relative_error(grad, exact_grad) < torch.finfo(dtype).eps


def test_a_task_that_is_not_finite_spoils_no_other() -> None:
    z = normal(seeded(13), 3, 40, 20).float()
    spoilt = z.clone()
    spoilt[1, 5, 7] = torch.inf
    for made, plain in zip(_made(spoilt, 39), _made(z, 39), strict=True):
        assert torch.equal(made[[0, 2]], plain[[0, 2]])
        assert not made[1].isfinite().all()


def test_derivatives() -> None:
    z = normal(seeded(14), 2, 3, 18).requires_grad_()
    for context in (2, torch.tensor([3, 1])):

        def matrix(z: Tensor, context: int | Tensor = context) -> Tensor:
            return context_gram(z, context)

        assert torch.autograd.gradcheck(matrix, (z,), fast_mode=True)
        assert torch.autograd.gradgradcheck(matrix, (z,), fast_mode=True)


def test_dispatch_by_size() -> None:
    for width, chosen in ((17, ("cpu", "tiny Gram")), (18, ("cpu", "wide Gram")), (512, ("cpu", "wide Gram"))):
        assert explain(torch.zeros(1, 2, width), context=1)[0:3:2] == chosen
    assert explain(torch.zeros(1, 2, 513), context=1)[0:3:2] == ("torch", "large")
