"""The CUDA library's trainer: whole steps of response-only models on a GPU, one task a thread.

All that a call needs is sent to the GPU when it starts, and its losses and counts come back together when it ends; in
between nothing waits.
"""

import torch
from torch import Tensor

from memformer_kernels import build
from memformer_kernels.training import arguments
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from memformer_kernels.training.state import TrainState

LARGEST = 8
"""Most features of a model: those of a task that one thread holds."""

_STEPS = 4096
"""Most steps of one call of the library: a launch that takes them all ends within a second or so."""


def fault(state: TrainState, sampler: Sampler) -> str | None:
    """Why the CUDA library cannot train these models on these tasks, or None."""
    if state.device.type != "cuda":
        return f"the CUDA trainer serves models on a GPU, these are on {state.device}"
    if state.dtype != torch.float32:
        return f"the CUDA trainer serves models in float32, these are in {state.dtype}"
    if "p" in state.parameters or state.parameters["q"].shape[-1] != sampler.d:
        return "the CUDA trainer serves response-only models, without p and with q of d by d"
    if sampler.d > LARGEST:
        return f"the CUDA trainer serves at most {LARGEST} features"
    for name in ("gamma", "beta"):
        value = state.parameters.get(name)
        if value is not None and value.shape[-2] != 1:
            return f"{name} has a token axis, and the CUDA trainer works in Gram space"
    if not build.available("cuda"):
        return "the CUDA library is missing, see build_info()"
    return build.cuda_fault() or arguments.oversized(state, sampler)


def train(
    state: TrainState,
    sampler: Sampler,
    steps: int,
    optimizer: Optimizer,
    max_skipped: int | None,
    *,
    launches: str = "auto",
) -> Tensor:
    """The losses (steps, M), on the CPU, of steps taken in place, as `twin` defines them.

    launches: "persistent", one launch for many steps; "replay", three launches a step, replayed as a CUDA graph; or
        "auto", by the number of tasks and models. All give the same bits.
    """
    if steps == 0:
        return arguments.new_losses(state, 0)
    count = steps * state.models
    back = torch.empty(count + state.models, dtype=torch.float64, device=state.device)
    losses, skipped = back[:count].view(steps, -1), back[count:].view(torch.int64)
    skipped.copy_(state.skipped, non_blocking=True)
    longest = min(arguments.steps_per_call(state, sampler, steps), _STEPS)
    for first in range(0, steps, longest):
        part = losses[first : first + longest]
        arguments.operators("cuda").train_steps.default(
            *arguments.update(state, optimizer, len(part), max_skipped, skipped),
            *arguments.tasks(state, sampler, len(part)),
            launches,
            part,
        )
        state.step += len(part)
    found = back.cpu()
    state.skipped.copy_(found[count:].view(torch.int64))
    return found[:count].view(steps, -1)
