"""Large batches are worked through in blocks of tasks: every result must be that of one block."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends.pytorch import backend as torch_backend

BATCH, TOKENS, WIDTH = 23, 9, 4


def _arguments(ragged: bool) -> tuple[list[Tensor], int | Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    arguments = [
        draw(BATCH, TOKENS, WIDTH),
        draw(3, 2, 3, 3),
        draw(3, 2, 3, 3),
        draw(3, 3, 2, TOKENS, 1),
        draw(3, 1, 1, 4),
    ]
    lengths = torch.randint(2, TOKENS - 2, (BATCH,), generator=generator)
    return arguments, lengths if ragged else 5


def _stack(*arguments: Tensor, context: int | Tensor) -> Tensor:
    return memformer_stack(*arguments, context=context).sin()


def _predict(*arguments: Tensor, context: int | Tensor) -> Tensor:
    return memformer_predict(*arguments, context=context, queries=2, layers=True).sin()


def _loss(z: Tensor, *parameters: Tensor, context: int | Tensor) -> Tensor:
    target = torch.linspace(-1, 1, 2 * BATCH, dtype=torch.float64).view(BATCH, 2)
    return memformer_loss(z, target, *parameters, context=context, queries=2)


@pytest.mark.parametrize("ragged", [False, True], ids=["int", "ragged"])
@pytest.mark.parametrize("function", [_stack, _predict, _loss])
def test_blocks_of_tasks_equal_one_block(
    function: Callable[..., Tensor], ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, context = _arguments(ragged)
    whole = function(*arguments, context=context)
    whole_grads = torch.autograd.grad(whole.sum(), arguments)
    monkeypatch.setattr(torch_backend, "_PART_ELEMENTS", 4 * TOKENS * WIDTH)
    blocks = function(*arguments, context=context)
    block_grads = torch.autograd.grad(blocks.sum(), arguments)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block_grads, whole_grads, rtol=1e-12, atol=1e-12)
