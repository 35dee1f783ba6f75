"""What a provider is: one way to compute a workload, and how its passes are made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure.data import Batch, Parameters
from benchmarks.measure.workloads import DIRECTIONS, Workload


class Outcome(NamedTuple):
    """One pass: the scalar loss and its gradients by name, or forward alone the predictions (B, 1) and no gradients."""

    loss: Tensor
    gradients: dict[str, Tensor]


class Support(NamedTuple):
    """Whether a provider computes a workload on a device; if not, why."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


# One pass in the workload's direction, awaited. What it returns is a provider's own; `Provider.outcome` reads it.
Step = Callable[[Batch], Any]
Supports = Callable[[Workload, torch.device], Support]
# (z, target or None) -> the loss, or without a target the predictions.
Evaluate = Callable[[Tensor, Tensor | None], Tensor]


def _as_returned(found: Outcome) -> Outcome:
    return found


@dataclass(frozen=True)
class Provider:
    """One way to compute a workload.

    name      unique, as the table shows it
    peer      True for what memformer_kernels is compared with
    supports  (workload, device) -> Support
    build     (workload, parameters) -> a function of a batch that runs one pass; called once per workload, outside the
              timing
    outcome   what such a function returned, as an Outcome; outside the timing
    solution  for a solver, which has no parameters and answers the tasks themselves instead of running the network:
              (workload, z) -> its exact predictions, in float64, to hold it against
    """

    name: str
    peer: bool
    supports: Supports
    build: Callable[[Workload, Parameters], Step]
    outcome: Callable[[Any], Outcome] = _as_returned
    solution: Callable[[Workload, Tensor], Tensor] | None = None


def step_of(evaluate: Evaluate, workload: Workload, parameters: Parameters) -> Step:
    """A pass in the workload's direction."""
    if not workload.training:

        def predict(batch: Batch) -> Outcome:
            with torch.no_grad():
                return Outcome(evaluate(batch.z, None), {})

        return predict

    # On one task a dictionary made again in every pass shows: what can be made once is made here.
    to_tokens = workload.direction == DIRECTIONS[2]
    names, learned = (*parameters.named, *(["z"] if to_tokens else [])), tuple(parameters)

    def step(batch: Batch) -> Outcome:
        z = batch.z.detach().requires_grad_() if to_tokens else batch.z
        value = evaluate(z, batch.target)
        gradients = torch.autograd.grad(value, (*learned, z) if to_tokens else learned)
        return Outcome(value.detach(), dict(zip(names, gradients, strict=True)))

    return step
