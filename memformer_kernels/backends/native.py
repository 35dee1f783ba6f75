"""The native backends, from one mathematical core (csrc/core) and with one set of operators.

On the CPU (csrc/cpu) tiny problems run one task per SIMD lane, all layers in registers and cache; those that are not
tiny have vectors along one task. On CUDA GPUs (csrc/cuda) tiny
problems run one task per thread or a few, in registers and shared memory. Tensors go to the library as they are, of any
strides and precision; results and gradients are allocated here and written there. Sums over tasks run in an order that
no number of threads changes.
"""

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import library
from memformer_kernels.backends.base import Needs
from memformer_kernels.calls.arguments import Attention, Layer, Network, Proximal, Quadratics, compute_dtype

_OPERATORS = (
    "context_gram",
    "context_gram_backward",
    "forward",
    "backward",
    "loss",
    "layer",
    "layer_backward",
    "lfom_solve",
    "lfom_solve_backward",
)
_CPU_OPERATORS = (
    "weighted_forward",
    "weighted_backward",
    "weighted_loss",
    "prefix_predict",
    "prefix_predict_backward",
    "prefix_loss",
    "proximal_solve",
    "proximal_solve_backward",
    "attention",
    "attention_backward",
    "register_update",
    "register_update_backward",
)


class NativeBackend:
    """The operations on tensors of one library's device, "cpu" or "cuda"; `calls.plan` says which problems it serves.

    The CUDA library has no kernels for weights, every prefix, steps that end in a prox, attention and the register
    update: their calls go elsewhere.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @functools.cached_property
    def _operators(self) -> Any:
        found = library.operators(self._name)
        names = _OPERATORS + _CPU_OPERATORS if self._name == "cpu" else _OPERATORS
        return SimpleNamespace(**{name: getattr(found, name).default for name in names})

    def context_gram(self, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        matrix = z.new_empty((z.shape[0], z.shape[2], z.shape[2]), dtype=compute_dtype(z))
        self._operators.context_gram(z, _plain(lengths), context, matrix)
        return matrix

    def context_gram_backward(self, grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        grad_z = _like(z)
        self._operators.context_gram_backward(grad, z, _plain(lengths), context, grad_z)
        return grad_z

    def stack(self, network: Network) -> Tensor:
        result = _like(network.z)
        self._operators.forward(*_arguments(network), -1, result)
        return result

    def stack_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        grads = _gradients(network[:6], needs)
        self._operators.backward(grad, *_arguments(network), -1, *grads[:5])
        return _made(grads)

    def predict(self, network: Network, queries: int, layers: bool) -> Tensor:
        depth = network.q.shape[0] if layers else 1
        result = network.z.new_empty((depth, network.z.shape[0], queries), dtype=compute_dtype(network.z))
        if network.weights is not None:
            self._operators.weighted_forward(*_weighted(network, queries), result)
        else:
            self._operators.forward(*_arguments(network), queries, result)
        return result

    def predict_backward(
        self, grad: Tensor, network: Network, queries: int, layers: bool, needs: Needs
    ) -> list[Tensor]:
        if network.weights is not None:
            grads = _gradients([*network[:6], network.weights], needs)
            own = (*grads[:5], grads[6])
            self._operators.weighted_backward(grad, *_weighted(network, queries), *own)
            return _made(grads)
        grads = _gradients(network[:6], needs)
        self._operators.backward(grad, *_arguments(network), queries, *grads[:5])
        return _made(grads)

    def loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        # Spelled out: a training call on one task is made of frames, and each helper is one.
        z, q, p, gamma, beta, lengths, context, form, weights = network
        if weights is not None:
            return self._weighted_loss(network, target, queries, needs)
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        value = z.new_empty((), dtype=dtype)
        grads = [
            torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            if needed and x is not None
            else None
            for x, needed in zip((z, target, q, p, gamma, beta), needs, strict=False)
        ]
        if lengths is not None:
            lengths = _plain(lengths)
        gram_space = form.space == "gram"
        self._operators.loss(z, target, q, p, gamma, beta, lengths, context, gram_space, queries, value, *grads)
        return [value, *[grad for grad in grads if grad is not None]]

    def _weighted_loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        z, *parameters = network[:5]
        value = z.new_empty((), dtype=compute_dtype(z))
        tensors = (z, target, *parameters, network.lengths, network.weights)
        grads = [
            torch.empty_like(x, dtype=value.dtype, memory_format=torch.contiguous_format)
            if needed and x is not None
            else None
            for x, needed in zip(tensors, needs, strict=True)
        ]
        *own, _, weights = grads
        _, *arguments = _weighted(network, queries)
        self._operators.weighted_loss(z, target, *arguments, value, *own, weights)
        return [value, *_made(grads)]

    def prefix_predict(self, network: Network, layers: bool) -> Tensor:
        z, depth = network.z, network.q.shape[0] if layers else 1
        result = z.new_empty((depth, z.shape[0], z.shape[1] - network.context), dtype=compute_dtype(z))
        self._operators.prefix_predict(*network[:5], network.context, result)
        return result

    def prefix_predict_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        grads = _gradients(network[:5], needs)
        self._operators.prefix_predict_backward(grad, *network[:5], network.context, *grads)
        return _made(grads)

    def prefix_loss(self, network: Network, target: Tensor, needs: Needs) -> list[Tensor]:
        dtype = compute_dtype(network.z)
        value = network.z.new_empty((), dtype=dtype)
        tensors = (network.z, target, *network[1:5])
        grads = [
            torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            if needed and x is not None
            else None
            for x, needed in zip(tensors, needs, strict=True)
        ]
        self._operators.prefix_loss(*tensors, network.context, value, *grads)
        return [value, *_made(grads)]

    def layer(self, layer: Layer) -> tuple[Tensor, Tensor]:
        batch, tokens, width = layer.z.shape
        heads = layer.form.kept(layer.q.shape[0])
        result, register = _like(layer.z), layer.z.new_empty((batch, heads, tokens, width))
        self._operators.layer(*_layer_arguments(layer), result, register)
        return result, register

    def layer_backward(self, grad: Tensor, register_grad: Tensor, layer: Layer, needs: Needs) -> list[Tensor]:
        arguments = [layer.z, layer.q, layer.p, *layer.registers, layer.gamma, layer.beta, layer.lengths]
        grads = _gradients(arguments, needs)
        z, q, p, *registers, gamma, beta, _ = grads
        wanted = [register is not None for register in registers]
        self._operators.layer_backward(
            grad, register_grad, *_layer_arguments(layer), z, _made(registers), wanted, q, p, gamma, beta
        )
        return _made(grads)

    def lfom_solve(self, quadratics: Quadratics, layers: bool) -> Tensor:
        depth = quadratics.a.shape[0] if layers else 1
        result = quadratics.b.new_empty((depth, *quadratics.b.shape))
        self._operators.lfom_solve(*_spread(quadratics), result)
        return result

    def lfom_solve_backward(self, grad: Tensor, quadratics: Quadratics, layers: bool, needs: Needs) -> list[Tensor]:
        grads = _gradients(quadratics, needs)
        h, b, a, gamma, beta, w0 = grads
        spread = _spread(Quadratics(quadratics.h, quadratics.b, quadratics.a, gamma, beta, None))
        self._operators.lfom_solve_backward(grad, *_spread(quadratics), h, b, a, spread.gamma, spread.beta, w0)
        return _made(grads)

    def proximal_solve(self, quadratics: Quadratics, proximal: Proximal, layers: bool) -> Tensor:
        depth = quadratics.a.shape[0] if layers else 1
        result = quadratics.b.new_empty((depth, *quadratics.b.shape))
        self._operators.proximal_solve(*_spread(quadratics), *map(_by_layer, proximal), result)
        return result

    def proximal_solve_backward(
        self, grad: Tensor, quadratics: Quadratics, proximal: Proximal, layers: bool, needs: Needs
    ) -> list[Tensor]:
        grads = _gradients([*quadratics, *proximal], needs)
        h, b, a, gamma, beta, w0, *steps = grads
        spread = _spread(Quadratics(quadratics.h, quadratics.b, quadratics.a, gamma, beta, None))
        arguments = [*_spread(quadratics), *map(_by_layer, proximal)]
        own = [h, b, a, spread.gamma, spread.beta, w0, *map(_by_layer, steps)]
        self._operators.proximal_solve_backward(grad, *arguments, *own)
        return _made(grads)

    def attend(self, call: Attention) -> Tensor:
        result = call.v.new_empty((*call.q.shape[:3], call.v.shape[3]))
        self._operators.attention(*_attention_arguments(call), result)
        return result

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        grads = _gradients(call[:3], needs[:3])
        self._operators.attention_backward(grad, *_attention_arguments(call), *grads)
        return _made(grads)

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        result = torch.empty_like(z, memory_format=torch.contiguous_format)
        self._operators.register_update(z.contiguous(), _contiguous(registers), gamma.contiguous(), result)
        return result

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        *own, coefficients = grads = _gradients([*registers, gamma], needs)
        wanted = [register is not None for register in own]
        self._operators.register_update_backward(
            grad.contiguous(), _contiguous(registers), gamma.contiguous(), _made(own), wanted, coefficients
        )
        return _made(grads)

    def warmup(self, rehearsal: Callable[[int | None], object]) -> None:
        """Loads the library, and the kernels that the rehearsal would launch onto the GPU of its tensors."""
        found = library.operators(self._name)
        if self._name == "cpu":
            return
        found.rehearse_on_cuda.default(True)
        try:
            with torch.no_grad():
                rehearsal(None)
        finally:
            found.rehearse_on_cuda.default(False)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _plain(lengths: Tensor | None) -> Tensor | None:
    """Lengths as the library reads them: contiguous int64."""
    return None if lengths is None else lengths.to(torch.int64).contiguous()


def _arguments(network: Network) -> tuple[Any, ...]:
    z, q, p, gamma, beta, lengths, context, form, _ = network
    return z, q, p, gamma, beta, _plain(lengths), context, form.space == "gram"


def _weighted(network: Network, queries: int) -> tuple[Any, ...]:
    """A network of weighted tokens, which is in Gram space, as the library reads it."""
    return *network[:5], _plain(network.lengths), network.context, queries, network.weights


def _attention_arguments(call: Attention) -> tuple[Any, ...]:
    """As the library reads them; only the gradients that it makes itself see later tokens."""
    *tensors, bounds, form = call
    return *tensors, _plain(bounds), form == "causal"


def _layer_arguments(layer: Layer) -> tuple[Any, ...]:
    *tensors, lengths, context, _, _ = layer
    return *tensors, _plain(lengths), context


def _spread(quadratics: Quadratics) -> Quadratics:
    """gamma and beta with the axes of a network's: (L, L, 1, 1, d) and (L, 1, 1, d)."""
    gamma = quadratics.gamma
    if gamma is not None:
        gamma = gamma[:, :, None, None]
    return quadratics._replace(gamma=gamma, beta=_by_layer(quadratics.beta))


def _by_layer(parameter: Tensor | None) -> Tensor | None:
    """What is broadcastable to (L, d), with the axes of a network's: (L or 1, 1, 1, d or 1)."""
    if parameter is None:
        return None
    return parameter.view((1,) * (2 - parameter.ndim) + tuple(parameter.shape))[:, None, None]


def _gradients(arguments: Sequence[Tensor | None], needs: Needs) -> list[Tensor | None]:
    """Room for the gradients that are needed, None for the others."""
    return [
        _like(argument) if needed and argument is not None else None
        for argument, needed in zip(arguments, needs, strict=True)
    ]


def _made(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]
