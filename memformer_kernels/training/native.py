"""The native library's trainer: whole steps for every model of a state, one task per SIMD lane.

A call of the library writes parameters, moments, counters and losses of whole steps together, and nothing between two
calls changes them: an exception that a signal's handler raises finds the state after some number of steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels import availability, library
from memformer_kernels.calls.limits import TRAINED_SIDE
from memformer_kernels.training import arguments
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler, batch_of
from memformer_kernels.training.state import TrainState

_SECONDS = 0.05
"""How long a call begins new steps: Python sees signals between calls. A call with a long step looks for them itself,
and takes none of its steps where a handler raises."""


def fault(state: TrainState, sampler: Sampler) -> str | None:
    """Why the native library cannot train these models on these tasks, or None."""
    if state.device.type != "cpu":
        return f"the native trainer serves models on the CPU, these are on {state.device}"
    if state.parameters["q"].shape[-1] > TRAINED_SIDE:
        return f"the native trainer serves matrices of at most {TRAINED_SIDE} by {TRAINED_SIDE}"
    for name in ("gamma", "beta"):
        value = state.parameters.get(name)
        if value is not None and value.shape[-2] != 1:
            return f"{name} has a token axis, and the native trainer works in Gram space"
    q, p = state.parameters["q"], state.parameters.get("p")
    if p is not None and p.shape != q.shape:
        return "the native trainer serves q and p of the same size"
    if p is None and q.shape[-1] == sampler.d + 1:
        return "the native trainer serves dense q with dense p alone"
    if (reason := arguments.fault(state, sampler)) is not None:
        return reason
    missing = availability.fault("cpu")
    return None if missing is None else f"the native library is missing ({missing})"


def train(state: TrainState, sampler: Sampler, optimizer: Optimizer, max_skipped: int | None, losses: Tensor) -> None:
    """Takes as many steps in place as there are `losses` (steps, M), as `definition` defines them."""
    take_steps = library.operators("cpu").train_steps.default
    start = 0
    while start < len(losses):
        part, first = losses[start : start + arguments.steps_at_once(state, sampler)], state.step
        update = arguments.update(state, optimizer, len(part), max_skipped)
        tasks = arguments.tasks(state, sampler, len(part))
        while (done := state.step - first) < len(part):
            arguments.announce(state)
            take_steps(*update, *tasks, "auto", _SECONDS, part[done:])
        start += len(part)


def block_sums(state: TrainState, sampler: Sampler, blocks: range, active: Sequence[bool]) -> Tensor:
    """What `definition.block_sums` gives."""
    size = sum(value[0].numel() for value in state.parameters.values())
    sums = torch.zeros(state.models, len(blocks), size + 1, dtype=torch.float64, device="cpu")
    if len(blocks):
        library.operators("cpu").train_gradients.default(
            *arguments.parameters(state),
            torch.tensor(list(active), device="cpu", dtype=torch.bool),
            state.step,
            *arguments.tasks(state, sampler, 1),
            blocks.start,
            sums,
        )
    return sums


def apply_sums(
    state: TrainState, sampler: Sampler, optimizer: Optimizer, sums: Tensor, max_skipped: int | None, losses: Tensor
) -> None:
    """What `definition.apply_sums` does, as `train` does it after its own sums."""
    arguments.announce(state)
    library.operators("cpu").train_update.default(
        *arguments.update(state, optimizer, 1, max_skipped),
        sampler.d,
        batch_of(sampler),
        arguments.queries(sampler),
        sums,
        losses[None],
    )
