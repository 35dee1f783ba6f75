"""Solvers of the tasks themselves, batched, through torch.linalg: what a learned optimiser is held against.

Each predicts the query of every task z (B, N, D) as x_query . w (B, N - n), from its n examples alone: by `steps` steps
of conjugate gradients on the normal equations, or by their exact solution. `krylov` and `least_squares` find the same
in other ways, for the gate: slow and exact.
"""

import torch
from torch import Tensor


def conjugate_gradient(z: Tensor, n: int, steps: int) -> Tensor:
    """As many steps of batched conjugate gradients on X^T X w = X^T y as the network has layers, from w = 0."""
    h, b = _normal_equations(z, n)
    w = torch.zeros_like(b)
    residual = direction = b
    square = residual.square().sum(1, keepdim=True)
    for step in range(steps):
        product = torch.bmm(h, direction)
        # A task that is solved has a residual of 0 and stays where it is.
        length = square / (direction * product).sum(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
        w = w + length * direction
        if step + 1 < steps:
            residual = residual - length * product
            before, square = square, residual.square().sum(1, keepdim=True)
            direction = residual + square / before.clamp_min(torch.finfo(z.dtype).tiny) * direction
    return _predict(z, w, n)


def cholesky(z: Tensor, n: int, steps: int) -> Tensor:
    """The least squares solution by the normal equations' Cholesky factors; `steps` is not needed."""
    h, b = _normal_equations(z, n)
    return _predict(z, torch.cholesky_solve(b, torch.linalg.cholesky(h)), n)


def krylov(z: Tensor, n: int, steps: int) -> Tensor:
    """What that many steps of conjugate gradients reach: the minimum over the span of b, H b, H^2 b, ..."""
    h, b = _normal_equations(z, n)
    basis = [b / torch.linalg.vector_norm(b, dim=1, keepdim=True)]
    for _ in range(steps - 1):
        grown = torch.cat([*basis, torch.bmm(h, basis[-1])], dim=2)
        basis.append(torch.linalg.qr(grown)[0][:, :, -1:])
    span = torch.cat(basis, dim=2)
    inner = torch.linalg.solve(torch.bmm(span.mT, torch.bmm(h, span)), torch.bmm(span.mT, b))
    return _predict(z, torch.bmm(span, inner), n)


def least_squares(z: Tensor, n: int, steps: int) -> Tensor:
    """The least squares solution on the examples themselves, without normal equations."""
    return _predict(z, torch.linalg.lstsq(z[:, :n, :-1], z[:, :n, -1:]).solution, n)


def _normal_equations(z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    gram = torch.bmm(z[:, :n].mT, z[:, :n])
    return gram[:, :-1, :-1], gram[:, :-1, -1:]


def _predict(z: Tensor, w: Tensor, n: int) -> Tensor:
    return torch.bmm(z[:, n:, :-1], w)[..., 0]
