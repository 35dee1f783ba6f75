"""A public function's arguments, checked and planned for: one `Call`, the same for running, explaining and warming up.

Each function here takes what the public function of that name takes, in the same order. Calls whose arguments look
alike get the answer that the first of them got.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from memformer_kernels.calls import plan, problem
from memformer_kernels.calls.arguments import OF_TASKS, Attention, Call, Plan, Update
from memformer_kernels.calls.attention import check_attention
from memformer_kernels.calls.checks import check_flag
from memformer_kernels.calls.memo import remembered
from memformer_kernels.calls.proximal import check_proximal
from memformer_kernels.calls.register_update import check_update


@remembered
def stack(*arguments: Any) -> Call:
    """Of `memformer_stack`."""
    *network, backend, algorithm = arguments
    checked = problem.check_network(*network)
    return _of_network(checked, 0, plan.plan_stack(checked, backend, algorithm))


@remembered
def predict(z: Tensor, *arguments: Any) -> Call:
    """Of `memformer_predict`."""
    *network, queries, layers, responses, weights, backend, algorithm = arguments
    checked = problem.check_network(*[z, *network, responses, weights])
    predicted = problem.check_queries(queries, z, checked.context, checked.lengths)
    check_flag("layers", layers)
    return _of_network(checked, predicted, plan.plan_network(checked, backend, algorithm))


@remembered
def loss(z: Tensor, target: Tensor, *arguments: Any) -> Call:
    """Of `memformer_loss`."""
    *network, queries, responses, weights, backend, algorithm = arguments
    checked = problem.check_network(*[z, *network, responses, weights])
    predicted = problem.check_queries(queries, z, checked.context, checked.lengths)
    problem.check_target(target, z, predicted, checked.responses)
    return _of_network(checked, predicted, plan.plan_network(checked, backend, algorithm))


@remembered
def prefix_predict(*arguments: Any) -> Call:
    """Of `memformer_prefix_predict`."""
    *network, layers, backend = arguments
    checked = problem.check_prefixes(*network)
    check_flag("layers", layers)
    return _of_network(checked, checked.tokens - checked.context, plan.plan_prefixes(checked, backend))


@remembered
def prefix_loss(z: Tensor, target: Tensor, *arguments: Any) -> Call:
    """Of `memformer_prefix_loss`."""
    *network, backend = arguments
    checked = problem.check_prefixes(z, *network)
    predicted = checked.tokens - checked.context
    problem.check_target(target, z, predicted)
    return _of_network(checked, predicted, plan.plan_prefixes(checked, backend))


def layer(
    z: Tensor,
    q: Tensor,
    p: Tensor | None,
    registers: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    context: int | Tensor | None,
    weights: Tensor | None,
    backend: str,
) -> Call:
    """Of `memformer_layer`."""
    problem.check_registers(registers)
    return _layer(z, q, p, gamma, beta, context, weights, backend, *registers)


@remembered
def _layer(*arguments: Any) -> Call:
    z, q, p, gamma, beta, context, weights, backend, *registers = arguments
    checked = problem.check_layer(z, q, p, registers, gamma, beta, context, weights)
    return _of_network(checked, 0, plan.plan_layer(checked, len(registers), backend))


@remembered
def context_gram(z: Tensor, context: int | Tensor | None) -> Call:
    """Of `context_gram`."""
    tokens = problem.check_tokens(z)
    count, lengths = problem.check_context(context, tokens)
    device, number = tokens.device.type, tokens.device.index or 0
    chosen = plan.plan_gram(tokens.shape[1], tokens.shape[2], lengths is not None, device, number)
    return Call(count, lengths, 0, "", chosen.backend, chosen)


@remembered
def lfom_solve(*arguments: Any) -> Call:
    """Of `lfom_solve`."""
    *quadratics, level, lower, upper, radius, layers, backend = arguments
    checked = problem.check_quadratics(*quadratics)
    proximal = check_proximal(level, lower, upper, radius, quadratics[2], quadratics[0])
    check_flag("layers", layers)
    chosen = (plan.plan_proximal if proximal else plan.plan_quadratics)(checked, backend)
    return Call(0, None, 0, OF_TASKS if checked.per_task else "", chosen.backend, chosen)


def linear_attention(*arguments: Any) -> tuple[Attention, Plan]:
    """Of `linear_attention`, with its tokens and their weights."""
    *given, backend = arguments
    checked = check_attention(*given)
    device, number = checked.q.device.type, checked.q.device.index or 0
    return checked, plan.plan_attention(checked.q.shape[3], checked.v.shape[3], device, backend, number)


def register_update(*arguments: Any) -> tuple[Update, Plan]:
    """Of `register_update`, with its tokens and coefficients in the axes that kernels know."""
    *given, backend = arguments
    checked = check_update(*given)
    device, number = checked.z.device.type, checked.z.device.index or 0
    return checked, plan.plan_update(checked.z.dtype, device, backend, number)


def _of_network(checked: problem.Problem, queries: int, chosen: Plan) -> Call:
    form = checked.form(chosen.algorithm)
    return Call(checked.context, checked.lengths, queries, form, chosen.backend, chosen)
