"""torch.func over the registered operations: vmap rules, and derivatives inside transforms.

An operation registered with the dispatcher knows ordinary autograd and vmap. Inside grad, jvp and their nestings a call
goes through a torch.autograd.Function instead, made here from the same pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

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


PullBack = Callable[[Flat, Sequence[Tensor], Sequence[bool], Sequence[Tensor | None]], list[Tensor | None]]


@dataclass(frozen=True)
class Step:
    """One registered schema: the first `tensors` arguments of `op` may be tensors.

    on_torch: the same results as a tuple, in plain differentiable PyTorch. pull_back: gradients of the tensor arguments
    from the flat arguments, the results after the first `kept_from` (so that what a forward has already worked out can
    be used), which gradients are wanted and those of the results. returns_list: the results are a list. backend_at: the
    place of the backend's name from the end. task_arguments and task_axis: which arguments, and which axis of the
    results, have one entry per task. averages: the result is one number, a mean over tasks.
    """

    name: str
    op: Any
    tensors: int
    on_torch: Callable[..., tuple[Tensor, ...]]
    pull_back: PullBack
    kept_from: int | None = None
    returns_list: bool = False
    backend_at: int = -1
    task_arguments: frozenset[int] = frozenset()
    task_axis: int = 0
    averages: bool = False

    def leading(self, template: Template) -> int:
        """How many flat arguments may be tensors."""
        if template is None:
            return self.tensors
        return sum(1 if size is None else size for size in template[: self.tensors])

    def kept(self, output: Any) -> list[Tensor]:
        """The results that the backward will use."""
        return [] if self.kept_from is None else list(output[self.kept_from :])


def vmap_rule(step: Step, call: Callable[..., Any]) -> Callable[[int, Sequence[int | None], Flat], Any]:
    """Mapped tasks become more tasks; anything else mapped (parameters, gradients, means) is a loop over its slices.

    The rule takes the size of the mapped axis, its place in each flat argument, and the flat arguments; it returns the
    results of `call` and the mapped axis of each.
    """

    def rule(size: int, dims: Sequence[int | None], flat: Flat) -> Any:
        template = flat.template or [None] * len(flat.values)
        positions = [p for p, length in enumerate(template) for _ in range(1 if length is None else length)]
        per_task = [position in step.task_arguments for position in positions]
        if not step.averages and all(dim is None or is_task for dim, is_task in zip(dims, per_task, strict=True)):
            folded = [
                _fold(value, dim, size) if is_task and isinstance(value, Tensor) else value
                for value, dim, is_task in zip(flat.values, dims, per_task, strict=True)
            ]
            out = call(*Flat(folded, flat.template).restored())
            if isinstance(out, Tensor):
                return _split(out, step.task_axis, size), step.task_axis
            return tuple(_split(x, step.task_axis, size) for x in out), tuple(step.task_axis for _ in out)
        outs = []
        for index in range(size):
            one = [x if dim is None else x.select(dim, index) for x, dim in zip(flat.values, dims, strict=True)]
            outs.append(call(*Flat(one, flat.template).restored()))
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        kind = type(outs[0])
        return kind(torch.stack(x) for x in zip(*outs, strict=True)), kind(0 for _ in outs[0])

    return rule


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped axis merged into the tasks' axis, which comes first."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def _split(folded: Tensor, axis: int, size: int) -> Tensor:
    """The mapped axis back in front of the tasks' axis."""
    shape = folded.shape
    return folded.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])


def _push_forward(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """J v as the transpose of u -> u^T J, since forward-mode AD does not nest."""
    outputs, pull_back, *_ = torch.func.vjp(function, *primals)
    _, push, *_ = torch.func.vjp(lambda *u: pull_back(u), *(torch.zeros_like(output) for output in outputs))
    made: tuple[Tensor, ...] = push(tuple(tangents))
    return made


def transforming() -> bool:
    """Whether a transform of torch.func or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functorch_function(step: Step) -> Callable[..., Any]:
    """`step.op` as a torch.autograd.Function that torch.func's transforms and forward-mode AD know."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(template: Template, *values: Any) -> Any:
            made = step.op(*Flat(list(values), template).restored())
            return tuple(made) if isinstance(made, list) else made

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            template, *values = inputs
            ctx.template = template
            ctx.options = [None if isinstance(value, Tensor) else value for value in values]
            ctx.tensors = [isinstance(value, Tensor) for value in values]
            tensors = [value for value in values if isinstance(value, Tensor)]
            ctx.save_for_backward(*tensors, *step.kept(output))
            ctx.save_for_forward(*tensors)

        @staticmethod
        def _arguments(ctx: Any) -> Flat:
            saved = iter(ctx.saved_tensors)
            values = [next(saved) if is_tensor else x for x, is_tensor in zip(ctx.options, ctx.tensors, strict=True)]
            return Flat(values, ctx.template)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            flat = Function._arguments(ctx)
            leading = step.leading(flat.template)
            kept = ctx.saved_tensors[sum(ctx.tensors) :]
            made = step.pull_back(flat, kept, ctx.needs_input_grad[1 : 1 + leading], grads)
            return (None, *made, *(None for _ in flat.values[leading:]))

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
            flat = Function._arguments(ctx)
            places = [place for place, tangent in enumerate(tangents) if tangent is not None]
            varied = flat.varying(places, step.on_torch)
            if eager_transforms.JVP_NESTING > 1:
                raise NotImplementedError(
                    f"{step.name}: forward-mode derivatives of forward-mode derivatives are not supported; take one of "
                    "them in reverse mode, as torch.func.hessian does"
                )
            with full_precision(flat):
                made = _push_forward(varied, [flat.values[i] for i in places], [tangents[i] for i in places])
            return made[0] if len(made) == 1 else made

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], template: Template, *values: Any) -> Any:
            made, dims = vmap_rule(step, inner)(info.batch_size, in_dims[1:], Flat(list(values), template))
            return (tuple(made), tuple(dims)) if isinstance(made, list) else (made, dims)

    def inner(*arguments: Any) -> Any:
        return call(*arguments) if transforming() else step.op(*arguments)

    def call(*arguments: Any) -> Any:
        flat = flatten(arguments)
        return Function.apply(flat.template, *flat.values)  # type: ignore[no-untyped-call]

    return call
