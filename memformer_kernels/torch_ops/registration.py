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

from memformer_kernels import torch_internals
from memformer_kernels.torch_internals import transforming
from memformer_kernels.torch_ops import dispatcher, fast_path, flops, nodes, sharding
from memformer_kernels.torch_ops.nodes import Node
from memformer_kernels.torch_ops.transforms import Flat, Step, flatten, full_precision, vmap_rule

_LIBRARY = dispatcher.registrations()

_PUBLIC_NAMES = {"lengths": "context"}
"""What a public function's caller knows an argument of a schema by, where that is another name."""


@dataclass(frozen=True)
class Operation:
    """One operation: its schema is `(tensors, options)`, tensors first, and the last option is the backend's name.

    kernel and fake take its arguments; gradients takes those of the results, the arguments (without the first one where
    it `passes_on`), and which are needed.
    results: how many tensors come back. task_arguments: positions of the arguments with one entry per task along their
    first axis; task_axis: that axis of the results. tokens: how many of the first arguments may be half precision
    with float32 parameters. passes_on: the gradient of the first argument is that of the result, so the backward is not
    asked for it and does not take the argument, which nothing keeps. derived: see `sharding.Rule`.
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
    tokens: int = 1
    passes_on: bool = False
    derived: frozenset[int] = frozenset()


def define(operation: Operation) -> Callable[..., Any]:
    """Registers an operation and its backward, and returns the callable that the public functions use."""
    name, results, passed = operation.name, operation.results, int(operation.passes_on)
    count, read = operation.tensors.count(",") + 1, ", ".join(operation.tensors.split(", ")[passed:])
    returns = "Tensor" if results == 1 else "(" + ", ".join(["Tensor"] * results) + ")"
    grads = ", ".join(f"Tensor grad{i}" for i in range(results))
    _LIBRARY.define(f"{name}({operation.tensors}, {operation.options}) -> {returns}")
    _LIBRARY.define(f"{name}_backward({grads}, {read}, {operation.options}, bool[] needs) -> Tensor[]")
    forward_op = getattr(torch.ops.memformer_kernels, name).default
    backward_op = getattr(torch.ops.memformer_kernels, f"{name}_backward").default

    def fake_backward(*arguments: Any) -> list[Tensor]:
        flat = flatten(arguments[results : results + count - passed]).values
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

    def second_pull_back(flat: Flat, wanted: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        return _pull_back_on_torch(gradients_on_torch, flat, wanted, grads)

    backward_step = Step(
        f"{name}_backward",
        backward_op,
        results + count - passed,
        gradients_on_torch,
        second_pull_back,
        returns_list=True,
        backend_at=-2,
    )
    backward_node = nodes.with_backward(backward_step, operation.gradients)
    backward = _install(backward_step, operation.gradients, fake_backward, results, operation.tokens, backward_node)

    def pull_back(flat: Flat, wanted: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        needs = wanted[passed:]
        made = iter(backward(*grads, *flat.restored(), needs) if any(needs) else ())
        return [grads[0] if wants else None for wants in wanted[:passed]] + [
            next(made) if needed else None for needed in needs
        ]

    forward_step = Step(
        name,
        forward_op,
        count,
        on_torch,
        pull_back,
        task_arguments=operation.task_arguments,
        task_axis=operation.task_axis,
        passed=passed,
    )
    node = nodes.with_backward(forward_step, operation.kernel)
    return _install(
        forward_step, operation.kernel, operation.fake, 0, operation.tokens, node, derived=operation.derived
    )


def define_with_gradients(
    name: str,
    tensors: str,
    options: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    task_arguments: frozenset[int],
) -> Callable[..., Any]:
    """Registers a mean over tasks that works out its gradients along with its value.

    Its last options are `bool[] needs`, one flag per tensor argument, and the backend's name; its results are the value
    and then the gradients needed. A backward only scales these, unless it must itself be differentiable. What comes
    behind the value in the results of the callable is none of its caller's business: a direct call keeps it.
    """
    count = tensors.count(",") + 1
    _LIBRARY.define(f"{name}({tensors}, {options}) -> Tensor[]")

    def value_on_torch(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(kernel(*arguments[:-2], [False] * count, "torch"))

    def pull_back(flat: Flat, wanted: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        return _pull_back_on_torch(value_on_torch, flat, wanted, grads)

    op = getattr(torch.ops.memformer_kernels, name).default
    step = Step(
        name,
        op,
        count,
        value_on_torch,
        pull_back,
        returns_list=True,
        task_arguments=task_arguments,
        averages=True,
    )
    return _install(step, kernel, fake, 0, 1, nodes.with_gradients(step, kernel))


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
    step: Step,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    tokens_at: int,
    tokens: int,
    node: Node,
    derived: frozenset[int] = frozenset(),
) -> Callable[..., Any]:
    """Registers everything about one schema, and returns the callable that the public functions use.

    derived: see `sharding.Rule`.
    """
    _LIBRARY.impl(step.name, kernel, "CompositeExplicitAutograd")
    _LIBRARY.fake(step.op, fake)
    flops.define(getattr(torch.ops.memformer_kernels, step.name), kernel, step.backend_at)
    _register_autograd(step, node)
    dispatched = _register_autocast(step, range(tokens_at, tokens_at + tokens))
    rule = vmap_rule(step, fake)

    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        dims: list[Any] = []
        for argument, dim in zip(arguments, in_dims, strict=True):
            size = len(argument) if isinstance(argument, list | tuple) else 1
            dims.extend(dim if isinstance(dim, list | tuple) else [dim] * size)
        return rule(info.batch_size, dims, flatten(arguments))

    _LIBRARY.vmap(step.op, vmap)
    names = tuple(_PUBLIC_NAMES.get(name, name) for name in torch_internals.argument_names(step.op))
    spreading = sharding.Rule(names, step.task_arguments, step.task_axis, step.averages, derived)
    return _dispatching(step, kernel, node, dispatched, spreading)


def _dispatching(
    step: Step, kernel: Callable[..., Any], node: Node, dispatched: Callable[..., Any], rule: sharding.Rule
) -> Callable[..., Any]:
    """`step.op` by the shortest way that the state of PyTorch allows.

    Where `fast_path` applies a call goes to the kernel, through `node` if a gradient is required. DTensors are taken
    apart, and their shards are the arguments of a call. Where neither a transform nor autocast has a say, the question
    whether a gradient is required is settled here, which spares the dispatcher a turn.
    """
    opaque = _below_autograd(step.op)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return sharding.spread(rule, call, arguments) if sharding.among(arguments) else dispatched(*arguments)
        learns = torch.is_grad_enabled() and torch_internals.any_requires_grad(*arguments)
        if fast_path.applies(arguments[step.backend_at], arguments):
            return node(kernel, arguments) if learns else kernel(*arguments)
        if sharding.among(arguments):
            return sharding.spread(rule, call, arguments)
        if transforming() or torch_internals.autocasts_somewhere():
            return dispatched(*arguments)
        return node(opaque, arguments) if learns else opaque(*arguments)

    nodes.turns[call.__code__] = False
    return call


def _below_autograd(op: Any) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with torch_internals.below_autograd():
            return op(*arguments)

    return call


def _register_autograd(step: Step, node: Node) -> None:
    """Every call that comes through the dispatcher is a node, whose tangents PyTorch asks for where there are any."""

    def kernel(keys: Any, *arguments: Any) -> Any:
        learns, pushes = torch.is_grad_enabled(), torch_internals.pushes_forward()

        def below(*arguments: Any) -> Any:
            # A node's forward runs with derivatives switched off: the transforms around this one take theirs.
            with (
                torch.set_grad_enabled(learns),
                torch_internals.set_pushes_forward(pushes),
                torch_internals.below_autograd(),
            ):
                return step.op.redispatch(keys & torch_internals.after_autograd, *arguments)

        nodes.turns[below.__code__] = False
        with torch_internals.enable_single_level_function():  # a transform has come to its level when it comes here
            return node(below, arguments)

    _LIBRARY.impl(step.name, kernel, "Autograd", with_keyset=True)


_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def _register_autocast(step: Step, tokens_at: range) -> Callable[..., Any]:
    """Under autocast tokens keep their dtype and everything else becomes float32: the sums of a Gram matrix need it.

    Returns a callable that does so before torch.func's transforms, to whose levels a switched-off autocast would not
    reach from inside them.
    """

    def cast(position: int, argument: Any, tokens: torch.dtype) -> Any:
        if isinstance(argument, list | tuple):
            return [x.to(tokens) if isinstance(x, Tensor) else x for x in argument]
        real = isinstance(argument, Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
        return argument.to(torch.float32) if real and position not in tokens_at else argument

    def kernel_on(device: str) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            # Registers have the tokens' dtype where a backward is given them and no tokens.
            first = arguments[tokens_at.start]
            tokens = (first if isinstance(first, Tensor) else first[0]).dtype
            with torch.autocast(device, enabled=False):
                return step.op(*(cast(i, x, tokens) for i, x in enumerate(arguments)))

        return kernel

    kernels = {device: kernel_on(device) for device in _AUTOCAST}
    for device, key in _AUTOCAST.items():
        _LIBRARY.impl(step.name, kernels[device], key)

    def call(*arguments: Any) -> Any:
        device = arguments[0].device.type
        if device in _AUTOCAST and torch.is_autocast_enabled(device):
            return kernels[device](*arguments)
        return step.op(*arguments)

    return call
