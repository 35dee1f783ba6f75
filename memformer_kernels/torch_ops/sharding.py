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
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MODULE = "torch.distributed.tensor"


class Rule(NamedTuple):
    """How a function is spread: its arguments' names, as its caller knows them, and which have an entry per task.

    task_axis: the tasks' axis of its results. averages: its result is one number, a mean over tasks, first in a list.
    derived: arguments that a check made from sizes, or from settings that are the same on every process.
    """

    arguments: tuple[str, ...]
    task_arguments: frozenset[int]
    task_axis: int = 0
    averages: bool = False
    derived: frozenset[int] = frozenset()


def is_sharded(value: object) -> bool:
    """Whether a value is a DTensor, whatever its placements."""
    return _MODULE in sys.modules and isinstance(value, sys.modules[_MODULE].DTensor)


def among(arguments: Sequence[Any]) -> bool:
    """Whether a DTensor is among an operation's arguments, or in a list among them."""
    if _MODULE not in sys.modules:
        return False
    return any(any(map(is_sharded, x)) if isinstance(x, list | tuple) else is_sharded(x) for x in arguments)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor: its shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def fill(parameter: Tensor, value: Tensor) -> None:
    """Sets a parameter to a value of its global shape: a DTensor's shards get their part of the first process's."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        parameter.copy_(value)


def on_every_process(value: Tensor, tensor: Tensor) -> Tensor:
    """A value that each process has, as an operand for `tensor`."""
    if not is_sharded(tensor):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def spread(rule: Rule, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """`call` on this process's tasks, with its results as DTensors.

    Along an axis of the mesh the tasks are sharded if any argument that has an entry per task is sharded along them;
    all other arguments are the same on every process. Raises TypeError for a tensor of the caller's that is no DTensor,
    and ValueError for DTensors on more than one mesh.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    listed = [list(x) if isinstance(x, list | tuple) else [x] for x in arguments]
    shared = [
        (name, x) for name, given in zip(rule.arguments, listed, strict=True) for x in given if isinstance(x, DTensor)
    ]
    tasks = [x for place, given in enumerate(listed) if place in rule.task_arguments for x in given]
    (first, one), batch = shared[0], tasks[0].shape[0]
    mesh = one.device_mesh
    for name, other in shared:
        if other.device_mesh != mesh:
            raise ValueError(f"{name}: expected a DTensor on {mesh}, where {first} is, got one on {other.device_mesh}")
    split = [any(isinstance(x, DTensor) and x.placements[axis] == Shard(0) for x in tasks) for axis in range(mesh.ndim)]

    def local(place: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not isinstance(value, DTensor):
            if place not in rule.derived:
                raise TypeError(
                    f"{rule.arguments[place]}: expected a DTensor, as {first} is, got a plain tensor of shape "
                    f"{tuple(value.shape)}; distribute_tensor makes one"
                )
            value = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
        parted = split if place in rule.task_arguments else [False] * mesh.ndim
        wanted = [Shard(0) if parts else Replicate() for parts in parted]
        summed = [
            Partial() if parts and place not in rule.task_arguments else x
            for parts, x in zip(split, wanted, strict=True)
        ]
        if list(value.placements) != wanted:
            value = value.redistribute(placements=wanted)
        return value.to_local(grad_placements=summed)

    own_values = [[local(place, value) for value in given] for place, given in enumerate(listed)]
    restored = [
        values if isinstance(x, list | tuple) else values[0] for x, values in zip(arguments, own_values, strict=True)
    ]
    made = call(*restored)
    if rule.averages:
        count = own_values[min(rule.task_arguments)][0].shape[0]
        return [_share_of_mean(made[0], count, batch, mesh, [Partial() if parts else Replicate() for parts in split])]
    placements = [Shard(rule.task_axis) if parts else Replicate() for parts in split]

    def whole(result: Tensor) -> Tensor:
        shape = torch.Size((*result.shape[: rule.task_axis], batch, *result.shape[rule.task_axis + 1 :]))
        stride = torch.empty(shape, dtype=result.dtype, device="meta").stride()
        return DTensor.from_local(result, mesh, placements, run_check=False, shape=shape, stride=stride)

    return whole(made) if isinstance(made, Tensor) else tuple(whole(result) for result in made)


def _share_of_mean(mean: Tensor, count: int, batch: int, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """A mean over `count` tasks here as a summand of that over all `batch`; the mean of no tasks is NaN, its sum 0."""
    from torch.distributed.tensor import DTensor

    if batch and not count:
        mean = mean.nan_to_num(0.0)
    return DTensor.from_local(mean * (count / batch) if batch else mean, mesh, placements, run_check=False)
