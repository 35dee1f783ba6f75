"""A first-order method whose coefficients are those of each task, in operations that autograd follows.

    g_l = b - h w_l;   r_l = -a_l g_l + beta_l * r_{l-1};   w_{l+1} = w_l + sum_{j<=l} gamma_{l,j} * r_j

with gamma (B, L, L, d) and beta (B, L, d), or either of them the same for all tasks. Derivatives of every order and all
transforms are those of the operations below, so there is no backward pass to keep in step with.
"""

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import Quadratics, compute_dtype


def solve(quadratics: Quadratics, layers: bool) -> Tensor:
    """The weights after each step, (L, B, d) or (L, B, d, m), or the last alone, with 1 in the place of L."""
    dtype = compute_dtype(quadratics.h)
    with torch.autocast(quadratics.h.device.type, enabled=False):
        h, b, a = (one.to(dtype) for one in quadratics[:3])
        gamma, beta, w0 = (None if one is None else one.to(dtype) for one in quadratics[3:])
        iterates = _iterates(h, b, a, gamma, beta, w0)
        made = torch.stack(iterates if layers else iterates[-1:])
        return made.squeeze(2) if b.ndim == 2 else made.mT.contiguous()


def _iterates(
    h: Tensor, b: Tensor, a: Tensor, gamma: Tensor | None, beta: Tensor | None, w0: Tensor | None
) -> list[Tensor]:
    """Weights as rows (B, m, d) after each step: the columns of b share h and the coefficients."""
    steps = a.shape[0]
    if gamma is not None:
        gamma = _with_axes(gamma, 4)
        gamma = gamma.expand(gamma.shape[0], steps, steps, gamma.shape[3])
    if beta is not None:
        beta = _with_axes(beta, 3)
        beta = beta.expand(beta.shape[0], steps, beta.shape[2])
    rows = _rows(b, b)
    weights = torch.zeros_like(rows) if w0 is None else _rows(w0, b)
    registers: list[Tensor] = []
    found: list[Tensor] = []
    for step in range(steps):
        register = -((rows - weights @ h.mT) @ a[step].mT)
        if beta is not None and registers:
            register = register + beta[:, step, None] * registers[-1]
        registers.append(register)
        if gamma is None:
            weights = weights + register
        else:
            for place, earlier in enumerate(registers):
                weights = weights + gamma[:, step, place, None] * earlier
        found.append(weights)
    return found


def _with_axes(coefficients: Tensor, axes: int) -> Tensor:
    """With as many axes, of which those in front are 1."""
    return coefficients.reshape((1,) * (axes - coefficients.ndim) + coefficients.shape)


def _rows(vectors: Tensor, b: Tensor) -> Tensor:
    """Vectors (B, d) or their columns (B, d, m), as b has them, as rows (B, m, d)."""
    return vectors[:, None] if b.ndim == 2 else vectors.mT
