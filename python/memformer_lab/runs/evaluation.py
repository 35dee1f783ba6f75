"""Squared query errors on fresh tasks: of trained models, at their last layer or by layer, and of any solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import trains_on_statistics
from memformer_lab.solvers.estimates import ErrorSampler, Estimate, estimate
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.tasks.gaussian import GaussianTasks, Quadratics

Solver = Callable[[Tensor, Tensor], Tensor]
"""(h (B, d, d), b (B, d)) -> weights (rows, B, d)."""


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


def solver_errors(tasks: GaussianTasks, solvers: Sequence[Solver]) -> ErrorSampler:
    """Errors of several solvers, row after row, on the same sampled sufficient statistics, the query integrated out."""

    def sample(batch: int, generator: torch.Generator) -> Tensor:
        quadratics = tasks.quadratics(batch, generator)
        factor = tasks.factor.to(quadratics.b)
        weights = (solver(quadratics.h, quadratics.b) for solver in solvers)
        return torch.cat([weight_errors(rows, quadratics, factor) for rows in weights])

    return sample


def prediction_errors(model: Memformer, config: TrainingConfig, *, layers: bool = False) -> ErrorSampler:
    """Errors of a model's predictions on tasks like those it was trained on: (1, batch), or (L, batch) with `layers`.

    Where the model reads sufficient statistics alone, the query is integrated out; else one random query is drawn.
    """
    sampler, on_statistics = config.sampler(), trains_on_statistics(model, config)

    def sample(batch: int, generator: torch.Generator) -> Tensor:
        if on_statistics and isinstance(sampler, GaussianTasks):
            tasks = sampler.compressed(batch, generator)
        else:
            tasks = sampler.tokens(batch, generator, config.queries)
        predictions = model.predict(tasks.z, context=tasks.context, layers=layers)
        errors = (predictions - tasks.target).square().mean(-1) * tasks.query_scale
        return errors if layers else errors.unsqueeze(0)

    return sample


def model_errors(model: Memformer, config: TrainingConfig, *, layers: bool = False) -> ErrorSampler:
    """As `prediction_errors`, by the quickest way: a response-only model runs as a solver on sampled quadratics."""
    sampler = config.sampler()
    method = first_order_method(model)
    if method is None or not trains_on_statistics(model, config) or not isinstance(sampler, GaussianTasks):
        return prediction_errors(model, config, layers=layers)
    return solver_errors(sampler, [method.solver(layers=layers)])


def evaluate(
    model: Memformer, config: TrainingConfig, *, tasks: int, seed: int = 0, layers: bool = False
) -> list[Estimate]:
    """Log mean squared query error on `tasks` fresh tasks, with a bootstrap interval.

    Args:
        model: a model of `config`.
        config: names the tasks.
        tasks: number of tasks, at least 1.
        seed: of the tasks and of the bootstrap; never draws what training drew.
        layers: judge the prediction after each layer.

    Returns:
        One estimate, or one for each layer.

    Raises:
        ValueError: if tasks < 1.
    """
    return estimate(model_errors(model, config, layers=layers), tasks, seed)
