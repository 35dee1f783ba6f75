"""The CUDA library's trainer: whole steps of response-only models on a GPU, one task a thread.

All that a call needs is sent to the GPU when it starts, and its losses and counts come back together when it ends; in
between nothing waits. They are written before the call returns, so that an exception which a signal's handler raises
finds the state after some number of steps.
"""

import time

import torch
from torch import Tensor

from memformer_kernels import availability, library
from memformer_kernels.calls.limits import LONGEST_STATISTICS, TRAINED_FEATURES
from memformer_kernels.training import arguments
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import GaussianSampler, GaussianStatistics, Sampler, batch_of
from memformer_kernels.training.state import TrainState

_SECONDS = 0.15
"""How long a call should last, by the pace of the one before it: Python sees signals between calls."""

_STEPS = 4096
"""Most steps of one call of the library."""

_FIRST_STEPS = 1024
"""Most steps of the first call, whose pace is not known,"""

_FIRST_TOKENS = 2**28
"""and most tokens that its tasks have."""


def fault(state: TrainState, sampler: Sampler) -> str | None:
    """Why the CUDA library cannot train these models on these tasks, or None."""
    if availability.place(state.device.type) != "cuda":
        return f"the CUDA trainer serves models on a GPU, these are on {state.device}"
    if state.dtype != torch.float32:
        return f"the CUDA trainer serves models in float32, these are in {state.dtype}"
    if "p" in state.parameters or state.parameters["q"].shape[-1] != sampler.d:
        return "the CUDA trainer serves response-only models, without p and with q of d by d"
    if sampler.d > TRAINED_FEATURES:
        return f"the CUDA trainer serves at most {TRAINED_FEATURES} features"
    if isinstance(sampler, GaussianStatistics) and sampler.n > LONGEST_STATISTICS:
        return f"the CUDA trainer draws statistics of at most {LONGEST_STATISTICS} examples"
    if sampler.query == "prefixes":
        return "the CUDA trainer serves one context a task: every prefix is trained on a CPU or in plain PyTorch"
    if arguments.ties(state):
        return "tied layers are trained on a CPU or in plain PyTorch: the CUDA trainer's have matrices of their own"
    if isinstance(sampler, GaussianSampler) and len(set(sampler.noise_range)) > 1:
        return "the CUDA trainer draws tasks of one noise: tasks with their own train on a CPU or in plain PyTorch"
    for name in ("gamma", "beta"):
        value = state.parameters.get(name)
        if value is not None and value.shape[-2] != 1:
            return f"{name} has a token axis, and the CUDA trainer works in Gram space"
    if (reason := arguments.fault(state, sampler)) is not None:
        return reason
    missing = availability.fault("cuda")
    if missing is not None:
        return f"the CUDA library is missing ({missing})"
    return availability.cuda_fault(state.device.index or 0)


def train(
    state: TrainState,
    sampler: Sampler,
    optimizer: Optimizer,
    max_skipped: int | None,
    losses: Tensor,
    *,
    launches: str = "auto",
) -> None:
    """Takes as many steps in place as there are `losses` (steps, M), on the CPU, as `definition` defines them.

    launches: "persistent", one launch for many steps; "replay", three launches a step, replayed as a CUDA graph; or
        "auto", by the number of tasks and models. All give the same bits.
    """
    take_steps = library.operators("cuda").train_steps.default
    most = min(_FIRST_STEPS, max(1, _FIRST_TOKENS // (state.models * batch_of(sampler) * sampler.context)))
    start = 0
    while start < len(losses):
        part, first = losses[start : start + arguments.steps_at_once(state, sampler)], state.step
        update = arguments.update(state, optimizer, len(part), max_skipped)
        tasks = arguments.tasks(state, sampler, len(part))
        while (done := state.step - first) < len(part):
            next_losses, begin = part[done : done + most], time.perf_counter()
            arguments.announce(state)
            take_steps(*update, *tasks, launches, _SECONDS, next_losses)
            most = min(_STEPS, max(1, int(len(next_losses) * _SECONDS / (time.perf_counter() - begin))))
        start += len(part)
