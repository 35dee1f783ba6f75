"""The definition of a training step, in plain PyTorch: what a native backend is compared with, step by step.

Each model of the state takes its step alone. The loss of a step is the mean over tasks and queries of the squared error
(of the quadratic form, where queries are integrated out). Tasks are summed in blocks of 1024 by index, in the working
dtype, and the blocks in float64, in order; so any rank may compute any block.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels.functional import memformer_loss, memformer_prefix_loss
from memformer_kernels.torch_internals import copy_all
from memformer_kernels.training.draws import Stream, Tasks, draw_tasks
from memformer_kernels.training.optimizers import SGD, Adam, AdamW, Optimizer
from memformer_kernels.training.samplers import GaussianSampler, GaussianTokens, Sampler, batch_of
from memformer_kernels.training.state import TIED, TrainState

TASKS_PER_BLOCK = 1024


def count_blocks(sampler: Sampler) -> int:
    """Blocks of tasks in the global batch."""
    return -(-batch_of(sampler) // TASKS_PER_BLOCK)


@torch.inference_mode(False)
def block_sums(state: TrainState, sampler: Sampler, blocks: range, active: Sequence[bool]) -> Tensor:
    """Gradients of the sum of squared errors over these blocks' tasks, and last that sum: (M, blocks, P + 1) float64.

    The P gradients are those of one model's q, p, gamma, beta and gate, flattened one after the other. Models that are
    not active get zeros.
    """
    size = sum(value[0].numel() for value in state.parameters.values())
    sums = torch.zeros(state.models, len(blocks), size + 1, dtype=torch.float64, device=state.device)
    batch, draw = batch_of(sampler), state.step // sampler.resample_every
    for model in (index for index in range(state.models) if active[index]):
        stream = Stream(int(state.seeds[model]), int(state.streams[model]), state.dtype, state.device)
        leaves = {name: value.detach().requires_grad_() for name, value in state.model(model).items()}
        for place, block in enumerate(blocks):
            tasks = range(block * TASKS_PER_BLOCK, min((block + 1) * TASKS_PER_BLOCK, batch))
            drawn = draw_tasks(sampler, stream, draw, tasks)
            with torch.enable_grad():
                loss = _loss(sampler, drawn, leaves)
                grads = torch.autograd.grad(loss, list(leaves.values()))
            flat = torch.cat([*(grad.flatten() for grad in grads), loss.detach()[None]])
            sums[model, place] = flat.double() * drawn.target.numel()
    return sums


def _loss(sampler: Sampler, drawn: Tasks, leaves: dict[str, Tensor]) -> Tensor:
    """The mean squared error of drawn tasks."""
    z, target = _saved(drawn.z), _saved(drawn.target)
    if sampler.query == "prefixes":
        return memformer_prefix_loss(z, target, **leaves, first=drawn.context, backend="torch")
    tokens = isinstance(sampler, GaussianTokens) or not isinstance(sampler, GaussianSampler)
    return memformer_loss(
        z,
        target,
        **leaves,
        context=drawn.context,
        queries=target.shape[1],
        responses=1,
        backend="torch",
        algorithm="auto" if tokens else "gram",
    )


def _saved(tensor: Tensor) -> Tensor:
    """The tensor, or what autograd may save in its place."""
    return tensor.clone() if tensor.is_inference() else tensor


def active_models(state: TrainState, max_skipped: int | None) -> list[bool]:
    """Which models have not skipped so many steps that they are stopped."""
    return [max_skipped is None or skipped < max_skipped for skipped in state.skipped.tolist()]


def apply_sums(
    state: TrainState, sampler: Sampler, optimizer: Optimizer, sums: Tensor, max_skipped: int | None, losses: Tensor
) -> None:
    """One optimiser step from the sums of all blocks (M, blocks, P + 1); its losses go to `losses` (M,) float64.

    State, counters and losses are written together, or not at all if an exception, a signal handler's say, ends it. A
    model is left as it is, and its step counted as skipped, if its loss, a gradient, a new parameter or a new moment
    is not finite, or if it is stopped; the loss of the latter is NaN.
    """
    active = active_models(state, max_skipped)
    total = sums[:, 0].clone()
    for block in range(1, sums.shape[1]):
        total += sums[:, block]
    total /= batch_of(sampler) * sampler.queries
    rates, factor = optimizer.rates(state.models), optimizer.schedule.factor(state.step)
    made = torch.full_like(losses, math.nan)
    skips = torch.ones_like(state.skipped)
    news: list[tuple[Tensor, Tensor]] = []
    for model in (index for index in range(state.models) if active[index]):
        made[model] = loss = float(total[model, -1])
        if not math.isfinite(loss):
            continue
        stepped = _updated(state, optimizer, total[model, :-1], model, rates[model] * factor)
        if stepped is not None:
            skips[model] = 0
            news += stepped
    news += [(losses, made), (state.skipped, state.skipped + skips), (state.counter, state.counter + 1)]
    # One call of torch, which no signal handler cuts in two.
    copy_all([old for old, _ in news], [new for _, new in news])


def _updated(
    state: TrainState, optimizer: Optimizer, flat: Tensor, model: int, rate: float
) -> list[tuple[Tensor, Tensor]] | None:
    """One model's tensors and what a step makes of them, or None if something is not finite."""
    parameters = state.model(model)
    parts = torch.split(flat, [value.numel() for value in parameters.values()])
    grads = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
    # Layers that share a matrix: one gradient, in the first of them while norms are taken, then in each.
    layers = state.tied_layers(model)
    shared = [name for name in TIED if name in grads and layers > 1]
    for name in shared:
        grads[name] = torch.cat([grads[name][:layers].sum(0)[None], grads[name][1:]])
        grads[name][1:layers] = 0.0
    grads = {name: grad.to(state.dtype) for name, grad in grads.items()}
    for name, masks in state.masks.items():
        grads[name] = torch.where(masks[model], grads[name], 0.0)
    clip_gradients(grads, optimizer)
    for name in shared:
        grads[name] = torch.cat([grads[name][:1].expand(layers, -1, -1, -1), grads[name][layers:]])
    count = state.step - int(state.skipped[model]) + 1
    news: list[tuple[Tensor, Tensor]] = []
    for name, grad in grads.items():
        mask = state.masks[name][model] if name in state.masks else None
        old = parameters[name], state.first[name][model], state.second[name][model]
        new: tuple[Tensor, ...] = _rule(optimizer, rate, count, grad, *old)
        if mask is not None:
            new = tuple(torch.where(mask, after, before) for after, before in zip(new, old, strict=True))
        if not all(bool(torch.isfinite(value).all()) for value in (grad, *new)):
            return None
        news += zip(old, new, strict=True)
    return news


def clip_gradients(grads: dict[str, Tensor], optimizer: Optimizer) -> None:
    """Scales one model's gradients down to the largest norm, in place of the given ones."""
    if optimizer.clip is None:
        return
    squares = {}
    for name, grad in grads.items():
        axes = (-2, -1) if name in ("q", "p") and optimizer.clip_by == "matrix" else tuple(range(grad.ndim))
        squares[name] = grad.double().square().sum(axes, keepdim=True)
    if optimizer.clip_by == "model":
        together = torch.stack([square.flatten()[0] for square in squares.values()]).sum()
        squares = {name: together for name in squares}
    for name, square in squares.items():
        scale = (optimizer.clip / square.sqrt()).clamp(max=1.0)
        grads[name] = grads[name] * scale.to(grads[name].dtype)


def _rule(
    optimizer: Optimizer, rate: float, count: int, grad: Tensor, parameter: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The new parameter and its moments after update number `count`, from 1."""
    if optimizer.weight_decay and not isinstance(optimizer, AdamW):
        grad = grad + optimizer.weight_decay * parameter
    if isinstance(optimizer, SGD):
        first = optimizer.momentum * first + grad
        direction = grad + optimizer.momentum * first if optimizer.nesterov else first
        return parameter - rate * direction, first, second
    assert isinstance(optimizer, Adam)
    if isinstance(optimizer, AdamW):
        parameter = parameter - rate * optimizer.weight_decay * parameter
    decay, square_decay = optimizer.betas
    first = decay * first + (1 - decay) * grad
    second = square_decay * second + (1 - square_decay) * grad.square()
    root = second.sqrt() / math.sqrt(1 - square_decay**count) + optimizer.eps
    return parameter - rate / (1 - decay**count) * first / root, first, second
