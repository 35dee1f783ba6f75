"""A state, a sampler and an optimiser as the arguments of the native libraries' operators, for any device."""

from typing import Any

import torch
from torch import Tensor

from memformer_kernels.calls.limits import LARGEST_TASK
from memformer_kernels.training import orders, own
from memformer_kernels.training.optimizers import SGD, Adam, AdamW, Optimizer
from memformer_kernels.training.samplers import DrawnTasks, FixedTasks, GaussianStatistics, Sampler, batch_of
from memformer_kernels.training.state import TrainState, in_order

_NAMES = ("q", "p", "gamma", "beta")
"""The parameters that libraries know."""

_STEPS = 2**11
"""Most steps to make arguments for at once."""

_ORDERS = 32
"""Orders of given tasks in as many arguments: one for each model and epoch."""

_INDEX_BYTES = 2**26
"""Most memory for the order of given tasks in one call of a library."""


def fault(state: TrainState, sampler: Sampler) -> str | None:
    """What no library's trainer serves, or None: gates, and what 32-bit indices do not reach.

    Tasks that are drawn are small enough by themselves.
    """
    if "gate" in state.parameters:
        return "gates are trained in plain PyTorch: the library's trainer knows none"
    if sampler.tokens * (sampler.d + 1) > LARGEST_TASK:
        return "the library's trainer serves tasks of at most 2^30 numbers"
    layers, heads = state.parameters["q"].shape[1:3]
    if layers * max(layers, sampler.d + 1) * heads * (sampler.d + 1) > LARGEST_TASK:
        return "the library's trainer serves at most 2^30 coefficients"
    return None


def steps_at_once(state: TrainState, sampler: Sampler) -> int:
    """Steps to make arguments for, which is soon done and leaves room in memory; from the state's own step on."""
    if isinstance(sampler, DrawnTasks):
        return sampler.resample_every - state.step % sampler.resample_every
    if not isinstance(sampler, FixedTasks) or sampler.batch is None:
        return _STEPS
    fit = _INDEX_BYTES // (8 * state.models * sampler.batch)
    soon = max(1, _ORDERS // state.models) * sampler.draws_of_epoch
    return min(_STEPS, max(1, min(fit, soon)) * sampler.resample_every)


def ties(state: TrainState) -> bool:
    """Whether layers of some model share their matrices."""
    return any(state.tied_layers(model) > 1 for model in range(state.models))


def parameters(state: TrainState) -> list[Tensor | None]:
    """q, p, gamma and beta, None for those that the models lack."""
    return [state.parameters.get(name) for name in _NAMES]


def announce(state: TrainState) -> None:
    """Tells autograd that a library is about to write the state: graphs that read it raise, as after any such call."""
    moments = [*state.first.values(), *state.second.values()]
    written = [*state.parameters.values(), *moments, state.skipped, state.counter]
    torch.autograd.graph.increment_version(written)


def update(state: TrainState, optimizer: Optimizer, steps: int, max_skipped: int | None) -> tuple[Any, ...]:
    """What says how the next `steps` steps change the state, counters included, in any number of calls."""
    factors = [optimizer.schedule.factor(state.step + i) for i in range(steps)]
    name, numbers, clip = rule(optimizer, state.models)
    return (
        *parameters(state),
        list(in_order(state.first).values()),
        [] if isinstance(optimizer, SGD) else list(in_order(state.second).values()),
        _masks(state),
        state.skipped,
        name,
        _moved(numbers, state),
        clip,
        _moved(torch.tensor(factors, dtype=torch.float64, device="cpu"), state),
        -1 if max_skipped is None else max_skipped,
        state.step,
        state.counter,
        state.tied if ties(state) else None,
    )


def rule(optimizer: Optimizer, models: int) -> tuple[str, Tensor, str]:
    """The name of the rule, its numbers (M, 6) and what is clipped."""
    if isinstance(optimizer, SGD):
        name, numbers = "nesterov" if optimizer.nesterov else "sgd", (optimizer.momentum, 0.0, 0.0)
    else:
        assert isinstance(optimizer, Adam)
        first, second = optimizer.betas
        name, numbers = "adamw" if isinstance(optimizer, AdamW) else "adam", (first, second, optimizer.eps)
    shared = (*numbers, optimizer.weight_decay, optimizer.clip or 0.0)
    hyper = [(rate, *shared) for rate in optimizer.rates(models)]
    clip = "none" if optimizer.clip is None else optimizer.clip_by
    return name, torch.tensor(hyper, dtype=torch.float64, device="cpu"), clip


def tasks(state: TrainState, sampler: Sampler, steps: int) -> tuple[Any, ...]:
    """What says where the tasks of `steps` steps come from."""
    source: tuple[Tensor | None, ...]
    if isinstance(sampler, FixedTasks):
        kind, noise = "fixed", (0.0, 0.0)
        source = (None, None, sampler.z.contiguous(), sampler.target.contiguous(), _order(state, sampler, steps))
    elif isinstance(sampler, DrawnTasks):
        kind, noise = "fixed", (0.0, 0.0)
        source = (None, None, *own.batches(sampler, state))
    else:
        kind = "statistics" if isinstance(sampler, GaussianStatistics) else "tokens"
        noise = sampler.noise_range
        factors = [None if x is None else _for_each(x, state) for x in (sampler.weights, sampler.factor)]
        source = (*factors, None, None, None)
    streams = (_moved(state.seeds, state), _moved(state.streams, state))
    sizes = (sampler.d, batch_of(sampler), sampler.tokens, sampler.context, queries(sampler))
    return sampler.resample_every, *streams, kind, *sizes, sampler.query == "prefixes", *noise, *source


def queries(sampler: Sampler) -> int:
    """Queries a task, 0 where they are integrated out."""
    return 0 if sampler.query == "integrated" else sampler.queries


def _masks(state: TrainState) -> list[Tensor]:
    if not state.masks:
        return []
    trained = {name: torch.ones_like(value, dtype=torch.bool) for name, value in state.parameters.items()}
    return list(in_order(trained | state.masks).values())


def _moved(tensor: Tensor, state: TrainState) -> Tensor:
    """To the models' device, without waiting for it."""
    return tensor if tensor.device == state.device else tensor.to(state.device, non_blocking=True)


def _for_each(matrix: Tensor, state: TrainState) -> Tensor:
    return matrix.to(state.parameters["q"], non_blocking=True).expand(state.models, *matrix.shape).contiguous()


def _order(state: TrainState, sampler: FixedTasks, steps: int) -> Tensor | None:
    """Indices (draws, M, B) of the given tasks, or None for all in order."""
    if sampler.batch is None or steps == 0:
        return None
    numbers = range(state.step // sampler.resample_every, (state.step + steps - 1) // sampler.resample_every + 1)
    sources = list(zip(state.seeds.tolist(), state.streams.tolist(), strict=True))
    return orders.batches(sampler, sources, numbers, state.device)
