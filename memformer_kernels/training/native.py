"""The native library's trainer: whole steps for every model of a state, one task per SIMD lane."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import build, library
from memformer_kernels.training import draws
from memformer_kernels.training.optimizers import SGD, Adam, AdamW, Optimizer
from memformer_kernels.training.samplers import (
    FixedTasks,
    GaussianStatistics,
    Sampler,
    batch_of,
)
from memformer_kernels.training.state import NAMES, TrainState

LARGEST = 16
"""Largest side of a model's matrices: those of the tiny regimes."""

_INDEX_BYTES = 2**26
"""Most memory for the order of given tasks in one call of the library."""


def fault(state: TrainState, sampler: Sampler) -> str | None:
    """Why the native library cannot train these models on these tasks, or None."""
    if state.device.type != "cpu":
        return f"the native trainer serves models on the CPU, these are on {state.device}"
    if state.parameters["q"].shape[-1] > LARGEST:
        return f"the native trainer serves matrices of at most {LARGEST} by {LARGEST}"
    for name in ("gamma", "beta"):
        value = state.parameters.get(name)
        if value is not None and value.shape[-2] != 1:
            return f"{name} has a token axis, and the native trainer works in Gram space"
    q, p = state.parameters["q"], state.parameters.get("p")
    if p is not None and p.shape != q.shape:
        return "the native trainer serves q and p of the same size"
    if p is None and q.shape[-1] == sampler.d + 1:
        return "the native trainer serves dense q with dense p alone"
    return None if build.available("cpu") else "the native library is missing, see build_info()"


def train(state: TrainState, sampler: Sampler, steps: int, optimizer: Optimizer, max_skipped: int | None) -> Tensor:
    """The losses (steps, M) of steps taken in place, as `twin` defines them."""
    losses = torch.full((steps, state.models), math.nan, dtype=torch.float64)
    longest = _steps_per_call(state, sampler, steps)
    for first in range(0, steps, longest):
        part = losses[first : first + longest]
        _operators().train_steps.default(
            *_update(state, optimizer, len(part), max_skipped),
            *_tasks(state, sampler, len(part)),
            part,
        )
        state.step += len(part)
    return losses


def block_sums(state: TrainState, sampler: Sampler, blocks: range, active: Sequence[bool]) -> Tensor:
    """What `twin.block_sums` gives."""
    size = sum(value[0].numel() for value in state.parameters.values())
    sums = torch.zeros(state.models, len(blocks), size + 1, dtype=torch.float64)
    if len(blocks):
        _operators().train_gradients.default(
            *_parameters(state), torch.tensor(list(active)), state.step, *_tasks(state, sampler, 1), blocks.start, sums
        )
    return sums


def apply_sums(
    state: TrainState, sampler: Sampler, optimizer: Optimizer, sums: Tensor, max_skipped: int | None
) -> Tensor:
    """What `twin.apply_sums` does, as `train` does it after its own sums."""
    losses = torch.full((1, state.models), math.nan, dtype=torch.float64)
    _operators().train_update.default(
        *_update(state, optimizer, 1, max_skipped), sampler.d, batch_of(sampler), _queries(sampler), sums, losses
    )
    state.step += 1
    return losses[0]


def _operators() -> Any:
    library.load("cpu")
    return torch.ops.memformer_native


def _steps_per_call(state: TrainState, sampler: Sampler, steps: int) -> int:
    """Steps that one call takes, so that the order of given tasks fits in memory."""
    if not isinstance(sampler, FixedTasks) or sampler.batch is None:
        return max(steps, 1)
    return max(1, _INDEX_BYTES // (8 * state.models * sampler.batch)) * sampler.resample_every


def _parameters(state: TrainState) -> list[Tensor | None]:
    return [state.parameters.get(name) for name in NAMES]


def _masks(state: TrainState) -> list[Tensor]:
    if not state.masks:
        return []
    trained = {name: torch.ones_like(value, dtype=torch.bool) for name, value in state.parameters.items()}
    return list((trained | state.masks).values())


def _update(state: TrainState, optimizer: Optimizer, steps: int, max_skipped: int | None) -> tuple[Any, ...]:
    """What says how the next `steps` steps change the state."""
    factors = [optimizer.schedule.factor(state.step + i) for i in range(steps)]
    return (
        *_parameters(state),
        list(state.first.values()),
        [] if isinstance(optimizer, SGD) else list(state.second.values()),
        _masks(state),
        state.skipped,
        *_rule(optimizer, state.models),
        torch.tensor(factors, dtype=torch.float64),
        -1 if max_skipped is None else max_skipped,
        state.step,
    )


def _rule(optimizer: Optimizer, models: int) -> tuple[str, Tensor, str]:
    """The name of the rule, its numbers (M, 6) and what is clipped."""
    if isinstance(optimizer, SGD):
        name, numbers = "nesterov" if optimizer.nesterov else "sgd", (optimizer.momentum, 0.0, 0.0)
    else:
        assert isinstance(optimizer, Adam)
        name, numbers = "adamw" if isinstance(optimizer, AdamW) else "adam", (*optimizer.betas, optimizer.eps)
    shared = (*numbers, optimizer.weight_decay, optimizer.clip or 0.0)
    hyper = [(rate, *shared) for rate in optimizer.rates(models)]
    clip = "none" if optimizer.clip is None else optimizer.clip_by
    return name, torch.tensor(hyper, dtype=torch.float64), clip


def _tasks(state: TrainState, sampler: Sampler, steps: int) -> tuple[Any, ...]:
    """What says where the tasks of `steps` steps come from."""
    source: tuple[Tensor | None, ...]
    if isinstance(sampler, FixedTasks):
        kind, context, noise = "fixed", sampler.context, 0.0
        source = (None, None, sampler.z.contiguous(), sampler.target.contiguous(), _order(state, sampler, steps))
    else:
        kind = "statistics" if isinstance(sampler, GaussianStatistics) else "tokens"
        context, noise = sampler.n, float(sampler.noise)
        factors = [None if x is None else _for_each(x, state) for x in (sampler.weights, sampler.factor)]
        source = (*factors, None, None, None)
    sizes = (sampler.d, batch_of(sampler), context, _queries(sampler))
    return sampler.resample_every, state.seeds, state.streams, kind, *sizes, noise, *source


def _queries(sampler: Sampler) -> int:
    """Queries a task, 0 where they are integrated out."""
    if isinstance(sampler, FixedTasks):
        return sampler.target.shape[1]
    return 0 if sampler.query == "integrated" else sampler.queries


def _for_each(matrix: Tensor, state: TrainState) -> Tensor:
    return matrix.to(state.parameters["q"]).expand(state.models, *matrix.shape).contiguous()


def _order(state: TrainState, sampler: FixedTasks, steps: int) -> Tensor | None:
    """Indices (draws, M, B) of the given tasks, or None for all in order."""
    if sampler.batch is None or steps == 0:
        return None
    numbers = range(state.step // sampler.resample_every, (state.step + steps - 1) // sampler.resample_every + 1)
    streams = [
        draws.Stream(int(seed), int(stream), state.dtype)
        for seed, stream in zip(state.seeds, state.streams, strict=True)
    ]
    rows = [draws.order(sampler, stream, draw) for draw in numbers for stream in streams]
    return torch.stack([row for row in rows if row is not None]).reshape(len(numbers), state.models, -1)
