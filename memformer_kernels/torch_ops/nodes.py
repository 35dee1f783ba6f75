"""An operation as a node of autograd's graph, one for every way that a call can take.

A node is given what runs the operation: its kernel on the short way (see `fast_path`), on other ways the dispatcher
below its Autograd key. It saves the arguments that its backward reads and nothing else, whoever listens, since
checkpointing counts what is saved; reading them, each backward raises if one has been changed in place since. Tangents
only come the long way, and are pushed through the PyTorch backend's formulas.

Nodes are of one level: the dispatcher has come to a transform's level before it leads to a node, and no other way leads
there inside transforms. What torch.autograd.Function does for torch.func beyond that would cost 3 us a call.
"""

from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import torch_internals
from memformer_kernels.torch_internals import SingleLevelFunction, transforming
from memformer_kernels.torch_ops.transforms import Flat, Step, by_slices, flatten, is_batched, push_forward

Node = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""Takes what runs the operation and its arguments; returns its results."""


turns: dict[CodeType, bool] = {}
"""Code that a call passes through, and whether it turns off the grad mode that the caller has on.

Autograd runs a node's forward so. A signal's handler that runs meanwhile is to find what the caller has, and the native
library looks for the innermost of these among the frames of the call (csrc/binding/signals.cpp).
"""


def with_backward(step: Step, kernel: Callable[..., Any]) -> Node:
    """The node of an operation whose gradients are another operation's results.

    With torch.library.register_autograd an empty operation costs more than a whole call so: see `benchmarks overhead`.
    """

    class Differentiable(SingleLevelFunction):
        @staticmethod
        def forward(
            ctx: Any, run: Callable[..., Any], arguments: tuple[Any, ...], template: Any, *tensors: Tensor | None
        ) -> Any:
            output = run(*arguments)
            ctx.template, ctx.options = template, arguments[step.tensors :]
            ctx.save_for_backward(*tensors[step.passed :])
            if run is not kernel:
                ctx.save_for_forward(*tensors)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            template = None if ctx.template is None else ctx.template[step.passed :]
            flat, wanted = Flat((*ctx.saved_tensors, *ctx.options), template), ctx.needs_input_grad[3:]
            if any(map(is_batched, grads)):
                return (None, None, None, *by_slices(lambda *one: step.pull_back(flat, wanted, one), grads))
            return (None, None, None, *step.pull_back(flat, wanted, grads))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            flat = Flat((*ctx.saved_tensors, *ctx.options), ctx.template)
            made = push_forward(step.on_torch, flat, tangents[3:])
            return made[0] if len(made) == 1 else tuple(made)

    turns[Differentiable.forward.__code__] = True
    apply: Callable[..., Any] = Differentiable.apply  # type: ignore[attr-defined]

    def node(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        flat = flatten(arguments[: step.tensors])
        template = None if flat.template is None else (*flat.template, *[None for _ in arguments[step.tensors :]])
        made = apply(run, arguments, template, *flat.values)
        return list(made) if step.returns_list and isinstance(made, tuple) else made

    return node


def with_gradients(step: Step, kernel: Callable[..., list[Tensor]]) -> Node:
    """The node of a scalar operation that works out its gradients along with its value.

    The last option but one says which of the tensors' gradients are needed: all that autograd may ask for on the short
    way. The results are the value and these gradients; on the short way the value alone.

    The node keeps the gradients. Its first backward hands them out, multiplied in place where nobody else has them. If
    the graph is kept and there is another, it works them out again. Where the backward must itself be differentiable,
    gradients come from `step.pull_back`.
    """

    class Value(SingleLevelFunction):
        @staticmethod
        def forward(
            ctx: Any, run: Callable[..., list[Tensor]], arguments: tuple[Any, ...], *tensors: Tensor | None
        ) -> Tensor:
            value, *ctx.ready = run(*arguments)
            ctx.options, ctx.alone = arguments[step.tensors :], run is kernel
            ctx.save_for_backward(*tensors)
            if run is not kernel:
                ctx.save_for_forward(*tensors)
            return value

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            tensors, needs = ctx.saved_tensors, ctx.options[-2]
            if torch.is_grad_enabled() or transforming() or not (ctx.alone or _all_ready(ctx, needs)):
                flat, wanted = Flat((*tensors, *ctx.options), None), ctx.needs_input_grad[2:]
                return (None, None, *by_slices(lambda one: step.pull_back(flat, wanted, (one,)), (grad,)))
            ready = vars(ctx).pop("ready", None)
            if ready is None:
                ready = step.op(*tensors, *ctx.options)[1:]
            made = iter(_scaled(ready, grad, ctx.alone))  # autograd brings each to its tensor's dtype
            return (None, None, *[next(made) if needed else None for needed in needs])

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            return push_forward(step.on_torch, Flat((*ctx.saved_tensors, *ctx.options), None), tangents[2:])[0]

    turns[Value.forward.__code__] = True
    apply: Callable[..., Any] = Value.apply  # type: ignore[attr-defined]

    def node(run: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
        if run is kernel:
            return [apply(run, arguments, *arguments[: step.tensors])]
        results: list[Tensor] = []

        def keep(*arguments: Any) -> list[Tensor]:
            results.extend(run(*arguments))
            return results

        return [apply(keep, arguments, *arguments[: step.tensors]), *results[1:]]

    return node


def _all_ready(ctx: Any, needs: Sequence[bool]) -> bool:
    return all(needed or not wanted for needed, wanted in zip(needs, ctx.needs_input_grad[2:], strict=True))


def _scaled(ready: list[Tensor], scale: Tensor, alone: bool) -> Sequence[Tensor]:
    """Gradients times that of the value, which is 1 wherever the value is what is minimised."""
    if not alone or type(scale) is not Tensor or torch_internals.dispatch_modes() or is_batched(scale):
        return [grad * scale for grad in ready]
    if not scale.is_cpu or scale.item() != 1.0:
        torch_internals.scale_all(ready, scale)
    return ready
