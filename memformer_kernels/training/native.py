"""The native library's trainer: whole steps for every model of a state, one task per SIMD lane."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels import build
from memformer_kernels.training import arguments
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler, batch_of
from memformer_kernels.training.state import TrainState

LARGEST = 16
"""Largest side of a model's matrices: those of the tiny regimes."""


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
    if not build.available("cpu"):
        return "the native library is missing, see build_info()"
    return arguments.oversized(state, sampler)


def train(state: TrainState, sampler: Sampler, steps: int, optimizer: Optimizer, max_skipped: int | None) -> Tensor:
    """The losses (steps, M) of steps taken in place, as `twin` defines them."""
    losses = arguments.new_losses(state, steps)
    longest = arguments.steps_per_call(state, sampler, steps)
    for first in range(0, steps, longest):
        part = losses[first : first + longest]
        arguments.operators("cpu").train_steps.default(
            *arguments.update(state, optimizer, len(part), max_skipped, state.skipped),
            *arguments.tasks(state, sampler, len(part)),
            "auto",
            part,
        )
        state.step += len(part)
    return losses


def block_sums(state: TrainState, sampler: Sampler, blocks: range, active: Sequence[bool]) -> Tensor:
    """What `twin.block_sums` gives."""
    size = sum(value[0].numel() for value in state.parameters.values())
    sums = torch.zeros(state.models, len(blocks), size + 1, dtype=torch.float64, device="cpu")
    if len(blocks):
        arguments.operators("cpu").train_gradients.default(
            *arguments.parameters(state),
            torch.tensor(list(active), device="cpu", dtype=torch.bool),
            state.step,
            *arguments.tasks(state, sampler, 1),
            blocks.start,
            sums,
        )
    return sums


def apply_sums(
    state: TrainState, sampler: Sampler, optimizer: Optimizer, sums: Tensor, max_skipped: int | None
) -> Tensor:
    """What `twin.apply_sums` does, as `train` does it after its own sums."""
    losses = arguments.new_losses(state, 1)
    arguments.operators("cpu").train_update.default(
        *arguments.update(state, optimizer, 1, max_skipped, state.skipped),
        sampler.d,
        batch_of(sampler),
        arguments.queries(sampler),
        sums,
        losses,
    )
    state.step += 1
    return losses[0]
