"""How an operation is registered with PyTorch: schema, kernel, fake, autograd, autocast and vmap, alike for all.

`torch.ops.memformer_kernels.NAME` computes on the backend it is told and `NAME_backward` gives its gradients; both are
opaque to compilers and know their output shapes. The backward is itself differentiable: derivatives beyond the first,
and forward-mode ones, run through the PyTorch backend's formulas, whatever backend made the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.transforms import Flat, Step, flatten, full_precision, functorch_function, vmap_rule

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


def define(operation: Operation) -> Callable[..., Any]:
    """Registers an operation and its backward, and returns the callable that the public functions use."""
    name, results = operation.name, operation.results
    count = operation.tensors.count(",") + 1
    returns = "Tensor" if results == 1 else "(" + ", ".join(["Tensor"] * results) + ")"
    grads = ", ".join(f"Tensor grad{i}" for i in range(results))
    _LIBRARY.define(f"{name}({operation.tensors}, {operation.options}) -> {returns}")
    _LIBRARY.define(f"{name}_backward({grads}, {operation.tensors}, {operation.options}, bool[] needs) -> Tensor[]")
    forward_op = getattr(torch.ops.memformer_kernels, name).default
    backward_op = getattr(torch.ops.memformer_kernels, f"{name}_backward").default

    def fake_backward(*arguments: Any) -> list[Tensor]:
        flat = flatten(arguments[results : results + count]).values
        return [
            torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for tensor, needed in zip(flat, arguments[-1], strict=True)
            if needed and tensor is not None
        ]

    def on_torch(*arguments: Any) -> tuple[Tensor, ...]:
        made = operation.kernel(*arguments[:-1], "torch")
        return (made,) if isinstance(made, Tensor) else tuple(made)

    def gradients_on_torch(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(operation.gradients(*arguments[:-2], "torch", arguments[-1]))

    def second_pull_back(
        flat: Flat, kept: Sequence[Tensor], wanted: Sequence[bool], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        return _pull_back_on_torch(gradients_on_torch, flat, wanted, grads)

    backward_step = Step(f"{name}_backward", backward_op, results + count, gradients_on_torch, second_pull_back)
    backward = _install(backward_step, operation.gradients, fake_backward, results, operation.tokens_first)

    def pull_back(
        flat: Flat, kept: Sequence[Tensor], wanted: Sequence[bool], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        needs = list(wanted)
        made = iter(backward(*grads, *flat.restored(), needs))
        return [next(made) if needed else None for needed in needs]

    forward_step = Step(
        name,
        forward_op,
        count,
        on_torch,
        pull_back,
        task_arguments=operation.task_arguments,
        task_axis=operation.task_axis,
    )
    return _install(forward_step, operation.kernel, operation.fake, 0, operation.tokens_first)


def define_with_gradients(
    name: str, tensors: str, options: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers a scalar operation that works out its gradients along with its value.

    Its last options are `bool[] needs`, one flag per tensor argument, and the backend's name; its results are the value
    and then the gradients needed. A backward only scales these, unless it must itself be differentiable.
    """
    count = tensors.count(",") + 1
    _LIBRARY.define(f"{name}({tensors}, {options}) -> Tensor[]")

    def on_torch(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(kernel(*arguments[:-1], "torch"))

    def value_on_torch(*arguments: Any) -> tuple[Tensor, ...]:
        return on_torch(*arguments[:-2], [False] * count, "torch")

    def pull_back(
        flat: Flat, kept: Sequence[Tensor], wanted: Sequence[bool], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        needs, scale = flat.restored()[-2], grads[0]
        missing = any(wants and not needed for wants, needed in zip(wanted, needs, strict=True))
        if missing or torch.is_grad_enabled():
            return _pull_back_on_torch(value_on_torch, flat, wanted, grads[:1])
        made = iter(kept)
        ready = [next(made) if needed else None for needed in needs]
        return [
            None if grad is None or scale is None else (grad * scale).to(argument.dtype)
            for grad, argument in zip(ready, flat.values, strict=False)
        ]

    op = getattr(torch.ops.memformer_kernels, name).default
    return _install(Step(name, op, count, on_torch, pull_back, kept_from=1), kernel, fake, 0, tokens_first=True)


def _pull_back_on_torch(
    function: Callable[..., tuple[Tensor, ...]], flat: Flat, wanted: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the wanted arguments of a plain PyTorch function."""
    places = [place for place, wants in enumerate(wanted) if wants]
    varied = flat.varying(places, function)
    with full_precision(flat):
        outputs, pull_back, *_ = torch.func.vjp(varied, *(flat.values[place] for place in places))
        cotangents = tuple(torch.zeros_like(o) if g is None else g for g, o in zip(grads, outputs, strict=True))
        made = pull_back(cotangents)
    filled: list[Tensor | None] = [None] * len(wanted)
    for place, grad in zip(places, made, strict=True):
        filled[place] = grad
    return filled


def _install(
    step: Step, kernel: Callable[..., Any], fake: Callable[..., Any], tokens_at: int, tokens_first: bool
) -> Callable[..., Any]:
    """Registers everything about one schema, and returns the callable that also serves torch.func's transforms."""
    _LIBRARY.impl(step.name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(step.op, fake, lib=_LIBRARY)
    _register_autograd(step)
    _register_autocast(step, tokens_at if tokens_first else None)
    rule = vmap_rule(step, step.op)

    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        dims: list[Any] = []
        for argument, dim in zip(arguments, in_dims, strict=True):
            size = len(argument) if isinstance(argument, list | tuple) else 1
            dims.extend(dim if isinstance(dim, list | tuple) else [dim] * size)
        return rule(info.batch_size, dims, flatten(arguments))

    torch.library.register_vmap(step.op, vmap, lib=_LIBRARY)
    return functorch_function(step)


def _register_autograd(step: Step) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = flatten(inputs[: step.tensors])
        options = flatten(inputs[step.tensors :])
        ctx.template, ctx.options = [*tensors.template, *options.template], options.values
        ctx.save_for_backward(*tensors.values, *step.kept(output))
        ctx.count = len(tensors.values)

    def formula(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        cotangents = grads[0] if len(grads) == 1 and isinstance(grads[0], list | tuple) else grads
        saved = ctx.saved_tensors
        flat = Flat([*saved[: ctx.count], *ctx.options], ctx.template)
        wanted = flatten(ctx.needs_input_grad[: step.tensors]).values
        made = step.pull_back(flat, saved[ctx.count :], wanted, cotangents)
        leading, rest = ctx.template[: step.tensors], ctx.template[step.tensors :]
        return (*Flat(made, leading).restored(), *(None for _ in rest))

    torch.library.register_autograd(step.op, formula, setup_context=setup_context, lib=_LIBRARY)


def _register_autocast(step: Step, tokens_at: int | None) -> None:
    """Under autocast tokens keep their dtype and everything else becomes float32: the sums of a Gram matrix need it."""

    def cast(position: int, argument: Any, tokens: torch.dtype) -> Any:
        if isinstance(argument, list | tuple):
            return [x.to(tokens) if isinstance(x, Tensor) else x for x in argument]
        real = isinstance(argument, Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
        return argument.to(torch.float32) if real and position != tokens_at else argument

    def kernel_on(device: str) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            tokens = arguments[tokens_at or 0].dtype
            with torch.autocast(device, enabled=False):
                return step.op(*(cast(i, x, tokens) for i, x in enumerate(arguments)))

        return kernel

    _LIBRARY.impl(step.name, kernel_on("cpu"), "AutocastCPU")
    _LIBRARY.impl(step.name, kernel_on("cuda"), "AutocastCUDA")
