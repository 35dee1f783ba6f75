"""How an operation is registered with PyTorch: schema, kernel, fake, autograd, autocast and vmap, alike for all.

`torch.ops.memformer_kernels.NAME` computes on the backend it is told and `NAME_backward` gives its gradients; both are
opaque to compilers and know their output shapes. The backward is itself differentiable: second derivatives run through
the PyTorch backend's formulas, whatever backend made the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LIBRARY: Any = torch.library.Library("memformer_kernels", "DEF")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Operation:
    """One operation: its schema is `(tensors, options)`, tensors first, and the last option is the backend's name.

    kernel and fake take its arguments; gradients takes those of the results, the arguments, and which are needed.
    results: how many tensors come back. task_arguments: positions of the arguments with one entry per task along their
    first axis; task_axis: that axis of the results. tokens_first: the first argument may be half precision beside
    float32 parameters.
    """

    name: str
    tensors: str
    options: str
    kernel: Callable[..., Any]
    gradients: Callable[..., list[Tensor]]
    fake: Callable[..., Any]
    task_arguments: frozenset[int]
    task_axis: int = 0
    results: int = 1
    tokens_first: bool = True

    @property
    def tensor_count(self) -> int:
        return self.tensors.count(",") + 1


def _flatten(arguments: Sequence[Any]) -> list[Any]:
    """Tensor arguments one by one, with lists spelled out."""
    flat: list[Any] = []
    for argument in arguments:
        if isinstance(argument, list | tuple):
            flat.extend(argument)
        else:
            flat.append(argument)
    return flat


def _restore(flat: Sequence[Any], template: Sequence[int | None]) -> list[Any]:
    """Undoes `_flatten`: `template` holds a list's length, or None for a single argument."""
    values = iter(flat)
    return [next(values) if size is None else [next(values) for _ in range(size)] for size in template]


def _template(arguments: Sequence[Any]) -> list[int | None]:
    return [len(argument) if isinstance(argument, list | tuple) else None for argument in arguments]


def _is_real(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype.is_floating_point


def define(operation: Operation) -> None:
    """Registers an operation and its backward."""
    name, results, count = operation.name, operation.results, operation.tensor_count
    returns = "Tensor" if results == 1 else "(" + ", ".join(["Tensor"] * results) + ")"
    grads = ", ".join(f"Tensor grad{i}" for i in range(results))
    _LIBRARY.define(f"{name}({operation.tensors}, {operation.options}) -> {returns}")
    _LIBRARY.define(f"{name}_backward({grads}, {operation.tensors}, {operation.options}, bool[] needs) -> Tensor[]")
    forward = getattr(torch.ops.memformer_kernels, name).default
    backward = getattr(torch.ops.memformer_kernels, f"{name}_backward").default

    _LIBRARY.impl(name, operation.kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(f"{name}_backward", operation.gradients, "CompositeExplicitAutograd")

    def fake_backward(*arguments: Any) -> list[Tensor]:
        flat, needs = _flatten(arguments[results : results + count]), arguments[-1]
        return [
            torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for tensor, needed in zip(flat, needs, strict=True)
            if needed and tensor is not None
        ]

    torch.library.register_fake(forward, operation.fake, lib=_LIBRARY)
    torch.library.register_fake(backward, fake_backward, lib=_LIBRARY)
    _register_autograd(operation, forward, backward)
    _register_double_backward(operation, backward)
    _register_autocast(operation, forward, f"{name}", 0)
    _register_autocast(operation, backward, f"{name}_backward", results)
    foldable = operation.task_arguments
    torch.library.register_vmap(forward, _vmap_rule(forward, foldable, operation.task_axis), lib=_LIBRARY)
    torch.library.register_vmap(backward, _vmap_rule(backward, frozenset(), 0), lib=_LIBRARY)


def _register_autograd(operation: Operation, forward: Any, backward: Any) -> None:
    count = operation.tensor_count

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.template, ctx.options = _template(inputs[:count]), inputs[count:]
        ctx.save_for_backward(*_flatten(inputs[:count]))

    def formula(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat = ctx.saved_tensors
        wanted = _flatten(ctx.needs_input_grad[:count])
        needs = [bool(wants) and _is_real(tensor) for wants, tensor in zip(wanted, flat, strict=True)]
        made = iter(backward(*grads, *_restore(flat, ctx.template), *ctx.options, needs))
        filled = [next(made) if needed else None for needed in needs]
        return (*_restore(filled, ctx.template), *(None for _ in ctx.options))

    torch.library.register_autograd(forward, formula, setup_context=setup_context, lib=_LIBRARY)


def _register_double_backward(operation: Operation, backward: Any) -> None:
    count = operation.results + operation.tensor_count

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.template, ctx.options, ctx.needs = _template(inputs[:count]), inputs[count:-1], inputs[-1]
        ctx.save_for_backward(*_flatten(inputs[:count]))

    def formula(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
        flat = list(ctx.saved_tensors)
        wanted = _flatten(ctx.needs_input_grad[:count])
        places = [i for i, wants in enumerate(wanted) if wants and _is_real(flat[i])]

        def gradients(*varied: Tensor) -> tuple[Tensor, ...]:
            arguments = list(flat)
            for place, tensor in zip(places, varied, strict=True):
                arguments[place] = tensor
            options = (*ctx.options[:-1], "torch", ctx.needs)
            return tuple(operation.gradients(*_restore(arguments, ctx.template), *options))

        outputs, pull_back, *_ = torch.func.vjp(gradients, *(flat[place] for place in places))
        cotangents = tuple(
            torch.zeros_like(out) if grad is None else grad for grad, out in zip(grads, outputs, strict=True)
        )
        filled: list[Any] = [None] * len(flat)
        for place, grad in zip(places, pull_back(cotangents), strict=True):
            filled[place] = grad
        return (*_restore(filled, ctx.template), *(None for _ in ctx.options), None)

    torch.library.register_autograd(backward, formula, setup_context=setup_context, lib=_LIBRARY)


def _register_autocast(operation: Operation, op: Any, name: str, first: int) -> None:
    """Under autocast tokens keep their dtype and everything else becomes float32: the sums of a Gram matrix need it."""

    def cast(position: int, argument: Any, tokens: torch.dtype) -> Any:
        if isinstance(argument, list | tuple):
            return [x.to(tokens) for x in argument] if all(_is_real(x) for x in argument) else argument
        is_tokens = operation.tokens_first and position == first
        if not _is_real(argument) or argument.dtype == torch.float64 or is_tokens:
            return argument
        return argument.to(torch.float32)

    def kernel_on(device: str) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            tokens = arguments[first].dtype
            with torch.autocast(device, enabled=False):
                return op(*(cast(i, x, tokens) for i, x in enumerate(arguments)))

        return kernel

    _LIBRARY.impl(name, kernel_on("cpu"), "AutocastCPU")
    _LIBRARY.impl(name, kernel_on("cuda"), "AutocastCUDA")


def _vmap_rule(op: Any, foldable: frozenset[int], task_axis: int) -> Callable[..., Any]:
    """Mapped tasks become more tasks; anything else mapped (parameters, gradients) is a loop over its slices."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        template = _template(arguments)
        flat = _flatten(arguments)
        dims: list[Any] = []
        positions: list[int] = []
        for position, (argument, dim) in enumerate(zip(arguments, in_dims, strict=True)):
            size = len(argument) if isinstance(argument, list | tuple) else 1
            dims.extend(dim if isinstance(dim, list | tuple) else [dim] * size)
            positions.extend([position] * size)
        size = info.batch_size
        if all(dim is None or position in foldable for dim, position in zip(dims, positions, strict=True)):
            folded: list[Any] = []
            for argument, dim, position in zip(flat, dims, positions, strict=True):
                if position in foldable and isinstance(argument, Tensor):
                    moved = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
                    folded.append(moved.reshape(size * moved.shape[1], *moved.shape[2:]))
                else:
                    folded.append(argument)
            out = op(*_restore(folded, template))
            if isinstance(out, Tensor):
                return _split(out, task_axis, size), task_axis
            return tuple(_split(x, task_axis, size) for x in out), tuple(task_axis for _ in out)
        outs = []
        for index in range(size):
            one = [x if dim is None else x.select(dim, index) for x, dim in zip(flat, dims, strict=True)]
            outs.append(op(*_restore(one, template)))
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        stacked = [torch.stack(column) for column in zip(*outs, strict=True)]
        if isinstance(outs[0], tuple):
            return tuple(stacked), tuple(0 for _ in stacked)
        return stacked, [0 for _ in stacked]

    return rule


def _split(folded: Tensor, axis: int, size: int) -> Tensor:
    """The mapped axis back in front of the tasks' axis."""
    shape = folded.shape
    return folded.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])
