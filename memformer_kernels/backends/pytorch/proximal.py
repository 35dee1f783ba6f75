"""What the steps of a first-order method end in, and its transpose: shrinkage and bounds, or a projection onto a ball.

With t = max(level, 0) and rho = max(radius, 0),

    prox(w) = clamp(sign(w) max(|w| - t, 0), lower, upper)        of t ||w||_1 and lower <= w <= upper
    prox(w) = w min(1, rho / ||w||)                               of ||w|| <= rho

The first is a prox coordinate by coordinate: of a convex function of one number, the minimum over an interval is the
point of the interval next to its minimum. Where a prox has a kink the derivative is that of torch's softshrink and
clamp; on the sphere of a ball it is that inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.memory import over_tasks
from memformer_kernels.calls.arguments import Proximal


@dataclass(frozen=True)
class ProximalSteps:
    """The prox of each layer, on states s = -w (B, m, d) of the response recurrence."""

    proximal: Proximal

    def after(self, layer: int, state: Tensor) -> Tensor:
        """The state after the prox."""
        return -_prox(-state, self._of(layer))

    def pull_back(self, layer: int, state: Tensor, grad: Tensor) -> tuple[Tensor, Proximal]:
        """Gradients of the state before the prox, and of the layer's own parameters, from that of the state after it.

        The sign of w = -s cancels for the state, and is the parameters' alone.
        """
        own = self._of(layer)
        grad, parameters = _pull_back(-state, own, grad)
        sums = [
            None if x is None or parameter is None else over_tasks(-x, parameter.shape)
            for x, parameter in zip(parameters, own, strict=True)
        ]
        return grad, Proximal._make(sums)

    def total(self, grads: Sequence[Proximal]) -> list[Tensor | None]:
        """Gradients of the parameters as they were given, from those of each layer."""
        made: list[Tensor | None] = []
        for parameter, layers in zip(self.proximal, zip(*grads, strict=True), strict=True):
            if parameter is None:
                made.append(None)
                continue
            stacked = torch.stack([x for x in layers if x is not None])
            made.append(stacked.sum_to_size(_by_layer(parameter).shape).reshape(parameter.shape))
        return made

    def _of(self, layer: int) -> Proximal:
        spread = [None if x is None else _by_layer(x) for x in self.proximal]
        return Proximal._make(None if x is None else x[layer % x.shape[0]] for x in spread)


def _by_layer(parameter: Tensor) -> Tensor:
    """With both axes, (L or 1, d or 1)."""
    return parameter.reshape((1,) * (2 - parameter.ndim) + tuple(parameter.shape))


def _prox(w: Tensor, own: Proximal) -> Tensor:
    """The prox at w (B, m, d) with one layer's parameters (d or 1,)."""
    if own.radius is not None:
        inside, unit, _, rho = _direction(w, own.radius)
        return torch.where(inside, w, rho * unit)
    shrunk = _shrunk(w, own.level)
    return shrunk if own.lower is None and own.upper is None else shrunk.clamp(own.lower, own.upper)


def _shrunk(w: Tensor, level: Tensor | None) -> Tensor:
    if level is None:
        return w
    t = level.clamp(min=0)
    return w - w.clamp(-t, t)


def _direction(w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which w are inside the ball, w / ||w||, ||w|| and rho; the last two are 1 inside, where nothing reads them.

    So nothing divides by 0 or multiplies with an infinite radius, in derivatives either. A NaN is not inside.
    """
    rho = radius.clamp(min=0)
    squares = w.square().sum(-1, keepdim=True)
    inside = squares <= rho.square()
    norm = torch.where(inside, 1.0, squares).sqrt()
    return inside, w / norm, norm, torch.where(inside, 1.0, rho)


def _pull_back(w: Tensor, own: Proximal, grad: Tensor) -> tuple[Tensor, Proximal]:
    """Gradients of w and, task by task, of the parameters, from that of the prox at w."""
    if own.radius is not None:
        inside, unit, norm, rho = _direction(w, own.radius)
        along = (unit * grad).sum(-1, keepdim=True)
        through = torch.where(inside, grad, rho / norm * (grad - unit * along))
        return through, Proximal(None, None, None, torch.where(inside | (own.radius < 0), 0.0, along))
    level = lower = upper = None
    if own.lower is not None or own.upper is not None:
        shrunk = _shrunk(w, own.level)
        below = torch.zeros_like(shrunk, dtype=torch.bool) if own.lower is None else shrunk < own.lower
        above = torch.zeros_like(below) if own.upper is None else shrunk > own.upper
        crossed = None if own.lower is None or own.upper is None else own.lower > own.upper
        if own.lower is not None:
            lower = torch.where(below if crossed is None else below & ~crossed, grad, 0.0)
        if own.upper is not None:
            upper = torch.where(above if crossed is None else above | crossed, grad, 0.0)
        grad = torch.where(below | above, 0.0, grad)
    if own.level is not None:
        moved = w.abs() <= own.level.clamp(min=0)
        grad = torch.where(moved, 0.0, grad)
        level = torch.where(own.level >= 0, -w.sign() * grad, 0.0)
    return grad, Proximal(level, lower, upper, None)
