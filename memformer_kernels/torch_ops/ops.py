"""The operations that PyTorch knows: context_gram, stack, predict, loss, prefix_predict, prefix_loss, layer,
lfom_solve, proximal_solve, linear_attention and register_update.

Arguments come as checked by `problem` and chosen by `plan`. Each kernel packs them into a call and hands it to the
backend it was told; each fake says the shapes of the results.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.backends import BACKENDS, PREFIX_BACKENDS, PROXIMAL_BACKENDS
from memformer_kernels.backends.base import Backend
from memformer_kernels.calls.arguments import (
    Attention,
    Layer,
    Network,
    Proximal,
    Quadratics,
    compute_dtype,
    form_named,
)
from memformer_kernels.calls.attention import check_bounds
from memformer_kernels.calls.problem import check_lengths, check_weights
from memformer_kernels.torch_ops.registration import Operation, define, define_with_gradients
from memformer_kernels.torch_ops.weights import fold, scaled, takes_weights, unfold

_UNRAGGED = "Tensor z, Tensor q, Tensor? p, Tensor? gamma, Tensor? beta"
_CONTEXT = ", Tensor? lengths, Tensor? weights"
_NETWORK = _UNRAGGED + _CONTEXT
_LAYER = "Tensor z, Tensor q, Tensor? p, Tensor[] registers, Tensor? gamma, Tensor? beta" + _CONTEXT
_QUADRATICS = "Tensor h, Tensor b, Tensor a, Tensor? gamma, Tensor? beta, Tensor? w0"
_PROXIMAL = "Tensor? level, Tensor? lower, Tensor? upper, Tensor? radius"


def _network(tensors: Sequence[Any], form: str) -> Network:
    z, q, p, gamma, beta, lengths, weights, context = tensors
    return Network(z, q, p, gamma, beta, lengths, context, form_named(form), weights)


def _layer_of(tensors: Sequence[Any], form: str) -> Layer:
    *own, weights, context = tensors
    return Layer._make((*own, context, form_named(form), weights))


def _needed(needs: Sequence[bool], weights: Tensor | None) -> Sequence[bool]:
    """What a backend is told: without weights no word on their gradient."""
    return needs[:-1] if weights is None else needs


def _of_rows(call: Network | Layer, backend: str) -> Backend:
    """What computes a call that returns the context's rows: with weights the one that knows of them."""
    return BACKENDS[backend if call.weights is None else "torch"]


def _check_values(call: Network | Layer, queries: int) -> None:
    if call.lengths is not None:
        check_lengths(call.lengths, call.z.shape[1], queries)
    if call.weights is not None:
        check_weights(call.weights, call.lengths, call.context)


def _context_gram(z: Tensor, lengths: Tensor | None, context: int, backend: str) -> Tensor:
    if lengths is not None:
        check_lengths(lengths, z.shape[1], 0)
    return BACKENDS[backend].context_gram(z, lengths, context)


def _context_gram_backward(
    grad: Tensor, z: Tensor, lengths: Tensor | None, context: int, backend: str, needs: list[bool]
) -> list[Tensor]:
    return [BACKENDS[backend].context_gram_backward(grad, z, lengths, context)] if needs[0] else []


def _context_gram_fake(z: Tensor, lengths: Tensor | None, context: int, backend: str) -> Tensor:
    return z.new_empty((z.shape[0], z.shape[2], z.shape[2]), dtype=compute_dtype(z))


def _stack(*arguments: Any) -> Tensor:
    *network, form, backend = arguments
    call = _network(network, form)
    if call.lengths is not None or call.weights is not None:
        _check_values(call, 0)
    return _of_rows(call, backend).stack(call)


def _stack_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *network, form, backend, needs = arguments
    call = _network(network, form)
    return _of_rows(call, backend).stack_backward(grad, call, _needed(needs, call.weights))


def _stack_fake(z: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _predict(*arguments: Any) -> Tensor:
    *network, form, queries, layers, backend = arguments
    call = _network(network, form)
    if call.lengths is not None or call.weights is not None:
        _check_values(call, queries)
    if call.weights is not None and not takes_weights(call, backend):
        call = fold(call)[0]
    return BACKENDS[backend].predict(call, queries, layers)


def _predict_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *network, form, queries, layers, backend, needs = arguments
    call = _network(network, form)
    if call.weights is not None and not takes_weights(call, backend):
        if not needs[-1]:
            folded, scale = fold(call)
            grads = BACKENDS[backend].predict_backward(grad, folded, queries, layers, needs[:-1])
            return unfold(grads, call, needs[:-1], scale)
        backend = "torch"
    return BACKENDS[backend].predict_backward(grad, call, queries, layers, _needed(needs, call.weights))


def _predict_fake(z: Tensor, q: Tensor, *arguments: Any) -> Tensor:
    form, queries, layers, _ = arguments[-4:]
    slots = form_named(form).responses
    shape = (q.shape[0] if layers else 1, z.shape[0], queries)
    return z.new_empty(shape if slots == 1 else (*shape, slots), dtype=compute_dtype(z))


def _loss(
    z: Tensor,
    target: Tensor,
    q: Tensor,
    p: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    lengths: Tensor | None,
    weights: Tensor | None,
    context: int,
    form: str,
    queries: int,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    call = Network(z, q, p, gamma, beta, lengths, context, form_named(form), weights)
    if lengths is not None:
        check_lengths(lengths, z.shape[1], queries)
    if weights is None:
        return BACKENDS[backend].loss(call, target, queries, needs[:-1])
    check_weights(weights, lengths, context)
    if takes_weights(call, backend):
        return BACKENDS[backend].loss(call, target, queries, needs)
    if needs[-1]:
        return BACKENDS["torch"].loss(call, target, queries, needs)
    folded, scale = fold(call)
    value, *grads = BACKENDS[backend].loss(folded, target, queries, needs[:-1])
    if needs[0]:
        grads[0] = scaled(grads[0], scale)
    return [value, *grads]


def _loss_fake(*arguments: Any) -> list[Tensor]:
    z, needs = arguments[0], arguments[-2]
    grads = [
        torch.empty_like(tensor, dtype=compute_dtype(z), memory_format=torch.contiguous_format)
        for tensor, needed in zip(arguments, needs, strict=False)
        if needed and tensor is not None
    ]
    return [z.new_empty((), dtype=compute_dtype(z)), *grads]


def _prefixes(tensors: Sequence[Any], first: int, form: str) -> Network:
    return Network._make((*tensors, None, first, form_named(form), None))


def _prefix_predict(*arguments: Any) -> Tensor:
    *tensors, first, form, layers, backend = arguments
    return PREFIX_BACKENDS[backend].prefix_predict(_prefixes(tensors, first, form), layers)


def _prefix_predict_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, first, form, _, backend, needs = arguments
    return PREFIX_BACKENDS[backend].prefix_predict_backward(grad, _prefixes(tensors, first, form), needs)


def _prefix_predict_fake(z: Tensor, q: Tensor, *arguments: Any) -> Tensor:
    first, _, layers, _ = arguments[-4:]
    return z.new_empty((q.shape[0] if layers else 1, z.shape[0], z.shape[1] - first), dtype=compute_dtype(z))


def _prefix_loss(z: Tensor, target: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, first, form, needs, backend = arguments
    return PREFIX_BACKENDS[backend].prefix_loss(_prefixes((z, *tensors), first, form), target, needs)


def _layer(*arguments: Any) -> tuple[Tensor, Tensor]:
    *layer, form, backend = arguments
    call = _layer_of(layer, form)
    if call.lengths is not None or call.weights is not None:
        _check_values(call, 0)
    return _of_rows(call, backend).layer(call)


def _layer_backward(grad: Tensor, register_grad: Tensor, *arguments: Any) -> list[Tensor]:
    *layer, form, backend, needs = arguments
    call = _layer_of(layer, form)
    return _of_rows(call, backend).layer_backward(grad, register_grad, call, _needed(needs, call.weights))


def _layer_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    z, q, form = arguments[0], arguments[1], form_named(arguments[-2])
    batch, tokens, width = z.shape
    register = z.new_empty((batch, form.kept(q.shape[0]), tokens, width))
    return torch.empty_like(z, memory_format=torch.contiguous_format), register


def _lfom_solve(*arguments: Any) -> Tensor:
    *quadratics, layers, backend = arguments
    return BACKENDS[backend].lfom_solve(Quadratics(*quadratics), layers)


def _lfom_solve_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *quadratics, layers, backend, needs = arguments
    return BACKENDS[backend].lfom_solve_backward(grad, Quadratics(*quadratics), layers, needs)


def _lfom_solve_fake(h: Tensor, b: Tensor, a: Tensor, *arguments: Any) -> Tensor:
    layers = arguments[-2]
    return b.new_empty((a.shape[0] if layers else 1, *b.shape))


def _proximal_solve(*arguments: Any) -> Tensor:
    *tensors, layers, backend = arguments
    return PROXIMAL_BACKENDS[backend].proximal_solve(*_proximal_call(tensors), layers)


def _proximal_solve_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, layers, backend, needs = arguments
    return PROXIMAL_BACKENDS[backend].proximal_solve_backward(grad, *_proximal_call(tensors), layers, needs)


def _proximal_call(tensors: Sequence[Any]) -> tuple[Quadratics, Proximal]:
    count = len(Quadratics._fields)
    return Quadratics._make(tensors[:count]), Proximal._make(tensors[count:])


def _linear_attention(*arguments: Any) -> Tensor:
    *given, backend = arguments
    call = Attention(*given)
    if call.bounds is not None:
        check_bounds(call.bounds, call.q.shape[1])
    return BACKENDS[backend].attend(call)


def _linear_attention_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *call, backend, needs = arguments
    return BACKENDS[backend].attend_backward(grad, Attention(*call), needs)


def _linear_attention_fake(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    return v.new_empty((*q.shape[:3], v.shape[3]))


def _register_update(z: Tensor, registers: list[Tensor], gamma: Tensor, backend: str) -> Tensor:
    return BACKENDS[backend].register_update(z, registers, gamma)


def _register_update_backward(
    grad: Tensor, registers: list[Tensor], gamma: Tensor, backend: str, needs: list[bool]
) -> list[Tensor]:
    return BACKENDS[backend].register_update_backward(grad, registers, gamma, needs)


def _register_update_fake(z: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


context_gram: Callable[..., Tensor] = define(
    Operation(
        "context_gram",
        "Tensor z, Tensor? lengths",
        "SymInt context, str backend",
        _context_gram,
        _context_gram_backward,
        _context_gram_fake,
        task_arguments=frozenset({0, 1}),
    )
)
stack: Callable[..., Tensor] = define(
    Operation(
        "stack",
        _NETWORK,
        "SymInt context, str form, str backend",
        _stack,
        _stack_backward,
        _stack_fake,
        task_arguments=frozenset({0, 5, 6}),
    )
)
predict: Callable[..., Tensor] = define(
    Operation(
        "predict",
        _NETWORK,
        "SymInt context, str form, SymInt queries, bool layers, str backend",
        _predict,
        _predict_backward,
        _predict_fake,
        task_arguments=frozenset({0, 5, 6}),
        task_axis=1,
    )
)
loss: Callable[..., list[Tensor]] = define_with_gradients(
    "loss",
    _NETWORK.replace("Tensor z,", "Tensor z, Tensor target,"),
    "SymInt context, str form, SymInt queries, bool[] needs, str backend",
    _loss,
    _loss_fake,
    task_arguments=frozenset({0, 1, 6, 7}),
)
prefix_predict: Callable[..., Tensor] = define(
    Operation(
        "prefix_predict",
        _UNRAGGED,
        "SymInt first, str form, bool layers, str backend",
        _prefix_predict,
        _prefix_predict_backward,
        _prefix_predict_fake,
        task_arguments=frozenset({0}),
        task_axis=1,
    )
)
prefix_loss: Callable[..., list[Tensor]] = define_with_gradients(
    "prefix_loss",
    _UNRAGGED.replace("Tensor z,", "Tensor z, Tensor target,"),
    "SymInt first, str form, bool[] needs, str backend",
    _prefix_loss,
    _loss_fake,
    task_arguments=frozenset({0, 1}),
)
layer: Callable[..., tuple[Tensor, Tensor]] = define(
    Operation(
        "layer",
        _LAYER,
        "SymInt context, str form, str backend",
        _layer,
        _layer_backward,
        _layer_fake,
        task_arguments=frozenset({0, 3, 6, 7}),
        results=2,
    )
)
lfom_solve: Callable[..., Tensor] = define(
    Operation(
        "lfom_solve",
        _QUADRATICS,
        "bool layers, str backend",
        _lfom_solve,
        _lfom_solve_backward,
        _lfom_solve_fake,
        task_arguments=frozenset({0, 1, 5}),
        task_axis=1,
        tokens=0,
    )
)
proximal_solve: Callable[..., Tensor] = define(
    Operation(
        "proximal_solve",
        f"{_QUADRATICS}, {_PROXIMAL}",
        "bool layers, str backend",
        _proximal_solve,
        _proximal_solve_backward,
        _lfom_solve_fake,
        task_arguments=frozenset({0, 1, 5}),
        task_axis=1,
        tokens=0,
    )
)
linear_attention: Callable[..., Tensor] = define(
    Operation(
        "linear_attention",
        "Tensor q, Tensor k, Tensor v, Tensor? rows, Tensor? keys, Tensor? bounds",
        "str form, str backend",
        _linear_attention,
        _linear_attention_backward,
        _linear_attention_fake,
        task_arguments=frozenset({0, 1, 2, 3, 4}),
        tokens=3,
        derived=frozenset({3, 4, 5}),
    )
)
register_update: Callable[..., Tensor] = define(
    Operation(
        "register_update",
        "Tensor z, Tensor[] registers, Tensor gamma",
        "str backend",
        _register_update,
        _register_update_backward,
        _register_update_fake,
        task_arguments=frozenset({0, 1}),
        passes_on=True,
    )
)
