"""Errors of networks and solvers on fresh tasks that training never draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.runs.evaluation import Solver, solver_errors
from memformer_lab.runs.fitting import Draw, draws_statistics
from memformer_lab.solvers.estimates import ErrorSampler, Estimate, estimate
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.optimizers import OPTIMIZERS
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_CHUNK = 20_000


def steps_of(name: str, steps: int) -> Solver:
    """A classical optimiser as a solver with one row a step."""
    return lambda h, b: OPTIMIZERS[name](h, b, steps)


def log_means(sampler: ErrorSampler, tasks: int, seed: int) -> list[Estimate]:
    """Estimates of the log mean squared error, one a row, on `tasks` fresh tasks."""
    return estimate(sampler, tasks, seed)


def memformer_estimates(
    models: Sequence[Memformer], tasks: GaussianTasks, count: int, seed: int, *, layers: bool = False
) -> list[list[Estimate]]:
    """For each model estimates of its last layer, or of every layer, all on the same fresh tasks.

    Response-only models run as solvers on sampled quadratics, others on sampled statistics or on tokens.
    """
    methods = [first_order_method(model) for model in models]
    if tasks.n >= tasks.d and all(methods):
        sampler = solver_errors(tasks, [method.solver(layers=layers) for method in methods if method])
    else:
        statistics = all(draws_statistics(model, tasks) for model in models)
        sampler = network_errors(models, tasks.compressed if statistics else tasks.tokens, layers=layers)
    found = iter(estimate(sampler, count, seed))
    return [[next(found) for _ in range(model.layers if layers else 1)] for model in models]


def network_errors(models: Sequence[Memformer], draw: Draw, *, layers: bool = False) -> ErrorSampler:
    """Errors of several models on the same tasks, row after row."""

    def sample(batch: int, generator: Generator) -> Tensor:
        tasks = draw(batch, generator)
        rows = []
        for model in models:
            predictions = model.predict(tasks.z, context=tasks.context, layers=layers)
            errors = (predictions - tasks.target).square().mean(-1) * tasks.query_scale
            rows.append(errors if layers else errors.unsqueeze(0))
        return torch.cat(rows)

    return sample


def classical_estimates(names: Sequence[str], tasks: GaussianTasks, steps: int, count: int, seed: int) -> list[float]:
    """Log means after each step of each optimiser, flat: all steps of the first, then of the second, ..."""
    sampler = solver_errors(tasks, [steps_of(name, steps) for name in names])
    return [one.log_mean for one in estimate(sampler, count, seed)]


@dataclass(frozen=True)
class Distribution:
    """Squared errors over tasks: log of the mean, mean of the logs, log of the median and of the 99.9% quantile."""

    log_mean: float
    mean_log: float
    log_median: float
    log_tail: float


def distributions(sampler: ErrorSampler, count: int, seed: int) -> list[Distribution]:
    """One `Distribution` a row over `count` fresh tasks; keeps every error, so `count` is at most some millions."""
    parts = []
    with torch.no_grad():
        for index, start in enumerate(range(0, count, _CHUNK)):
            generator = generator_for("evaluation", seed, index)
            parts.append(sampler(min(_CHUNK, count - start), generator).double())
    errors = torch.cat(parts, dim=1)
    ordered = errors.sort(1).values
    tail = ordered[:, min(count - 1, math.ceil(0.999 * count) - 1)]
    found = torch.stack(
        [errors.mean(1).log(), errors.log().mean(1), ordered[:, (count - 1) // 2].log(), tail.log()], dim=1
    )
    return [Distribution(*row) for row in found.nan_to_num(nan=math.inf, posinf=math.inf).tolist()]
