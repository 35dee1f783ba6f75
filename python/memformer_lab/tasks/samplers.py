"""Gaussian tasks as `memformer_kernels.train_steps` draws them."""

from __future__ import annotations

import torch

from memformer_kernels import GaussianStatistics, GaussianTokens
from memformer_lab.tasks.gaussian import GaussianTasks


def step_sampler(
    tasks: GaussianTasks, batch: int, *, statistics: bool, queries: int = 1, resample: int = 1
) -> GaussianStatistics | GaussianTokens:
    """The sampler of these tasks.

    Args:
        tasks: what is drawn.
        batch: tasks a step.
        statistics: draw H and b with the query integrated out, in place of tokens. Needs n >= d.
        queries: queries a task, where tokens are drawn.
        resample: steps that a batch is kept for.
    """
    scales = torch.tensor(tasks.scales, dtype=torch.float64, device="cpu")
    common = {
        "noise": tasks.noise,
        "factor": tasks.factor,
        "weights": tasks.rotation / scales if tasks.weights == "inverse" else None,
        "resample_every": resample,
    }
    if statistics:
        return GaussianStatistics(tasks.d, tasks.n, batch, query="integrated", **common)  # type: ignore[arg-type]
    return GaussianTokens(tasks.d, tasks.n, batch, queries=queries, **common)  # type: ignore[arg-type]
