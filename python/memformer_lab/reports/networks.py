"""Trained networks that a record ships with its figures, so that anybody can compute the figures again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.tasks.gaussian import GaussianTasks

Statistic = Literal["mean", "median"]

Array = list[Any]
"""Nested lists of numbers."""


@dataclass(frozen=True)
class Network:
    """The network behind one value of the first seed: ln of a mean or median squared error, the query integrated out.

    Attributes:
        panel: where the value stands.
        label: of the curve.
        x: place on the curve.
        statistic: of the squared errors of a random query.
        arguments: what `memformer_kernels.memformer_stack` takes beside tokens, by name.
        n: labelled examples in a context.
        factor: C, (d, d): x ~ N(0, C C^T).
        prior: W, (d, d): w* ~ N(0, W W^T).
        noise: standard deviation of the examples' responses.
    """

    panel: str
    label: str
    x: float
    statistic: Statistic
    arguments: Mapping[str, Array]
    n: int
    factor: Array
    prior: Array
    noise: float

    @classmethod
    def of(
        cls, model: Memformer, tasks: GaussianTasks, panel: str, label: str, x: float, statistic: Statistic = "mean"
    ) -> Network:
        """A model as it is now, and the tasks that it was judged on."""
        given = {
            name: value.tolist() for name, value in model.stack_arguments().items() if isinstance(value, torch.Tensor)
        }
        prior = torch.eye(tasks.d, dtype=torch.float64, device="cpu")
        if tasks.weights == "inverse":
            prior = tasks.rotation / torch.tensor(tasks.scales, dtype=torch.float64, device="cpu")
        return cls(
            panel, label, float(x), statistic, given, tasks.n, tasks.factor.tolist(), prior.tolist(), tasks.noise
        )
