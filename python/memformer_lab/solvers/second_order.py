"""Further solvers for quadratics: online gradient descent, BFGS and L-BFGS, for the comparison of algorithms."""

from __future__ import annotations

import torch
from torch import Tensor


def online_gradient_descent(x: Tensor, y: Tensor, step: float) -> Tensor:
    """One pass over the examples, w <- w - step (x.w - y) x: the weights after every example, (n, B, d).

    Args:
        x: (B, n, d).
        y: (B, n).
        step: the same for all examples.
    """
    w = x.new_zeros(x.shape[0], x.shape[2])
    rows = []
    for t in range(x.shape[1]):
        row = x[:, t]
        residual = (row * w).sum(-1, keepdim=True) - y[:, t : t + 1]
        w = w - step * residual * row
        rows.append(w)
    return torch.stack(rows)


def bfgs(h: Tensor, b: Tensor, steps: int, memory: int | None = None) -> Tensor:
    """BFGS from w = 0 with exact line searches, or L-BFGS with the last `memory` pairs: (steps, B, d).

    The inverse Hessian starts as the identity. On a quadratic with exact line searches full BFGS takes the steps of
    conjugate gradients (Nazareth 1979), and so does L-BFGS with any memory of at least 1. A task whose gradient is at
    rounding level stays where it is.
    """
    w = torch.zeros_like(b)
    gradient = -b
    pairs: list[tuple[Tensor, Tensor]] = []
    floor = (b.shape[1] * torch.finfo(b.dtype).eps) ** 2 * b.square().sum(-1, keepdim=True)
    rows = []
    for _ in range(steps):
        direction = -_two_loop(gradient, pairs)
        image = (h @ direction.unsqueeze(-1)).squeeze(-1)
        curvature = (direction * image).sum(-1, keepdim=True)
        slope = (direction * gradient).sum(-1, keepdim=True)
        # At rounding level further directions are noise.
        moving = (gradient.square().sum(-1, keepdim=True) > floor) & (curvature > 0)
        step = torch.where(moving, -slope / curvature, 0.0)
        w = w + step * direction
        gradient = gradient + step * image
        pairs.append((step * direction, step * image))
        if memory is not None:
            pairs = pairs[-memory:]
        rows.append(w)
    return torch.stack(rows)


def _two_loop(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian approximation times the gradient (Nocedal 1980)."""
    direction, weights = gradient, []
    for move, change in reversed(pairs):
        product = (move * change).sum(-1, keepdim=True)
        inverse = torch.where(product > torch.finfo(gradient.dtype).tiny, product.reciprocal(), 0.0)
        weight = inverse * (move * direction).sum(-1, keepdim=True)
        direction = direction - weight * change
        weights.append((inverse, weight))
    for (move, change), (inverse, weight) in zip(pairs, reversed(weights), strict=True):
        direction = direction + move * (weight - inverse * (change * direction).sum(-1, keepdim=True))
    return direction
