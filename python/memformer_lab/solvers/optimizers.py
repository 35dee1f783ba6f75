"""Classical optimisers on batches of quadratics w^T h w / 2 - b^T w, each task with its own optimal parameters.

Every iterative method is a function `(h, b, steps) -> (steps, B, d)`: the iterates after each step from w_0 = 0, for
h (B, d, d) symmetric positive semi-definite and b (B, d) in its range, both float32 or both float64. Step sizes and
momenta are the standard ones for the task's own extreme eigenvalues L and mu. Eigenvalues up to d * eps * L count as
zero, so mu is the smallest non-zero one and every method heads for the minimum-norm solution where h is singular.

All of them raise TypeError for other dtypes and ValueError for shapes that do not fit or steps < 1. They work with the
batch axis last, read tensors stored that way without a copy, and return a view of such a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from memformer_lab.tasks.gaussian import product


def gradient_descent(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """Gradient descent with the step 2 / (L + mu), the fastest constant one (Polyak 1964)."""
    check_quadratics(h, b, steps)
    largest, smallest = _extreme_eigenvalues(h)
    return _descend(h, b, steps, 2 * _reciprocal(largest + smallest), torch.zeros_like(largest), look_ahead=False)


def momentum(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """Polyak's heavy ball, w_{k+1} = w_k - step g(w_k) + inertia (w_k - w_{k-1}) (Polyak 1964).

    step = (2 / (sqrt(L) + sqrt(mu)))^2 and inertia = ((sqrt(kappa) - 1) / (sqrt(kappa) + 1))^2, kappa = L / mu.
    """
    check_quadratics(h, b, steps)
    largest, smallest = (value.sqrt() for value in _extreme_eigenvalues(h))
    inverse = _reciprocal(largest + smallest)
    return _descend(h, b, steps, (2 * inverse) ** 2, ((largest - smallest) * inverse) ** 2, look_ahead=False)


def nesterov(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """Nesterov's method, v = w_k + inertia (w_k - w_{k-1}), w_{k+1} = v - step g(v), tuned for quadratics.

    step = 4 / (3 L + mu) and inertia = (sqrt(3 kappa + 1) - 2) / (sqrt(3 kappa + 1) + 2), kappa = L / mu
    (Lessard, Recht and Packard, arXiv 1408.3595, proposition 1).
    """
    check_quadratics(h, b, steps)
    largest, smallest = _extreme_eigenvalues(h)
    root, twice = (3 * largest + smallest).sqrt(), 2 * smallest.sqrt()
    inertia = (root - twice) * _reciprocal(root + twice)
    return _descend(h, b, steps, 4 * _reciprocal(3 * largest + smallest), inertia, look_ahead=True)


def conjugate_gradient(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """The conjugate gradient method of Hestenes and Stiefel (1952): exact after d steps but for rounding.

    A task stops moving once its residual is at rounding level, d * eps * ||b||, where further directions are noise.
    """
    check_quadratics(h, b, steps)
    h, b = h.permute(1, 2, 0).contiguous(), b.T.contiguous()
    iterates = b.new_empty(steps, *b.shape)
    w, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = residual.square().sum(0)
    floor = square * (len(b) * torch.finfo(b.dtype).eps) ** 2
    for iterate in iterates:
        image = product(h, direction)
        curvature = (direction * image).sum(0)
        # Written so that a comparison with NaN does not stop a task: non-finite problems stay visibly non-finite.
        stopped = (square <= floor) | (curvature <= 0)
        step = (square / curvature).masked_fill_(stopped, 0)
        torch.addcmul(w, step, direction, out=iterate)
        w = iterate
        residual.addcmul_(step, image, value=-1)
        previous, square = square, residual.square().sum(0)
        direction.mul_((square / previous).masked_fill_(stopped, 0)).add_(residual)
    return iterates.mT


def iterative_newton(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """Newton's iteration for the inverse, M_{k+1} = 2 M_k - M_k h M_k, w_k = M_k b (Schulz 1933; arXiv 2310.17086).

    M_0 = alpha h^T with alpha = 2 / (L^2 + mu^2), which minimises the spectral radius of I - M_0 h on h's range.
    """
    check_quadratics(h, b, steps)
    largest, smallest = _extreme_eigenvalues(h)
    h, column = h.contiguous(), b.unsqueeze(-1)
    inverse = 2 * _reciprocal(largest.square() + smallest.square())[:, None, None] * h.mT
    iterates = b.new_empty(steps, *b.shape)
    for iterate in iterates:
        inverse = 2 * inverse - inverse @ h @ inverse
        iterate.copy_((inverse @ column).squeeze(-1))
    return iterates


OPTIMIZERS: MappingProxyType[str, Callable[[Tensor, Tensor, int], Tensor]] = MappingProxyType(
    {
        "gradient_descent": gradient_descent,
        "momentum": momentum,
        "nesterov": nesterov,
        "conjugate_gradient": conjugate_gradient,
        "iterative_newton": iterative_newton,
    }
)
"""The iterative methods by name."""


def ols(h: Tensor, b: Tensor) -> Tensor:
    """Ordinary least squares, h^+ b: (B, d), the minimum-norm solution where h is singular."""
    check_quadratics(h, b)
    values, vectors = torch.linalg.eigh(h)
    inverses = _reciprocal(values * (values > _rank_tolerance(values)))
    solution: Tensor = vectors @ (inverses.unsqueeze(-1) * (vectors.mT @ b.unsqueeze(-1)))
    return solution.squeeze(-1)


def ridge(h: Tensor, b: Tensor, penalty: float) -> Tensor:
    """Ridge regression, (h + penalty I)^-1 b: (B, d), the minimiser of ||y - X w||^2 / (2 n) + penalty ||w||^2 / 2.

    For w* ~ N(0, I) and response noise sigma the best linear predictor has penalty sigma^2 / n.

    Raises:
        TypeError: for dtypes other than float32 and float64.
        ValueError: for shapes that do not fit or a penalty that is not positive and finite.
    """
    check_quadratics(h, b)
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty must be positive and finite, got {penalty}")
    identity = torch.eye(b.shape[1], dtype=h.dtype, device=h.device)
    solution: Tensor = torch.linalg.solve(h + penalty * identity, b)
    return solution


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


def _descend(h: Tensor, b: Tensor, steps: int, step: Tensor, inertia: Tensor, *, look_ahead: bool) -> Tensor:
    """Gradient steps with inertia; the gradient is taken at w, or at w + inertia * (last move) with look_ahead."""
    h, b = h.permute(1, 2, 0).contiguous(), b.T.contiguous()
    iterates = b.new_empty(steps, *b.shape)
    w, move = torch.zeros_like(b), torch.zeros_like(b)
    for iterate in iterates:
        coast = inertia * move
        gradient = product(h, w + coast if look_ahead else w) - b
        move = coast - step * gradient
        torch.add(w, move, out=iterate)
        w = iterate
    return iterates.mT


def _extreme_eigenvalues(h: Tensor) -> tuple[Tensor, Tensor]:
    """L and mu of each task, (B,) and (B,): the largest eigenvalue and the smallest that is not zero."""
    values = torch.linalg.eigvalsh(h)
    largest = values[:, -1].clamp(min=0)
    zero = values <= _rank_tolerance(values)
    return largest, torch.where(zero, largest.unsqueeze(1), values).amin(1)


def _rank_tolerance(eigenvalues: Tensor) -> Tensor:
    """d * eps * L for ascending eigenvalues (B, d): (B, 1)."""
    return eigenvalues[:, -1:].clamp(min=0) * (eigenvalues.shape[1] * torch.finfo(eigenvalues.dtype).eps)


def _reciprocal(x: Tensor) -> Tensor:
    """1 / x, and 0 where x = 0: a task without curvature has b = 0 and need not move."""
    return torch.where(x == 0, 0, x.reciprocal())


def check_quadratics(h: Tensor, b: Tensor, steps: int = 1) -> None:
    """Raise ValueError or TypeError for what is no batch of quadratics, or no number of steps."""
    if h.ndim != 3 or h.shape[1] != h.shape[2] or b.shape != h.shape[:2] or h.shape[1] == 0:
        raise ValueError(f"h and b must be (B, d, d) and (B, d) with d >= 1, got {tuple(h.shape)} and {tuple(b.shape)}")
    if h.dtype != b.dtype or h.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"h and b must both be float32 or both float64, got {h.dtype} and {b.dtype}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
