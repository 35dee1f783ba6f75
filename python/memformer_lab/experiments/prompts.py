"""Predictions at several prompt lengths, of algorithms and of networks, and how similar their errors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.optimizers import OPTIMIZERS, ols
from memformer_lab.tasks.gaussian import GaussianTasks

Predictions = dict[str, Tensor]
"""By label: (lengths, B), the prediction of y_{t+1} from x_{t+1} and t examples, for each length t."""


def draw_prompts(tasks: GaussianTasks, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """x (batch, n + 1, d) and y (batch, n + 1), every response given."""
    drawn = tasks.tokens(batch, generator, queries=1)
    y = drawn.z[..., -1].clone()
    y[:, -1] = drawn.target[:, 0]
    return drawn.z[..., :-1], y


def memformer_predictions(model: Memformer, x: Tensor, y: Tensor, lengths: Sequence[int]) -> Tensor:
    """(lengths, B), of the last layer."""
    found = []
    for length in lengths:
        z = torch.cat([x[:, : length + 1], y[:, : length + 1, None]], dim=-1)
        z[:, length, -1] = 0
        with torch.no_grad():
            found.append(model.predict(z, context=length)[:, 0])
    return torch.stack(found)


def algorithm_predictions(
    x: Tensor, y: Tensor, lengths: Sequence[int], iterations: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Predictions of optimisers after some iterations, in float64.

    Args:
        x: (B, T, d).
        y: (B, T).
        lengths: examples known, each below T.
        iterations: for a name of `OPTIMIZERS` the iterations, in increasing order.

    Returns:
        By name (iterations, lengths, B); and under "ols" (1, lengths, B) those of the minimum-norm solution.
    """
    x, y = x.double(), y.double()
    found: dict[str, list[Tensor]] = {name: [] for name in (*iterations, "ols")}
    for length in lengths:
        known, responses, query = x[:, :length], y[:, :length], x[:, length]
        h = known.mT @ known / length
        b = (known * responses.unsqueeze(-1)).sum(1) / length
        for name, steps in iterations.items():
            iterates = OPTIMIZERS[name](h, b, steps[-1])[[step - 1 for step in steps]]
            found[name].append((iterates * query).sum(-1))
        found["ols"].append((ols(h, b) * query).sum(-1)[None])
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def similarity(one: Tensor, other: Tensor, truth: Tensor) -> float:
    """Mean over tasks of the cosine between two predictors' errors over prompt lengths; all are (lengths, B).

    (Fu et al., arXiv 2310.17086.) Tasks where an error vector is zero or not finite are left out.
    """
    first, second = one.double() - truth.double(), other.double() - truth.double()
    norms = first.norm(dim=0) * second.norm(dim=0)
    cosine = (first * second).sum(0) / norms
    usable = cosine.isfinite() & (norms > 0)
    return float(cosine[usable].mean()) if bool(usable.any()) else float("nan")


def best_match(predictions: Tensor, iterates: Tensor, truth: Tensor) -> tuple[int, float]:
    """The place of the iterate whose errors are most similar to those of some predictions, and that similarity.

    Args:
        predictions: (lengths, B).
        iterates: (iterations, lengths, B).
        truth: (lengths, B).
    """
    found = [similarity(predictions, one, truth) for one in iterates]
    place = max(range(len(found)), key=lambda k: (found[k] == found[k], found[k]))
    return place, found[place]
