"""The short way of a plain eager call: autograd's node, or nobody at all, calls a native backend, not the dispatcher.

The dispatcher boxes a dozen arguments of a registered operation, calls back into Python, and only there meets the
native library's operator, another turn of the dispatcher. Where nobody but autograd listens the first turn has no
effect; what leaving it out saves is told in benchmarks/NOTES.md. Those who could listen are compilers, torch.func,
forward-mode AD, autocast, modes, tracers, profilers and subclasses of Tensor. With any of them a call takes the
registered operation.
"""

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.transforms import transforming

_NATIVE = frozenset(("cpu", "cuda"))
"""Backends whose kernels are the dispatcher's operators themselves: negated views and the like are resolved there."""

_PLAIN = frozenset((Tensor, torch.nn.Parameter, NoneType, int, bool, str, tuple))


def applies(backend: str, arguments: Sequence[Any]) -> bool:
    """Whether nothing but autograd sees this call, and the kernel may be called directly. No compiler traces this."""
    plain = _PLAIN.issuperset(map(type, arguments)) or _plain_with_lists(arguments)
    return backend in _NATIVE and plain and undisturbed()


def undisturbed() -> bool:
    """Whether nothing but autograd sees what this thread does with plain tensors. No compiler traces this."""
    return not (
        transforming()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
    )


def _plain_with_lists(arguments: Sequence[Any]) -> bool:
    kinds = set(map(type, arguments))
    for argument in arguments:
        if type(argument) is list:
            kinds.update(map(type, argument))
    return kinds <= _PLAIN | {list}


def bare_apply(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """node.apply without what it does for torch.func's transforms, none of which is active: 3 us a call."""
    bare: Callable[..., Any] = super(torch.autograd.Function, node).apply  # type: ignore[misc]
    return bare


def value_with_gradients(
    op: Any, kernel: Callable[..., list[Tensor]], tensors: int, again: Callable[..., list[Tensor | None]]
) -> Callable[..., list[Tensor]]:
    """A scalar operation that works out its gradients along with its value, as one node of autograd's graph.

    op and kernel take `tensors` tensors, and options of which the last but one says which of the tensors' gradients are
    needed: all that autograd may ask for. They return the value and these gradients; the callable returns [value].

    The node keeps the gradients. Its first backward hands them out, multiplied in place, whatever has become of the
    arguments since. If the graph is kept and there is another, it works them out again. One that must itself be
    differentiable is left to `again`, which takes the arguments, which gradients are wanted, and the value's gradient.
    """

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, arguments: tuple[Any, ...], *given: Tensor | None) -> Tensor:
            value, *ctx.ready = kernel(*arguments)
            ctx.options = arguments[tensors:]
            ctx.save_for_backward(*given)
            return value

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            if torch.is_grad_enabled():
                arguments = [*ctx.saved_tensors, *ctx.options]
                return (None, *again(arguments, ctx.needs_input_grad[1:], (grad,)))
            ready = vars(ctx).pop("ready", None)
            if ready is None:
                ready = op(*ctx.saved_tensors, *ctx.options)[1:]
            made = iter(_scaled(ready, grad))  # autograd brings each to its tensor's dtype
            return (None, *[next(made) if needed else None for needed in ctx.options[-2]])

    apply = bare_apply(Value)

    def call(arguments: tuple[Any, ...]) -> list[Tensor]:
        return [apply(arguments, *arguments[:tensors])]

    return call


def _scaled(ready: list[Tensor], scale: Tensor) -> Sequence[Tensor]:
    """Gradients that nobody else holds times that of the value, which is 1 wherever the value is what is minimised."""
    if (
        type(scale) is not Tensor
        or transforming()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.is_legacy_batchedtensor(scale)  # by torch.autograd.grad(is_grads_batched=True)
    ):
        return [grad * scale for grad in ready]
    if not scale.is_cpu or scale.item() != 1.0:
        torch._foreach_mul_(ready, scale)
    return ready
