"""`train_steps`: whole optimiser steps, k of them in one call, for one model or many."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from memformer_kernels import availability
from memformer_kernels.calls.checks import check_choice, reject, reject_kind
from memformer_kernels.training import cuda, definition, native, own
from memformer_kernels.training.checks import check_count
from memformer_kernels.training.optimizers import SGD, Adam, Optimizer
from memformer_kernels.training.philox import LARGEST_SEED
from memformer_kernels.training.ranks import Ranks, check_group
from memformer_kernels.training.samplers import (
    DrawnTasks,
    FixedTasks,
    GaussianSampler,
    GaussianStatistics,
    Sampler,
    batch_of,
)
from memformer_kernels.training.state import TrainState

Backend = Literal["auto", "torch", "cpu", "cuda"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)

_REASONS = {
    "cpu": "tiny models train whole steps in the native library, one task per SIMD lane",
    "cuda": "small response-only models train whole steps on the GPU, one task a thread",
}


class TrainingPlan(NamedTuple):
    """What will run, and the rule that chose it."""

    backend: str
    reason: str


def train_steps(
    state: TrainState,
    sampler: Sampler,
    steps: int,
    *,
    optimizer: Optimizer,
    backend: Backend = "auto",
    max_skipped: int | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Takes `steps` optimiser steps on every model of `state`, in place.

    Step s of a model is a function of its parameters, its seed and stream and s alone: stopping, going on, another
    number of threads or of ranks leave the trace as it is. The plain-PyTorch backend, "torch", defines the results.

    Signals are handled between steps, of ordinary size at least five times a second. An exception that a handler
    raises, as Ctrl-C does KeyboardInterrupt, leaves the state after some number of whole steps, from which a further
    call continues the exact trace; like any other exception that ends the steps it carries the losses of those that
    were taken as its attribute `losses`, (steps taken, M). Autograd sees steps as writes: a graph that was built on the
    state before them raises when it goes backward.

    Args:
        state: the models, changed in place.
        sampler: `GaussianTokens`, `GaussianStatistics`, `FixedTasks` or `DrawnTasks`: where the tasks come from.
        steps: how many to take, 0 or more.
        optimizer: `SGD`, `Adam` or `AdamW`, with clipping and a schedule.
        backend: "auto", "torch" (any device and size), "cpu" (the native library, tiny models on the CPU) or "cuda"
            (the CUDA library, response-only models on a GPU with at most 8 features, in float32); `explain_training`
            says what "auto" chooses and why.
        max_skipped: a model with so many skipped steps is stopped: further steps are skipped at once, with a loss of
            NaN. A step of a model is skipped, counted in `state.skipped`, if its loss, a gradient or what it would
            become is not finite; its loss stands in the trace as computed. None: no model is stopped.
        group: ranks of `torch.distributed` that share every batch, each with the same state; None: this process alone.
            They gather the sums of the blocks of 1024 tasks and add them in order, so the trace does not depend on
            their number. A rank that dies is noticed at once, one that stops answering within the timeout that the
            group was made with. Models on a GPU then train by "torch", whatever the backend.

    Returns:
        The losses (steps, M), float64, on the CPU.

    Raises:
        ValueError: an argument that does not fit, or differs from rank to rank.
        TypeError: an argument of the wrong kind.
        RuntimeError: a backend that is not available, or a call inside torch.export.
        RankLost: another rank does not answer.

    Example:
        >>> state = TrainState.of([nn.Memformer(d=5, layers=4)], seeds=[0])
        >>> train_steps(state, GaussianTokens(d=5, n=20, batch=1000), 10, optimizer=Adam(1e-2)).shape
        torch.Size([10, 1])
    """
    if torch.compiler.is_exporting():
        raise RuntimeError("train_steps: training writes to its state and is no program to export; export the model")
    plan = explain_training(state, sampler, optimizer=optimizer, backend=backend)
    steps = check_count("steps", steps, LARGEST_SEED - state.step, least=0)
    if max_skipped is not None:
        max_skipped = check_count("max_skipped", max_skipped, LARGEST_SEED)
    check_group(group)
    losses, first = _new_losses(steps, state.models), state.step
    try:
        if plan.backend == "cuda" and group is None:
            cuda.train(state, sampler, optimizer, max_skipped, losses)
        elif plan.backend == "cpu" and group is None:
            native.train(state, sampler, optimizer, max_skipped, losses)
        else:
            _train_together(state, sampler, optimizer, max_skipped, losses, plan.backend, Ranks(group))
        return losses
    except BaseException as error:
        error.losses = losses[: state.step - first]  # type: ignore[attr-defined]
        raise


def _new_losses(steps: int, models: int) -> Tensor:
    """A trace (steps, M) to be written."""
    try:
        return torch.full((steps, models), math.nan, dtype=torch.float64, device="cpu")
    except RuntimeError:
        reject("steps", steps, f"so few that the losses of {models} models fit in memory")


def _train_together(
    state: TrainState,
    sampler: Sampler,
    optimizer: Optimizer,
    max_skipped: int | None,
    losses: Tensor,
    backend: str,
    ranks: Ranks,
) -> None:
    """Takes as many steps in place as there are `losses` (steps, M), each from the sums of all ranks."""
    step, blocks = native if backend == "cpu" else definition, definition.count_blocks(sampler)
    ranks.check_agreement([state.step, len(losses), batch_of(sampler)], state.tensors())
    for index in range(len(losses)):
        active = definition.active_models(state, max_skipped)
        sums = ranks.gather(step.block_sums(state, sampler, ranks.share(blocks), active), blocks)
        step.apply_sums(state, sampler, optimizer, sums, max_skipped, losses[index])


def explain_training(
    state: TrainState, sampler: Sampler, *, optimizer: Optimizer, backend: Backend = "auto"
) -> TrainingPlan:
    """The backend that `train_steps` would take with these arguments, and why.

    Args:
        state: as in `train_steps`.
        sampler: as in `train_steps`.
        optimizer: as in `train_steps`.
        backend: as in `train_steps`.

    Returns:
        The plan; nothing is trained.

    Raises:
        ValueError, TypeError, RuntimeError: as `train_steps` does.
    """
    if not isinstance(state, TrainState):
        reject_kind("state", state, "a TrainState")
    state.check()
    for name, value in state.parameters.items():
        if value.requires_grad:
            reject(name, "a parameter that requires a gradient", "one that requires none: steps are taken in place")
    if not isinstance(sampler, GaussianSampler | FixedTasks | DrawnTasks):
        reject_kind("sampler", sampler, "GaussianTokens, GaussianStatistics, FixedTasks or DrawnTasks")
    sampler.check()
    if not isinstance(optimizer, SGD | Adam):
        reject_kind("optimizer", optimizer, "SGD, Adam or AdamW")
    optimizer.rates(state.models)
    _check_fit(state, sampler)
    check_choice("backend", backend, BACKENDS)
    kind = availability.place(state.device.type)
    own = "cuda" if "cuda" in (backend, kind) and backend != "cpu" else "cpu"
    fault = cuda.fault(state, sampler) if own == "cuda" else native.fault(state, sampler)
    if backend in ("cpu", "cuda"):
        availability.require(backend, kind, state.device.index or 0)
        if fault is not None:
            reject("backend", backend, f'"torch" or "auto": {fault}')
        return TrainingPlan(backend, "the backend was asked for")
    if backend == "torch":
        return TrainingPlan("torch", "the backend was asked for")
    if fault is not None:
        if own == kind:
            availability.tell_of_fallback(own)
        return TrainingPlan("torch", fault)
    return TrainingPlan(own, _REASONS[own])


def _check_fit(state: TrainState, sampler: Sampler) -> None:
    """Whether the sampler's tasks are ones that the models read."""
    q, p = state.parameters["q"], state.parameters.get("p")
    size, width = q.shape[-1], sampler.d + 1
    dense = size == width or (p is not None and p.shape[-1] == width)
    if size not in (width - 1, width):
        reject("state", f"q of {tuple(q.shape)}", f"matrices of size d or d + 1 for the sampler's d = {sampler.d}")
    on_statistics = isinstance(sampler, GaussianStatistics) or sampler.query == "integrated"
    if on_statistics and dense:
        expected = "response-only or block structure (d by d): dense reads more than H and b"
        reject("state", f"q of {tuple(q.shape)}", expected)
    if on_statistics or sampler.query == "prefixes":
        why = "no token or query is drawn" if on_statistics else "a token has a place in prefixes of every length"
        for name in ("gamma", "beta"):
            value = state.parameters.get(name)
            if value is not None and value.shape[-2] != 1:
                reject("state", f"{name} of {tuple(value.shape)}", f"no token axis, since {why}")
    if isinstance(sampler, FixedTasks) and (sampler.z.dtype != state.dtype or sampler.z.device != state.device):
        reject_kind("sampler", sampler.z, f"tasks of the models' {state.dtype} on {state.device}")
    state.check_reads(sampler.tokens, width)
    if isinstance(sampler, DrawnTasks):
        own.check(sampler, state)
