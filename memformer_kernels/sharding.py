"""Tensors spread over processes: every operation runs on a process's own shard of the tasks.

Tasks are independent, so a DTensor's shards along the batch are tasks of their own: an operation takes each process's
part, as it takes any other batch, and no data is exchanged. Results are sharded as the tasks are; gradients of what the
tasks share, and a loss, are sums over the processes, as `Partial` placements. Shards along any other axis are gathered
first.

A rule for the dispatcher of DTensors (`register_sharding`) cannot say this: it knows no operation that returns a list
of gradients, and no mean over shards of different sizes. Shards and whole tensors are therefore taken apart and put
together again around the operation by DTensor's own differentiable methods, under compilers too. Nothing here imports
torch.distributed.tensor before a caller has.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.transforms import Flat, Step, flatten

_MODULE = "torch.distributed.tensor"


def is_sharded(value: object) -> bool:
    """Whether a value is a DTensor, whatever its placements."""
    return _MODULE in sys.modules and isinstance(value, sys.modules[_MODULE].DTensor)


def among(arguments: Sequence[Any]) -> bool:
    """Whether a DTensor is among an operation's arguments, or in a list among them."""
    if _MODULE not in sys.modules:
        return False
    return any(any(map(is_sharded, x)) if isinstance(x, list | tuple) else is_sharded(x) for x in arguments)


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor: its shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def fill(parameter: Tensor, value: Tensor) -> None:
    """Sets a parameter to a value of its global shape: a DTensor's shards get their part of the first process's."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        parameter.copy_(value)


def beside(value: Tensor, tensor: Tensor) -> Tensor:
    """A value that every process has, as an operand beside `tensor`."""
    if not is_sharded(tensor):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def spread(step: Step, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """`call` of `step` on this process's tasks, with its results as DTensors.

    Along an axis of the mesh the tasks are sharded if any argument that has an entry per task is sharded along them;
    all other arguments are the same on every process. Raises TypeError for a tensor of the caller's that is no DTensor.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    flat = flatten(arguments)
    template = flat.template or [None] * len(flat.values)
    positions = [p for p, length in enumerate(template) for _ in range(1 if length is None else length)]
    per_task = [position in step.task_arguments for position in positions]
    names = [argument.name for argument in step.op._schema.arguments]
    mesh = next(value.device_mesh for value in flat.values if isinstance(value, DTensor))
    batch = next(value.shape[0] for value, tasks in zip(flat.values, per_task, strict=True) if tasks)
    split = [False] * mesh.ndim
    for value, tasks in zip(flat.values, per_task, strict=True):
        if isinstance(value, DTensor) and tasks:
            split = [was or placement == Shard(0) for was, placement in zip(split, value.placements, strict=True)]
    same = [Replicate()] * mesh.ndim

    def local(value: Any, tasks: bool, position: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not isinstance(value, DTensor):
            if position not in step.derived:
                raise TypeError(
                    f"{names[position]}: expected a DTensor, as other arguments of {step.name} are, got a plain tensor "
                    f"of shape {tuple(value.shape)}; distribute_tensor makes one"
                )
            value = DTensor.from_local(value, mesh, same, run_check=False)
        shares = [Shard(0) if tasks and parted else Replicate() for parted in split]
        sums = [Partial() if not tasks and parted else share for parted, share in zip(split, shares, strict=True)]
        if list(value.placements) != shares:
            value = value.redistribute(placements=shares)
        return value.to_local(grad_placements=sums)

    values = [local(*given) for given in zip(flat.values, per_task, positions, strict=True)]
    made = call(*Flat(values, flat.template).restored())
    if step.averages:
        count = next(value.shape[0] for value, tasks in zip(values, per_task, strict=True) if tasks)
        return [_share_of_mean(made[0], count, batch, mesh, [Partial() if parted else Replicate() for parted in split])]
    placements = [Shard(step.task_axis) if parted else Replicate() for parted in split]

    def whole(result: Tensor) -> Tensor:
        shape = torch.Size((*result.shape[: step.task_axis], batch, *result.shape[step.task_axis + 1 :]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(result, mesh, placements, run_check=False, shape=shape, stride=stride)

    return whole(made) if isinstance(made, Tensor) else tuple(whole(result) for result in made)


def _share_of_mean(mean: Tensor, count: int, batch: int, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """A mean over `count` tasks here as a summand of that over all `batch`; the mean of no tasks is NaN, its sum 0."""
    from torch.distributed.tensor import DTensor

    if batch and not count:
        mean = mean.nan_to_num(0.0)
    return DTensor.from_local(mean * (count / batch) if batch else mean, mesh, placements, run_check=False)
