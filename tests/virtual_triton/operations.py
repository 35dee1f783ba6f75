"""Operations of the Triton backend and their gradients, on seeded tensors of given shapes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memformer_kernels import lfom_solve, linear_attention, memformer_layer, memformer_predict, register_update
from memformer_kernels.torch_ops import ops
from tests.memformer_kernels.cases import normal, seeded


def layer(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, q, past, gamma = leaves
    return memformer_layer(z, q, q.mT, [past], gamma, gamma[0], context=z.shape[1] - 2, backend=backend)


def solve(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    h, b, a, gamma, beta = leaves
    return (lfom_solve(h, b, a, gamma, beta, w0=b / 2, layers=True, backend=backend),)


def gram(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return (ops.context_gram(leaves[0], None, leaves[0].shape[1] - 3, backend),)


def attention(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(linear_attention(*leaves, causal=causal, backend=backend) for causal in (False, True))


def update(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, *registers, gamma = leaves
    return (register_update(z, registers, gamma, backend=backend),)


def wide(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, q, gamma, beta = leaves
    return (memformer_predict(z, q, q, gamma, beta, backend=backend),)


Operation = tuple[Callable[[str, list[Tensor]], tuple[Tensor, ...]], list[tuple[int, ...]]]

OPERATIONS: dict[str, Operation] = {
    "layer, 6 wide": (layer, [(5, 9, 6), (1, 6, 6), (5, 1, 9, 6), (2, 1, 1, 6)]),
    "layer, 24 wide": (layer, [(2, 40, 24), (1, 24, 24), (2, 1, 40, 24), (2, 1, 40, 24)]),
    "quadratics, 5 wide": (solve, [(70, 5, 5), (70, 5), (3, 5, 5), (3, 3, 5), (3, 5)]),
    "quadratics, 40 wide": (solve, [(3, 40, 40), (3, 40), (3, 40, 40), (3, 3, 1), (3, 40)]),
    "Gram matrix, 6 wide": (gram, [(5, 20, 6)]),
    "Gram matrix, 70 wide": (gram, [(2, 700, 70)]),
    "attention, 5 wide": (attention, [(2, 70, 2, 5), (2, 70, 2, 5), (2, 70, 2, 7)]),
    "attention, 64 wide": (attention, [(1, 300, 1, 64), (1, 300, 1, 64), (1, 300, 1, 64)]),
    "attention, 130 wide": (attention, [(1, 40, 1, 130), (1, 40, 1, 130), (1, 40, 1, 130)]),
    "update by columns": (update, [(5, 7, 33), (5, 7, 33), (5, 7, 33), (2, 33)]),
    "update by rows": (update, [(5, 70, 3), (5, 70, 3), (5, 70, 3), (2, 70, 1)]),
    "update of one number a row": (update, [(5, 70, 1), (5, 70, 1), (1, 70, 1)]),
    "wide network": (wide, [(2, 9, 130), (2, 1, 130, 130), (2, 2, 1, 1, 130), (2, 1, 1, 130)]),
    "wide network by tokens": (wide, [(2, 9, 130), (2, 1, 130, 130), (2, 2, 1, 9, 130), (2, 1, 9, 1)]),
}


def with_gradients(
    call: Callable[[str, list[Tensor]], tuple[Tensor, ...]],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """Results of a call, and the gradients of a scalar of them all."""
    generator = seeded(2)
    leaves = [normal(generator, *shape, scale=0.7 * shape[-1] ** -0.5).to(dtype).requires_grad_() for shape in shapes]
    made = call(backend, leaves)
    total = torch.stack([x.sin().sum() for x in made]).sum()
    return [*(x.detach() for x in made), *torch.autograd.grad(total, leaves)]
