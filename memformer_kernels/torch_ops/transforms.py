"""What transforms need to know of a registered operation: vmap rules, forward-mode derivatives, batched gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memformer_kernels import torch_internals

Template = Sequence[int | None] | None
"""For each argument the length of a list or None for anything else; None where no argument is a list."""


class Flat(NamedTuple):
    """Arguments one by one; `template` says which of them were lists."""

    values: Sequence[Any]
    template: Template

    def restored(self) -> Sequence[Any]:
        """The arguments as they were, lists included."""
        if self.template is None:
            return self.values
        values = iter(self.values)
        return [next(values) if size is None else [next(values) for _ in range(size)] for size in self.template]

    def varying(self, places: Sequence[int], function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of these arguments, as a function of those at `places` alone."""

        def varied(*tensors: Tensor) -> Any:
            values = list(self.values)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            return function(*Flat(values, self.template).restored())

        return varied


_LISTS = frozenset((list, tuple))


def flatten(arguments: Sequence[Any]) -> Flat:
    """Spells out the lists and tuples among the arguments."""
    if _LISTS.isdisjoint(map(type, arguments)):
        return Flat(arguments, None)
    values: list[Any] = []
    template: list[int | None] = []
    for argument in arguments:
        if isinstance(argument, list | tuple):
            values.extend(argument)
            template.append(len(argument))
        else:
            values.append(argument)
            template.append(None)
    return Flat(values, template)


def full_precision(flat: Flat) -> torch.autocast:
    """The context for plain PyTorch formulas: autocast, where it is on, must not round their products."""
    return torch.autocast(flat.values[0].device.type, enabled=False)


PullBack = Callable[[Flat, Sequence[bool], Sequence[Tensor | None]], list[Tensor | None]]


@dataclass(frozen=True)
class Step:
    """One registered schema: the first `tensors` arguments of `op` may be tensors.

    on_torch: the results that have derivatives, as a tuple, in plain differentiable PyTorch. pull_back: gradients of
    the tensor arguments from the flat arguments, which gradients are wanted and those of the results. returns_list: the
    results are a list. backend_at: the place of the backend's name from the end. task_arguments and task_axis: which
    arguments, and which axis of the results, have one entry per task. averages: the result is one number, a mean over
    tasks. passed: how many of the first arguments `pull_back` does not read, and is not given among the flat ones.
    """

    name: str
    op: Any
    tensors: int
    on_torch: Callable[..., tuple[Tensor, ...]]
    pull_back: PullBack
    returns_list: bool = False
    backend_at: int = -1
    task_arguments: frozenset[int] = frozenset()
    task_axis: int = 0
    averages: bool = False
    passed: int = 0


def vmap_rule(step: Step, fake: Callable[..., Any]) -> Callable[[int, Sequence[int | None], Flat], Any]:
    """Mapped tasks become more tasks; anything else mapped (parameters, gradients, means) is a loop over its slices.

    The rule takes the size of the mapped axis, its place in each flat argument, and the flat arguments; it returns the
    results and the mapped axis of each. `fake` says the shapes of the operation's results.
    """

    def rule(size: int, dims: Sequence[int | None], flat: Flat) -> Any:
        if size == 0:
            return _of_no_slice(fake, dims, flat)
        template = flat.template or [None] * len(flat.values)
        positions = [p for p, length in enumerate(template) for _ in range(1 if length is None else length)]
        per_task = [position in step.task_arguments for position in positions]
        if not step.averages and all(dim is None or is_task for dim, is_task in zip(dims, per_task, strict=True)):
            folded = [
                _fold(value, dim, size) if is_task and isinstance(value, Tensor) else value
                for value, dim, is_task in zip(flat.values, dims, per_task, strict=True)
            ]
            out = step.op(*Flat(folded, flat.template).restored())
            if isinstance(out, Tensor):
                return _split(out, step.task_axis, size), step.task_axis
            return tuple(_split(x, step.task_axis, size) for x in out), tuple(step.task_axis for _ in out)
        outs = []
        for index in range(size):
            one = [x if dim is None else x.select(dim, index) for x, dim in zip(flat.values, dims, strict=True)]
            outs.append(step.op(*Flat(one, flat.template).restored()))
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        return _each_mapped_first(type(outs[0]), [torch.stack(x) for x in zip(*outs, strict=True)])

    return rule


def _each_mapped_first(kind: type, results: Sequence[Tensor]) -> Any:
    return kind(results), kind(0 for _ in results)


def _of_no_slice(fake: Callable[..., Any], dims: Sequence[int | None], flat: Flat) -> Any:
    """The results of a mapped axis of size 0, whose shapes are those of one slice's and which depend on every argument.

    No slice is made up and computed: its values would have to be ones that the operation takes.
    """

    def one(value: Any, dim: int | None) -> Any:
        return value if dim is None else value.new_empty((*value.shape[:dim], *value.shape[dim + 1 :]))

    slices = [one(value, dim) for value, dim in zip(flat.values, dims, strict=True)]
    floating = [x for x in flat.values if isinstance(x, Tensor) and x.is_floating_point()]

    def none(result: Tensor) -> Tensor:
        empty = result.new_empty((0, *result.shape))
        return sum((x.sum().to(empty.dtype).expand(empty.shape) for x in floating), empty)

    out = fake(*Flat(slices, flat.template).restored())
    if isinstance(out, Tensor):
        return none(out), 0
    return _each_mapped_first(type(out), [none(x) for x in out])


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped axis merged into the tasks' axis, which comes first."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def _split(folded: Tensor, axis: int, size: int) -> Tensor:
    """The mapped axis back in front of the tasks' axis."""
    shape = folded.shape
    return folded.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])


def push_forward(
    function: Callable[..., tuple[Tensor, ...]], flat: Flat, tangents: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Tangents of the results of a plain PyTorch function from those of its first arguments; None stands for zero."""
    places = [place for place, tangent in enumerate(tangents) if tangent is not None]
    varied = flat.varying(places, function)

    def push(*given: Tensor) -> list[Tensor | None]:
        # PyTorch asks for tangents with forward mode off, which would drop those of another forward mode around it.
        with full_precision(flat), torch_internals.set_pushes_forward(True):
            # A tensor whose entries share memory, as a repeated one's do, can hold no tangent.
            primals = [torch_internals.unpack_dual(flat.values[place], level=0)[0].contiguous() for place in places]
            duals = [torch_internals.make_dual(x, tangent, level=0) for x, tangent in zip(primals, given, strict=True)]
            return [torch_internals.unpack_dual(result, level=0)[1] for result in varied(*duals)]

    return by_slices(push, [tangents[place] for place in places])


def by_slices(function: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Any]) -> Sequence[Tensor | None]:
    """`function` of these tensors, called slice by slice where torch.autograd has batched them.

    Its own vmap (behind is_grads_batched and vectorize) is not torch.func's, and knows no operation but PyTorch's.
    """
    if not any(is_batched(tensor) for tensor in tensors):
        return function(*tensors)
    level = torch_internals.autograd_vmap_level()
    while (size := max(_size(tensor, level) for tensor in tensors)) < 0:
        level -= 1
    mapped = [_size(tensor, level) >= 0 for tensor in tensors]
    whole = [_remove(x, level, size) if is_mapped else x for x, is_mapped in zip(tensors, mapped, strict=True)]

    def of(index: int) -> list[Any]:
        return [x[index] if is_mapped else x for x, is_mapped in zip(whole, mapped, strict=True)]

    if size == 0:  # the shapes are those of one slice: the function is linear, and zeros are as good as any
        whole = [x.new_zeros((1, *x.shape[1:])) if is_mapped else x for x, is_mapped in zip(whole, mapped, strict=True)]
    outs = [by_slices(function, of(index)) for index in range(max(size, 1))]
    return [
        None if parts[0] is None else torch_internals.add_batch_axis(torch.stack(parts)[:size], 0, level)
        for parts in zip(*outs, strict=True)
    ]


def is_batched(tensor: Any) -> bool:
    """Whether torch.autograd has batched a tensor, as grad(is_grads_batched=True) does."""
    return isinstance(tensor, Tensor) and torch_internals.is_batched_by_autograd(tensor)


def _size(tensor: Any, level: int) -> int:
    """How many slices a level of torch.autograd's vmap has of a tensor, -1 where it has not batched it."""
    if not is_batched(tensor):
        return -1
    one, two = (_remove(tensor, level, size).shape[0] for size in (1, 2))
    return one if one == two else -1


def _remove(tensor: Tensor, level: int, size: int) -> Tensor:
    """The slices of a level along a first axis; `size` copies of a tensor that is not batched there."""
    return torch_internals.remove_batch_axis(tensor, level, size, 0)
