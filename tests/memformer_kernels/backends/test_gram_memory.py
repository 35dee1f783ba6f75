"""What torch's context Gram matrices allocate, by the profiler's record of every allocation."""

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, explain
from memformer_kernels.testing import relative_error
from tests.marks import slow_but
from tests.memformer_kernels.allocations import peak_bytes
from tests.memformer_kernels.cases import seeded


def _tokens(dtype: torch.dtype) -> Tensor:
    return torch.randn(40, 1000, 520, generator=seeded(1)).to(dtype)


@pytest.mark.parametrize("dtype", slow_but([torch.bfloat16], [torch.bfloat16, torch.float16]), ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_half_precision_is_widened_a_piece_at_a_time(dtype: torch.dtype, ragged: bool) -> None:
    z = _tokens(dtype)
    context = torch.arange(961, 1001) if ragged else 990
    assert explain(z, context=context).backend == "torch"
    made = context_gram(z, context)
    assert peak_bytes(lambda: context_gram(z, context)) < made.nbytes + z.nbytes
    lengths = context if isinstance(context, Tensor) else torch.full((40,), context)
    rows = torch.where((torch.arange(1000) < lengths[:, None])[:, :, None], z.double(), 0.0)
    assert relative_error(made, rows.mT @ rows) < 1e-5

    leaf = z.clone().requires_grad_()
    out = context_gram(leaf, context)
    grad = torch.randn(out.shape, generator=seeded(2))
    assert peak_bytes(lambda: out.backward(grad)) < 2 * z.nbytes  # the gradient itself is one of them
    assert leaf.grad is not None
    assert relative_error(leaf.grad, rows @ (grad + grad.mT).double()) < 1e-2


def test_a_context_longer_than_a_piece_is_the_sum_of_its_pieces() -> None:
    z = torch.randn(2, 9000, 520, generator=seeded(3), dtype=torch.float64).requires_grad_()
    for context in (8999, torch.tensor([7000, 9000])):
        made = context_gram(z, context)
        lengths = context if isinstance(context, Tensor) else torch.full((2,), context)
        rows = torch.where((torch.arange(9000) < lengths[:, None])[:, :, None], z, 0.0)
        expected = rows.mT @ rows
        assert relative_error(made.detach(), expected.detach()) < 1e-12
        grad = torch.randn(made.shape, generator=seeded(4), dtype=torch.float64)
        (ours,), (theirs,) = torch.autograd.grad(made, z, grad), torch.autograd.grad(expected, z, grad)
        assert relative_error(ours, theirs) < 1e-12
