"""Errors of networks and solvers on fresh tasks that training never draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.solvers.estimates import CHUNK, ErrorSampler, Estimate, estimate, log_of
from memformer_lab.solvers.first_order import Draw, Tasks, drawer, first_order_method
from memformer_lab.solvers.optimizers import OPTIMIZERS
from memformer_lab.solvers.tails import tail_index, trimmed_mean
from memformer_lab.tasks.gaussian import GaussianTasks, Quadratics
from memformer_lab.tasks.seeds import generator_for

Solver = Callable[[Tensor, Tensor], Tensor]
"""(h (B, d, d), b (B, d)) -> weights (rows, B, d)."""


class Predictor(Protocol):
    """What predicts queries from tokens, such as a `Memformer`."""

    def predict(self, z: Tensor, *, context: int, layers: bool = False) -> Tensor: ...


class QuadraticTasks(Protocol):
    """Tasks that are drawn as quadratics, with the factor C of their one covariance C C^T."""

    @property
    def factor(self) -> Tensor: ...

    def quadratics(self, batch: int, generator: Generator) -> Quadratics: ...


def weight_errors(weights: Tensor, quadratics: Quadratics, factor: Tensor) -> Tensor:
    """(w - w*)^T Sigma (w - w*), the expected squared error of a random query, with Sigma = factor factor^T.

    Args:
        weights: (rows, B, d).
        quadratics: the tasks.
        factor: (d, d).

    Returns:
        (rows, B).
    """
    return ((weights - quadratics.weights) @ factor).square().sum(-1)


def quadratics_of(z: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """H = X^T X / n (B, d, d) and b = X^T y / n (B, d) of the context of tokens z (B, N, d + 1)."""
    gram = context_gram(z, context) / context
    return gram[:, :-1, :-1], gram[:, :-1, -1]


def query_errors(weights: Tensor, z: Tensor, target: Tensor) -> Tensor:
    """(B,) mean squared errors of w . x over the queries of each task.

    Args:
        weights: (B, d).
        z: (B, N, d + 1) tokens, the queries last.
        target: (B, queries).
    """
    x = z[:, -target.shape[1] :, :-1]
    return ((x @ weights.unsqueeze(-1)).squeeze(-1) - target).square().mean(1)


def solver_errors(tasks: QuadraticTasks, solvers: Sequence[Solver]) -> ErrorSampler:
    """Errors of several solvers, row after row, on the same sampled sufficient statistics, the query integrated out."""

    def sample(batch: int, generator: torch.Generator) -> Tensor:
        quadratics = tasks.quadratics(batch, generator)
        factor = tasks.factor.to(quadratics.b)
        weights = (solver(quadratics.h, quadratics.b) for solver in solvers)
        return torch.cat([weight_errors(rows, quadratics, factor) for rows in weights])

    return sample


def steps_of(name: str, steps: int) -> Solver:
    """A classical optimiser as a solver with one row a step."""
    return lambda h, b: OPTIMIZERS[name](h, b, steps)


def preconditioned_steps(name: str, preconditioner: Tensor, steps: int) -> Solver:
    """A classical optimiser with a preconditioner A = C C^T: it runs in the coordinates v of w = C v.

    Args:
        name: of `OPTIMIZERS`.
        preconditioner: A, (d, d); of what is not symmetric the symmetric part. Eigenvalues below a millionth of the
            largest count as that.
        steps: one row each.
    """
    values, vectors = torch.linalg.eigh(0.5 * (preconditioner + preconditioner.T).double())
    root = vectors * values.clamp(min=1e-6 * float(values[-1].abs())).sqrt()

    def solve(h: Tensor, b: Tensor) -> Tensor:
        c = root.to(b)
        weights: Tensor = OPTIMIZERS[name](c.T @ h @ c, b @ c, steps) @ c.T
        return weights

    return solve


def model_errors(models: Sequence[Memformer], tasks: Tasks, queries: int = 1, *, layers: bool = False) -> ErrorSampler:
    """Errors of several models on the same tasks, row after row, by the quickest way.

    Response-only models run as solvers on sampled quadratics, others on sampled statistics with the query integrated
    out, or on tokens.

    Args:
        models: what is judged.
        tasks: the distribution.
        queries: random queries a task, where tokens are drawn.
        layers: a row for every layer of a model in place of the last alone.
    """
    methods = [first_order_method(model) for model in models]
    if isinstance(tasks, GaussianTasks) and tasks.n >= tasks.d and all(methods):
        return solver_errors(tasks, [method.solver(layers=layers) for method in methods if method])
    return network_errors(models, drawer(models, tasks, queries), layers=layers)


def network_errors(models: Sequence[Predictor], draw: Draw, *, layers: bool = False) -> ErrorSampler:
    """Errors of several models on the same tasks, row after row; they have gradients where those are asked for."""

    def sample(batch: int, generator: Generator) -> Tensor:
        tasks = draw(batch, generator)
        rows = []
        for model in models:
            predictions = model.predict(tasks.z, context=tasks.context, layers=layers)
            errors = (predictions - tasks.target).square().mean(-1) * tasks.query_scale
            rows.append(errors if layers else errors.unsqueeze(0))
        return torch.cat(rows)

    return sample


def memformer_estimates(
    models: Sequence[Memformer], tasks: GaussianTasks, count: int, seed: int, *, layers: bool = False
) -> list[list[Estimate]]:
    """For each model estimates of its last layer, or of every layer, all on the same fresh tasks.

    Args:
        models: what is judged.
        tasks: the distribution.
        count: fresh tasks.
        seed: of the tasks and of the bootstrap.
        layers: judge the prediction after each layer.
    """
    found = iter(estimate(model_errors(models, tasks, layers=layers), count, seed))
    return [[next(found) for _ in range(model.layers if layers else 1)] for model in models]


def classical_estimates(names: Sequence[str], tasks: GaussianTasks, steps: int, count: int, seed: int) -> list[float]:
    """Log mean errors after each step of each optimiser, flat: all steps of the first, then of the second, ...

    Args:
        names: of `OPTIMIZERS`.
        tasks: the distribution.
        steps: of every optimiser.
        count: fresh tasks.
        seed: of the tasks and of the bootstrap.
    """
    sampler = solver_errors(tasks, [steps_of(name, steps) for name in names])
    return [one.log_mean for one in estimate(sampler, count, seed)]


@dataclass(frozen=True)
class Distribution:
    """Squared errors over tasks.

    Attributes:
        log_mean: of the sample: where tail_index is at most 2 it is no estimate of the expectation.
        log_trimmed: log of the mean without the largest `TAIL` of them.
        log_median: log of the median.
        log_tail: log of the quantile that leaves `TAIL` above it.
        tail_index: Hill's estimate from the errors above that quantile: P(error > t) falls like t^-index there.
    """

    log_mean: float
    log_trimmed: float
    log_median: float
    log_tail: float
    tail_index: float


TAIL = 0.001
"""Share of the tasks that counts as the tail."""


def distributions(sampler: ErrorSampler, count: int, seed: int) -> list[Distribution]:
    """One `Distribution` a row over `count` fresh tasks; keeps every error, so `count` is at most some millions."""
    parts = []
    with torch.no_grad():
        for index, start in enumerate(range(0, count, CHUNK)):
            generator = generator_for("evaluation", seed, index)
            parts.append(sampler(min(CHUNK, count - start), generator).double())
    found = []
    for errors in torch.cat(parts, dim=1).nan_to_num(nan=math.inf, posinf=math.inf):
        ordered = errors.sort().values
        kept = [errors.mean(), ordered[(count - 1) // 2], ordered[max(0, count - 1 - math.ceil(TAIL * count))]]
        mean, median, edge = (log_of(float(value)) for value in kept)
        trimmed = log_of(trimmed_mean(errors, TAIL))
        found.append(Distribution(mean, trimmed, median, edge, tail_index(errors, TAIL)))
    return found
