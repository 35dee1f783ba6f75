"""`explain` and `warmup`: what a call would run, told from its arguments alone."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import functional
from memformer_kernels.backends import BACKENDS
from memformer_kernels.calls import call
from memformer_kernels.calls.arguments import Call, Plan
from memformer_kernels.calls.problem import check_lengths


def explain(*arguments: Any, **options: Any) -> Plan:
    """Backend, algorithm, regime and the reason for them, for a call of one of the functions below. No kernel runs.

    The function is recognised by its arguments: `explain(z, q, gamma=gamma)` is about a stack or a prediction,
    `explain(z, target, q)` a loss, either with `first=...` of every prefix, `explain(z, q, registers=...)` with one
    layer's q (H, ., .) a layer, `explain(h, b, a)` a first-order method (b's columns (B, d, m) by name, `b=b`, since a
    layer's q has as many axes), `explain(q, k, v)` with four axes linear attention, `explain(z, [r, ...], gamma)` a
    register update and `explain(z)` a Gram matrix.

    Args:
        arguments: the call's, by place.
        options: the call's, by name.

    Returns:
        The plan that the call follows.

    Raises:
        ValueError, TypeError, RuntimeError: as the call does.

    Example:
        >>> explain(torch.randn(8, 21, 6), torch.randn(4, 1, 5, 5)).algorithm
        'gram'
    """
    return _plan(*_bind(arguments, options))


def warmup(*arguments: Any, **options: Any) -> Plan:
    """Builds, loads or compiles ahead whatever a call would wait for; runs no kernel of this package.

    Backward, for the arguments that require a gradient, as well as forward; the arguments of a prediction stand for a
    stack too. What is compiled serves every number of tasks, whatever that of the arguments, and other numbers of
    tokens mostly too: sizes that are 1, or multiples of 16, have code of their own. The same goes for alignment: memory
    that does not begin at a multiple of 16 bytes has code of its own.

    Args:
        arguments: the call's, by place, as in `explain`.
        options: the call's, by name.

    Returns:
        The plan that the call follows.

    Raises:
        ValueError, TypeError, RuntimeError: as the call does.
    """
    function, bound = _bind(arguments, options)
    chosen = _plan(function, bound)

    def rehearsal(tasks: int | None) -> None:
        _rehearse(function, _with_tasks(function, bound, tasks))

    BACKENDS[chosen.backend].warmup(rehearsal)
    return chosen


def _bind(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The public function whose arguments these are, and all of them by name."""
    function = _recognise(arguments, options)
    try:
        bound = inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{function.__name__}: {error}") from None
    bound.apply_defaults()
    return function, bound.arguments


def _axes(arguments: tuple[Any, ...], options: dict[str, Any], place: int, name: str) -> int | None:
    value = arguments[place] if len(arguments) > place else options.get(name)
    return value.ndim if isinstance(value, Tensor) else None


def _recognise(arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
    """The public function whose arguments these are, by their names and numbers of axes."""
    quadratic = not options.keys().isdisjoint({"h", "b", "a", "w0"})
    if quadratic or (_axes(arguments, options, 1, "b") == 2 and _axes(arguments, options, 2, "a") == 3):
        return functional.lfom_solve
    listed = len(arguments) > 1 and isinstance(arguments[1], list | tuple)
    if listed or ("registers" in options and len(arguments) < 2 and "q" not in options):
        return functional.register_update
    if "k" in options or (arguments and isinstance(arguments[0], Tensor) and arguments[0].ndim == 4):
        return functional.linear_attention
    # A layer's q has the axes of a target of several responses, but no network's q behind it.
    loss = "target" in options or _axes(arguments, options, 1, "target") == 2
    loss = loss or (_axes(arguments, options, 1, "target") == 3 and _axes(arguments, options, 2, "q") == 4)
    if "first" in options:
        return functional.memformer_prefix_loss if loss else functional.memformer_prefix_predict
    if loss:
        return functional.memformer_loss
    q_axes = _axes(arguments, options, 1, "q")
    if q_axes == 3 or "registers" in options:
        return functional.memformer_layer
    return functional.memformer_predict if q_axes == 4 or "q" in options else functional.context_gram


def _plan(function: Callable[..., Any], bound: dict[str, Any]) -> Plan:
    """The plan of a call: of the very check that the public function starts with."""
    found: Any = getattr(call, function.__name__.removeprefix("memformer_"))(*bound.values())
    if not isinstance(found, Call):
        plan: Plan = found[1]
        return plan
    if found.lengths is not None:
        # Without a word on queries the call may be a stack, whose contexts may fill a task.
        predicts = bound.get("queries") is not None or function is functional.memformer_loss
        check_lengths(found.lengths, bound["z"].shape[1], found.queries if predicts else 0)
    return found.plan


_OF_TASKS = {
    functional.lfom_solve: ("h", "b", "w0"),
    functional.linear_attention: ("q", "k", "v", "mask", "context"),
    functional.register_update: (),
}
"""Arguments whose first axis is that of tasks, where they are others than a network's."""


def _of_tasks(function: Callable[..., Any], bound: dict[str, Any]) -> tuple[str, ...]:
    """The names of arguments whose first axis is that of tasks: packed sequences are one sample."""
    if bound.get("cu_seqlens") is not None:
        return ()
    return _OF_TASKS.get(function, ("z", "target", "registers", "context", "weights"))


def _with_tasks(function: Callable[..., Any], bound: dict[str, Any], tasks: int | None) -> dict[str, Any]:
    """The arguments with so many tasks, the first of those that there are: results of all would take their memory.

    A register update's tokens and packed sequences stay as they are.
    """
    if tasks is None:
        return bound
    names = _of_tasks(function, bound)

    def with_tasks(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [with_tasks(x) for x in value]
        return _repeated(value, tasks) if isinstance(value, Tensor) and value.ndim else value

    return {name: with_tasks(value) if name in names else value for name, value in bound.items()}


def _repeated(x: Tensor, tasks: int) -> Tensor:
    """A leaf with x's first tasks, of x's strides and alignment; more than x has are like its first, or ones."""
    count = x.shape[0]
    if count >= tasks:
        made = x.detach()[:tasks]
    else:
        made = torch.ones((tasks, *x.shape[1:]), dtype=x.dtype, device=x.device)
        if count:
            made.copy_(x.detach()[:1].expand_as(made))
    return made.requires_grad_(x.requires_grad)


def _rehearse(function: Callable[..., Any], bound: dict[str, Any]) -> None:
    """Makes the call, and its backward for what requires a gradient, where the backend runs no kernel.

    On this thread alone: autograd would go through a GPU's backward on another, which no rehearsal reaches.
    """
    given = [x for value in bound.values() for x in (value if isinstance(value, list | tuple) else [value])]
    leaves = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    calls = [(function, bound)]
    if function is functional.memformer_predict:  # which stands for the stack of the same arguments too
        shared = inspect.signature(functional.memformer_stack).parameters
        calls.append((functional.memformer_stack, {name: bound[name] for name in shared}))
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
        for called, arguments in calls:
            made = called(**arguments)
            results = [made] if isinstance(made, Tensor) else list(made)
            if leaves:
                torch.autograd.grad(results, leaves, [torch.empty_like(x) for x in results], allow_unused=True)
