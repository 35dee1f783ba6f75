"""The Triton backend: fused kernels for D up to 128; wider matrices go through the PyTorch backend's batched products.

Response-only networks in Gram space run the vector recurrence, every other network and the layer the matrix one.
Kernels are imported with the first call, so that the package imports without Triton.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memformer_kernels.backends.base import Layer, Needs, Network, Quadratics
from memformer_kernels.backends.torch import TorchBackend
from memformer_kernels.maths.factored import Attention

if TYPE_CHECKING:
    from memformer_kernels.backends.triton_calls import NetworkCalls, ResponseCalls

WIDEST = 128
"""Largest D of the fused kernels."""


class TritonBackend:
    """The operations on Triton kernels: CUDA tensors, or CPU tensors in Triton's interpreter."""

    def __init__(self) -> None:
        self._wide = TorchBackend()

    def context_gram(self, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        if self._is_wide(z):
            return self._wide.context_gram(z, lengths, context)
        from memformer_kernels.kernels.gram import gram

        return gram(z, lengths, context).contiguous()

    def context_gram_backward(self, grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        if self._is_wide(z):
            return self._wide.context_gram_backward(grad, z, lengths, context)
        from memformer_kernels.kernels.gram import gram_backward

        return gram_backward(grad, z, lengths, context)

    def stack(self, network: Network) -> Tensor:
        if self._is_wide(network.z):
            return self._wide.stack(network)
        return _calls(network).stack()

    def stack_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        if self._is_wide(network.z):
            return self._wide.stack_backward(grad, network, needs)
        return _asked([*_calls(network).stack_backward(grad, needs[0]), None], network[:6], needs)

    def predict(self, network: Network, queries: int, layers: bool) -> Tensor:
        if self._is_wide(network.z):
            return self._wide.predict(network, queries, layers)
        return _calls(network).predict(queries, layers)

    def predict_backward(
        self, grad: Tensor, network: Network, queries: int, layers: bool, needs: Needs
    ) -> list[Tensor]:
        if self._is_wide(network.z):
            return self._wide.predict_backward(grad, network, queries, layers, needs)
        return _asked([*_calls(network).predict_backward(grad, needs[0]), None], network[:6], needs)

    def loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        if self._is_wide(network.z):
            return self._wide.loss(network, target, queries, needs)
        if not any(needs):
            error = self.predict(network, queries, layers=False)[0] - target
            return [error.square().sum() / target.numel()]
        squares, error, (z, *parameters) = _calls(network).loss(target, queries, needs[0])
        arguments = [network.z, target, *network[1:6]]
        grads = [z, -error, *parameters, None]
        return [squares / target.numel(), *_asked(grads, arguments, needs, squares.dtype)]

    def layer(self, layer: Layer) -> tuple[Tensor, Tensor]:
        if self._is_wide(layer.z):
            return self._wide.layer(layer)
        from memformer_kernels.backends.triton_calls import NetworkCalls

        return NetworkCalls.of_layer(layer).layer()

    def layer_backward(self, grad: Tensor, register_grad: Tensor, layer: Layer, needs: Needs) -> list[Tensor]:
        if self._is_wide(layer.z):
            return self._wide.layer_backward(grad, register_grad, layer, needs)
        from memformer_kernels.backends.triton_calls import NetworkCalls

        calls = NetworkCalls.of_layer(layer)
        (z, q, p, gamma, beta), registers = calls.layer_backward(grad, register_grad, needs[0])
        arguments = [layer.z, layer.q, layer.p, *layer.registers, layer.gamma, layer.beta, layer.lengths]
        return _asked([z, q, p, *registers, gamma, beta, None], arguments, needs)

    def lfom_solve(self, quadratics: Quadratics, layers: bool) -> Tensor:
        if self._is_wide(quadratics.h):
            return self._wide.lfom_solve(quadratics, layers)
        from memformer_kernels.backends.triton_calls import QuadraticCalls

        return QuadraticCalls(quadratics).solve(layers)

    def lfom_solve_backward(self, grad: Tensor, quadratics: Quadratics, layers: bool, needs: Needs) -> list[Tensor]:
        if self._is_wide(quadratics.h):
            return self._wide.lfom_solve_backward(grad, quadratics, layers, needs)
        from memformer_kernels.backends.triton_calls import QuadraticCalls

        return _asked(QuadraticCalls(quadratics).backward(grad), quadratics, needs)

    def attend(self, call: Attention) -> Tensor:
        from memformer_kernels.kernels.attention import attend
        from memformer_kernels.kernels.launch import check_device

        check_device(call.q)
        return attend(*call)

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        from memformer_kernels.kernels.launch import check_device
        from memformer_kernels.kernels.register_update import update

        check_device(z)
        return update(z, registers, gamma)

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        from memformer_kernels.kernels.register_update import update_backward

        return _asked(update_backward(grad, registers, gamma), [*registers, gamma], needs)

    def warmup(self) -> None:
        """Imports Triton and the kernels; a kernel compiles for a configuration when that is first called."""
        from memformer_kernels.backends import triton_calls  # noqa: F401

    def _is_wide(self, tokens: Tensor) -> bool:
        """Whether the matrices are too wide for the fused kernels.

        Raises:
            RuntimeError: a CPU tensor, and kernels are compiled.
        """
        from memformer_kernels.kernels.launch import check_device

        check_device(tokens)
        return tokens.shape[2] > WIDEST


def _calls(network: Network) -> "NetworkCalls | ResponseCalls":
    from memformer_kernels.backends.triton_calls import NetworkCalls, ResponseCalls

    response_only = network.p is None and network.q.shape[-1] != network.z.shape[2]
    if response_only and network.algorithm == "gram":
        return ResponseCalls(network)
    return NetworkCalls.of_network(network)


def _asked(
    grads: Sequence[Tensor | None],
    arguments: Sequence[Tensor | None],
    needs: Needs,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The gradients that were asked for, in `dtype` or their arguments'; what nothing reads has gradient zero."""
    asked = []
    for grad, argument, needed in zip(grads, arguments, needs, strict=True):
        if needed and argument is not None:
            made = torch.zeros_like(argument) if grad is None else grad
            asked.append(made.to(dtype or argument.dtype).contiguous())
    return asked
