"""`explain` and `warmup`: what a call would run, told from its arguments alone."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from memformer_kernels import blocks, functional, plan, problem, problem_blocks
from memformer_kernels.backends import BACKENDS


def explain(*arguments: Any, **options: Any) -> plan.Plan:
    """Backend, algorithm, regime and the reason for them, for the arguments of any public function.

    The function is recognised by its arguments: `explain(z, q, gamma=gamma)` is about a stack or a prediction,
    `explain(z, target, q)` a loss, `explain(z, q, registers=...)` with one layer's q (H, ., .) a layer, `explain(h, b,
    a)` a first-order method, `explain(q, k, v)` with four axes linear attention, `explain(z, [r, ...], gamma)` a
    register update and `explain(z)` a Gram matrix. Nothing is computed. Errors are those of the call.
    """
    function = _recognise(arguments, options)
    try:
        bound = inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{function.__name__}: {error}") from None
    bound.apply_defaults()
    return _PLANNERS[function](bound.arguments)


def warmup(*arguments: Any, **options: Any) -> plan.Plan:
    """Builds, loads or compiles ahead whatever a call with these arguments would wait for, and returns its plan."""
    chosen = explain(*arguments, **options)
    BACKENDS[chosen.backend].warmup()
    return chosen


def _axes(arguments: tuple[Any, ...], options: dict[str, Any], place: int, name: str) -> int | None:
    value = arguments[place] if len(arguments) > place else options.get(name)
    return value.ndim if isinstance(value, Tensor) else None


def _recognise(arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
    """The public function whose arguments these are, by their names and numbers of axes."""
    quadratic = not options.keys().isdisjoint({"h", "b", "a", "w0"})
    if quadratic or (_axes(arguments, options, 1, "b") == 2 and _axes(arguments, options, 2, "a") == 3):
        return functional.lfom_solve
    if "k" in options or (arguments and isinstance(arguments[0], Tensor) and arguments[0].ndim == 4):
        return blocks.linear_attention
    if len(arguments) > 1 and isinstance(arguments[1], list | tuple):
        return blocks.register_update
    if "target" in options or _axes(arguments, options, 1, "target") == 2:
        return functional.memformer_loss
    q_axes = _axes(arguments, options, 1, "q")
    if q_axes == 3 or "registers" in options:
        return functional.memformer_layer
    return functional.memformer_predict if q_axes == 4 else functional.context_gram


def _check_lengths(lengths: Tensor | None, z: Tensor, queries: int) -> None:
    if lengths is not None:
        problem.check_lengths(lengths, z.shape[1], queries)


def _plan_network(a: dict[str, Any]) -> plan.Plan:
    checked = problem.check_network(a["z"], a["q"], a["p"], a["gamma"], a["beta"], a["gate"], a["context"])
    queries = problem.check_queries(a["queries"], a["z"], checked.context, checked.lengths)
    if "target" in a:
        problem.check_target(a["target"], a["z"], queries)
    else:
        problem.check_flag("layers", a["layers"])
    # Without a word on queries the call may be a stack, whose contexts may fill a task.
    _check_lengths(checked.lengths, a["z"], queries if "target" in a or a["queries"] is not None else 0)
    return plan.plan_network(checked, a["backend"], a["algorithm"])


def _plan_layer(a: dict[str, Any]) -> plan.Plan:
    checked = problem.check_layer(a["z"], a["q"], a["p"], a["registers"], a["gamma"], a["beta"], a["context"])
    _check_lengths(checked.lengths, a["z"], 0)
    return plan.plan_layer(checked, a["backend"])


def _plan_gram(a: dict[str, Any]) -> plan.Plan:
    tokens = problem.check_tokens(a["z"])
    _check_lengths(problem.check_context(a["context"], tokens)[1], tokens, 0)
    return plan.plan_gram(tokens.shape[2], tokens.device.type)


def _plan_quadratics(a: dict[str, Any]) -> plan.Plan:
    checked = problem.check_quadratics(a["h"], a["b"], a["a"], a["gamma"], a["beta"], a["w0"])
    problem.check_flag("layers", a["layers"])
    return plan.plan_quadratics(checked, a["backend"])


def _plan_attention(a: dict[str, Any]) -> plan.Plan:
    names = ("q", "k", "v", "causal", "context", "mask", "cu_seqlens")
    call = problem_blocks.check_attention(*(a[name] for name in names))
    return plan.plan_attention(call.q.shape[3], call.v.shape[3], call.q.device.type, a["backend"])


def _plan_update(a: dict[str, Any]) -> plan.Plan:
    call = problem_blocks.check_update(a["z"], a["registers"], a["gamma"])
    return plan.plan_update(call.z.dtype, call.z.device.type, a["backend"])


_PLANNERS: dict[Callable[..., Any], Callable[[dict[str, Any]], plan.Plan]] = {
    functional.memformer_predict: _plan_network,
    functional.memformer_loss: _plan_network,
    functional.memformer_layer: _plan_layer,
    functional.context_gram: _plan_gram,
    functional.lfom_solve: _plan_quadratics,
    blocks.linear_attention: _plan_attention,
    blocks.register_update: _plan_update,
}
