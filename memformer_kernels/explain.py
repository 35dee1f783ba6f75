"""`explain` and `warmup`: what a call would run, told from its arguments alone."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import functional
from memformer_kernels.backends import BACKENDS
from memformer_kernels.calls import attention as problem_blocks
from memformer_kernels.calls import plan, problem
from memformer_kernels.calls.arguments import Layer, Network, Quadratics
from memformer_kernels.calls.checks import check_flag
from memformer_kernels.torch_ops import gates

_ATTENTION = ("q", "k", "v", "causal", "context", "mask", "cu_seqlens")
"""The arguments of `linear_attention` that say what is computed."""


def explain(*arguments: Any, **options: Any) -> plan.Plan:
    """Backend, algorithm, regime and the reason for them, for the arguments of any public function.

    The function is recognised by its arguments: `explain(z, q, gamma=gamma)` is about a stack or a prediction,
    `explain(z, target, q)` a loss, `explain(z, q, registers=...)` with one layer's q (H, ., .) a layer, `explain(h, b,
    a)` a first-order method, `explain(q, k, v)` with four axes linear attention, `explain(z, [r, ...], gamma)` a
    register update and `explain(z)` a Gram matrix. Nothing is computed. Errors are those of the call.
    """
    function, bound = _bind(arguments, options)
    return _PLANNERS[function.__name__](bound)


def warmup(*arguments: Any, **options: Any) -> plan.Plan:
    """Builds, loads or compiles ahead whatever a call with these arguments would wait for, and returns its plan.

    Backward, for the arguments that require a gradient, as well as forward; the arguments of a prediction stand for a
    stack too. No kernel runs. What is compiled serves every number of tasks, and other numbers of tokens mostly too:
    sizes that are 1, or multiples of 16, have code of their own.
    """
    function, bound = _bind(arguments, options)
    chosen = _PLANNERS[function.__name__](bound)
    BACKENDS[chosen.backend].warmup(lambda: _REHEARSALS[function.__name__](bound, chosen))
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
    if "k" in options or (arguments and isinstance(arguments[0], Tensor) and arguments[0].ndim == 4):
        return functional.linear_attention
    if len(arguments) > 1 and isinstance(arguments[1], list | tuple):
        return functional.register_update
    if "target" in options or _axes(arguments, options, 1, "target") == 2:
        return functional.memformer_loss
    q_axes = _axes(arguments, options, 1, "q")
    if q_axes == 3 or "registers" in options:
        return functional.memformer_layer
    return functional.memformer_predict if q_axes == 4 or "q" in options else functional.context_gram


def _check_lengths(lengths: Tensor | None, z: Tensor, queries: int) -> None:
    if lengths is not None:
        problem.check_lengths(lengths, z.shape[1], queries)


def _plan_network(a: dict[str, Any]) -> plan.Plan:
    checked = problem.check_network(a["z"], a["q"], a["p"], a["gamma"], a["beta"], a["gate"], a["context"])
    queries = problem.check_queries(a["queries"], a["z"], checked.context, checked.lengths)
    if "target" in a:
        problem.check_target(a["target"], a["z"], queries)
    else:
        check_flag("layers", a["layers"])
    # Without a word on queries the call may be a stack, whose contexts may fill a task.
    _check_lengths(checked.lengths, a["z"], queries if "target" in a or a["queries"] is not None else 0)
    return plan.plan_network(checked, a["backend"], a["algorithm"])


def _plan_layer(a: dict[str, Any]) -> plan.Plan:
    problem.check_registers(a["registers"])
    checked = problem.check_layer(a["z"], a["q"], a["p"], a["registers"], a["gamma"], a["beta"], a["context"])
    _check_lengths(checked.lengths, a["z"], 0)
    return plan.plan_layer(checked, len(a["registers"]), a["backend"])


def _plan_gram(a: dict[str, Any]) -> plan.Plan:
    tokens = problem.check_tokens(a["z"])
    lengths = problem.check_context(a["context"], tokens)[1]
    _check_lengths(lengths, tokens, 0)
    device, number = tokens.device.type, tokens.device.index or 0
    return plan.plan_gram(tokens.shape[1], tokens.shape[2], lengths is not None, device, number)


def _plan_quadratics(a: dict[str, Any]) -> plan.Plan:
    checked = problem.check_quadratics(a["h"], a["b"], a["a"], a["gamma"], a["beta"], a["w0"])
    check_flag("layers", a["layers"])
    return plan.plan_quadratics(checked, a["backend"])


def _plan_attention(a: dict[str, Any]) -> plan.Plan:
    call = problem_blocks.check_attention(*(a[name] for name in _ATTENTION))
    return plan.plan_attention(call.q.shape[3], call.v.shape[3], call.q.device.type, a["backend"])


def _plan_update(a: dict[str, Any]) -> plan.Plan:
    call = problem_blocks.check_update(a["z"], a["registers"], a["gamma"])
    return plan.plan_update(call.z.dtype, call.z.device.type, a["backend"])


_PLANNERS: dict[str, Callable[[dict[str, Any]], plan.Plan]] = {
    "memformer_predict": _plan_network,
    "memformer_loss": _plan_network,
    "memformer_layer": _plan_layer,
    "context_gram": _plan_gram,
    "lfom_solve": _plan_quadratics,
    "linear_attention": _plan_attention,
    "register_update": _plan_update,
}


def _needs(tensors: Sequence[Tensor | None]) -> list[bool]:
    return [x is not None and x.requires_grad for x in tensors]


def _rehearse_network(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    checked = problem.check_network(a["z"], a["q"], a["p"], a["gamma"], a["beta"], a["gate"], a["context"])
    queries = problem.check_queries(a["queries"], a["z"], checked.context, checked.lengths)
    with torch.enable_grad():  # so that what a gate is folded into requires a gradient where the gate does
        q, gamma = gates.fold(a["gate"], a["q"], a["gamma"], a["beta"])
    network = Network(a["z"], q, a["p"], gamma, a["beta"], checked.lengths, checked.context, chosen.algorithm)
    needs = _needs(network[:6])
    if "target" in a:
        backend.loss(network, a["target"], queries, [needs[0], *_needs([a["target"]]), *needs[1:]])
        return
    predictions = backend.predict(network, queries, a["layers"])
    tokens = backend.stack(network)
    if any(needs):
        backend.predict_backward(torch.empty_like(predictions), network, queries, a["layers"], needs)
        backend.stack_backward(torch.empty_like(tokens), network, needs)


def _rehearse_layer(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    checked = problem.check_layer(a["z"], a["q"], a["p"], a["registers"], a["gamma"], a["beta"], a["context"])
    tensors = (a["z"], a["q"], a["p"], list(a["registers"]), a["gamma"], a["beta"], checked.lengths)
    layer = Layer(*tensors, checked.context)
    tokens, register = backend.layer(layer)
    needs = _needs([*tensors[:3], *tensors[3], *tensors[4:]])
    if any(needs):
        backend.layer_backward(torch.empty_like(tokens), torch.empty_like(register), layer, needs)


def _rehearse_gram(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    context, lengths = problem.check_context(a["context"], a["z"])
    made = backend.context_gram(a["z"], lengths, context)
    if a["z"].requires_grad:
        backend.context_gram_backward(torch.empty_like(made), a["z"], lengths, context)


def _rehearse_quadratics(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    quadratics = Quadratics(a["h"], a["b"], a["a"], a["gamma"], a["beta"], a["w0"])
    made = backend.lfom_solve(quadratics, a["layers"])
    needs = _needs(quadratics)
    if any(needs):
        backend.lfom_solve_backward(torch.empty_like(made), quadratics, a["layers"], needs)


def _rehearse_attention(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    call = problem_blocks.check_attention(*(a[name] for name in _ATTENTION))
    made = backend.attend(call)
    needs = _needs(call[:3])
    if any(needs):
        backend.attend_backward(made, call, needs)


def _rehearse_update(a: dict[str, Any], chosen: plan.Plan) -> None:
    backend = BACKENDS[chosen.backend]
    call = problem_blocks.check_update(a["z"], a["registers"], a["gamma"])
    made = backend.register_update(*call)
    needs = _needs([*call.registers, call.gamma])
    if any(needs):
        backend.register_update_backward(torch.empty_like(made), call.registers, call.gamma, needs)


_REHEARSALS: dict[str, Callable[[dict[str, Any], plan.Plan], None]] = {
    "memformer_predict": _rehearse_network,
    "memformer_loss": _rehearse_network,
    "memformer_layer": _rehearse_layer,
    "context_gram": _rehearse_gram,
    "lfom_solve": _rehearse_quadratics,
    "linear_attention": _rehearse_attention,
    "register_update": _rehearse_update,
}
