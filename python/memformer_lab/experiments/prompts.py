"""Predictions at every prompt length, of algorithms and of networks, and how similar their errors are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.optimizers import OPTIMIZERS, bfgs, ols, online_gradient_descent
from memformer_lab.tasks.gaussian import GaussianTasks

Predictions = dict[str, Tensor]
"""By label: (lengths, B), the prediction of y_{t+1} from x_{t+1} and t examples, for each length t."""

_ITERATIONS = (1, 2, 4, 8)
_NEWTON = (1, 2, 4, 8)
_ONLINE_STEP = 0.1


def draw_prompts(tasks: GaussianTasks, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """x (batch, n + 1, d) and y (batch, n + 1), every response given."""
    drawn = tasks.tokens(batch, generator, queries=1)
    y = drawn.z[..., -1].clone()
    y[:, -1] = drawn.target[:, 0]
    return drawn.z[..., :-1], y


def memformer_predictions(model: Memformer, x: Tensor, y: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """For each layer (lengths, B)."""
    found = []
    for length in lengths:
        z = torch.cat([x[:, : length + 1], y[:, : length + 1, None]], dim=-1)
        z[:, length, -1] = 0
        with torch.no_grad():
            found.append(model.predict(z, context=length, layers=True)[..., 0])
    return list(torch.stack(found, dim=1))


def algorithm_predictions(x: Tensor, y: Tensor, lengths: Sequence[int]) -> Predictions:
    """Of GD, online GD, CGD, BFGS, L-BFGS and Newton after some iterations, and of minimum-norm OLS; in float64."""
    x, y = x.double(), y.double()
    online = online_gradient_descent(x, y, _ONLINE_STEP)
    found: dict[str, list[Tensor]] = {}
    for length in lengths:
        known, responses, query = x[:, :length], y[:, :length], x[:, length]
        h = known.mT @ known / length
        b = (known * responses.unsqueeze(-1)).sum(1) / length
        weights: dict[str, Tensor] = {}
        for label, name in (("GD", "gradient_descent"), ("CGD", "conjugate_gradient")):
            iterates = OPTIMIZERS[name](h, b, _ITERATIONS[-1])
            weights |= {_after(label, k): iterates[k - 1] for k in _ITERATIONS}
        weights["BFGS, 4 steps"] = bfgs(h, b, 4)[-1]
        weights["L-BFGS, 4 steps"] = bfgs(h, b, 4, memory=2)[-1]
        iterates = OPTIMIZERS["iterative_newton"](h, b, _NEWTON[-1])
        weights |= {_after("Newton", k): iterates[k - 1] for k in _NEWTON}
        weights["online GD"] = online[length - 1]
        weights["OLS"] = ols(h, b)
        for label, w in weights.items():
            found.setdefault(label, []).append((query * w).sum(-1))
    return {label: torch.stack(values) for label, values in found.items()}


def _after(label: str, steps: int) -> str:
    return f"{label}, {steps} step{'s' if steps > 1 else ''}"


def similarity(one: Tensor, other: Tensor, truth: Tensor) -> float:
    """Mean over tasks of the cosine between two predictors' errors over prompt lengths; all are (lengths, B).

    (Fu et al., arXiv 2310.17086.) Tasks where an error vector is zero or not finite are left out.
    """
    first, second = one.double() - truth.double(), other.double() - truth.double()
    norms = first.norm(dim=0) * second.norm(dim=0)
    cosine = (first * second).sum(0) / norms
    usable = cosine.isfinite() & (norms > 0)
    return float(cosine[usable].mean()) if bool(usable.any()) else float("nan")
