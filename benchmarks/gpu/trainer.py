"""Whole optimiser steps on a GPU: one step at the field's batch size, and tasks a second at one that fills the machine.

Workload W, tasks drawn as sufficient statistics with the query integrated out, Adam. A step is timed as a share of a
call of many: everything is counted, the way there and back too. Nothing is timed before the first losses are found to
be those of the definition in plain PyTorch, and persistent and replayed steps to be the same bits.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measure.data import make_parameters
from benchmarks.measure.workloads import W
from memformer_kernels import Adam, GaussianStatistics, TrainState, build_info, train_steps
from memformer_kernels.training import cuda

BATCH = 1000
LARGE_BATCH = 4_000_000
MODELS = 20
TARGET_US = 6.0
TARGET_TASKS_PER_S = 9e9
LOSS_ERROR = 1e-4
CHECKED = 40
"""Steps of a check: enough for a graph and single launches behind it."""

ROUNDS = 20
OPTIMIZER = Adam(1e-3)
TASKS = GaussianStatistics(W.d, W.n, BATCH, query="integrated")


def measure(seconds: float, console: Console) -> dict[str, Any]:
    """Microseconds of a step at B = 1000, of one model and of 20, by every way of launching; tasks a second at 4M.

    Raises RuntimeError where a first loss is wrong, or traces depend on the launches. A small GPU has no room for the
    blocks of every way at once: that way's reason is found in place of its figures.
    """
    if not build_info().backends["cuda"].available:
        return {"not run": build_info().backends["cuda"].reason}
    check()
    steps, refused = {}, {}
    for models in (1, MODELS):
        for launches in ("persistent", "replay"):
            name = f"{models} models, {launches}"
            try:
                steps[name] = [1e6 * value for value in _seconds(models, TASKS, 2000, launches, ROUNDS)]
            except RuntimeError as reason:
                refused[name] = str(reason)
                console.print(f"{name}: {reason}", markup=False)
    large = _seconds(1, replace(TASKS, batch=LARGE_BATCH), 40, "replay", ROUNDS)
    rate = LARGE_BATCH / large[1]
    for name, quantiles in steps.items():
        console.print(f"B = {BATCH:,}, {name}: {quantiles[1]:.3g} us a step ({quantiles[0]:.3g}..{quantiles[2]:.3g})")
    console.print(f"to be at most {TARGET_US:g} us for one model, persistent")
    console.print(f"B = {LARGE_BATCH:,}: {rate:.3g} tasks/s, to be at least {TARGET_TASKS_PER_S:.0e}")
    return {
        "batch": BATCH,
        "target_us": TARGET_US,
        "us_q10_median_q90": steps,
        "refused": refused,
        "large_batch": LARGE_BATCH,
        "target_tasks_per_s": TARGET_TASKS_PER_S,
        "tasks_per_s": rate,
        "large_ms_q10_median_q90": [1e3 * value for value in large],
    }


def check() -> None:
    """Raises RuntimeError unless the first loss is right and both ways of launching leave the same bits."""
    exact = train_steps(_state(2, "cpu"), TASKS, 1, optimizer=OPTIMIZER, backend="torch")
    traces = [_trace(_state(2), TASKS, CHECKED, way) for way in ("persistent", "replay")]
    error = float(((traces[0][:1] - exact) / exact).abs().max())
    if not error <= LOSS_ERROR:
        raise RuntimeError(f"the first loss has a relative error of {error:.1e}, expected {LOSS_ERROR:.0e}")
    if not torch.equal(*traces):
        raise RuntimeError("persistent and replayed steps have different losses, expected the same bits")


def _state(models: int, device: str = "cuda") -> TrainState:
    parameters = make_parameters(W, 0, torch.device("cpu"))
    one = {name: parameter.to(device) for name, parameter in parameters.named.items()}
    return TrainState.of([one] * models, seeds=1)


def _trace(held: TrainState, sampler: GaussianStatistics, steps: int, launches: str) -> Tensor:
    """The losses (steps, M) of steps taken in place."""
    losses = torch.empty(steps, held.models, dtype=torch.float64, device="cpu")
    cuda.train(held, sampler, OPTIMIZER, None, losses, launches=launches)
    return losses


def _seconds(models: int, sampler: GaussianStatistics, steps: int, launches: str, rounds: int) -> list[float]:
    """The 10, 50 and 90 percent quantiles of a step's share of a call."""
    held = _state(models)
    _trace(held, sampler, steps, launches)
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        _trace(held, sampler, steps, launches)
        found.append((time.perf_counter() - begun) / steps)
    quantiles: list[float] = np.quantile(found, [0.1, 0.5, 0.9]).tolist()
    return quantiles
