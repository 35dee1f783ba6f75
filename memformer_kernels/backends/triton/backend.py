"""The Triton backend: one launch for a whole network where a program can keep a task, batched products elsewhere.

Response-only networks run vector recurrences, in Gram space and on tokens, every other network and the layer the
matrix one.
Where a task is too large for either, products go through torch and the registers' updates through fused kernels.
Kernels are imported with the first call, so that the package imports without Triton.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memformer_kernels.backends.base import Needs, needed_gradients
from memformer_kernels.backends.pytorch.backend import TorchBackend
from memformer_kernels.calls.arguments import Attention, Layer, Network, Quadratics
from memformer_kernels.calls.limits import TILE_WIDTH, WIDEST
from memformer_kernels.calls.plan import fuses

if TYPE_CHECKING:
    from memformer_kernels.backends.triton.networks import ColumnCalls, NetworkCalls, ResponseCalls
    from memformer_kernels.backends.triton.spread import SpreadCalls


class TritonBackend:
    """The operations on Triton kernels: CUDA tensors, or CPU tensors in Triton's interpreter."""

    @cached_property
    def _wide(self) -> TorchBackend:
        from memformer_kernels.backends.triton.wide import WideBackend

        return WideBackend()

    def context_gram(self, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        if self._is_wide(z):
            return self._wide.context_gram(z, lengths, context)
        from memformer_kernels.backends.triton.gram import gram

        return gram(z, lengths, context).contiguous()

    def context_gram_backward(self, grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        if self._is_wide(z):
            return self._wide.context_gram_backward(grad, z, lengths, context)
        from memformer_kernels.backends.triton.gram import gram_backward

        return gram_backward(grad, z, lengths, context)

    def stack(self, network: Network) -> Tensor:
        if self._is_large(network):
            return self._wide.stack(network)
        return _calls(network).stack()

    def stack_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        if self._is_large(network):
            return self._wide.stack_backward(grad, network, needs)
        return needed_gradients([*_calls(network, needs[0]).stack_backward(grad, needs[0]), None], network[:6], needs)

    def predict(self, network: Network, queries: int, layers: bool) -> Tensor:
        if self._is_large(network):
            return self._wide.predict(network, queries, layers)
        return _calls(network).predict(queries, layers)

    def predict_backward(
        self, grad: Tensor, network: Network, queries: int, layers: bool, needs: Needs
    ) -> list[Tensor]:
        if self._is_large(network):
            return self._wide.predict_backward(grad, network, queries, layers, needs)
        return needed_gradients([*_calls(network, needs[0]).predict_backward(grad, needs[0]), None], network[:6], needs)

    def loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        if self._is_large(network):
            return self._wide.loss(network, target, queries, needs)
        if not any(needs):
            error = self.predict(network, queries, layers=False)[0] - target
            return [error.square().sum() / target.numel()]
        squares, error, (z, *parameters) = _calls(network, needs[0]).loss(target, queries, needs[0])
        arguments = [network.z, target, *network[1:6]]
        grads = [z, -error if needs[1] else None, *parameters, None]
        return [squares / target.numel(), *needed_gradients(grads, arguments, needs, squares.dtype)]

    def layer(self, layer: Layer) -> tuple[Tensor, Tensor]:
        if self._is_large_layer(layer):
            return self._wide.layer(layer)
        from memformer_kernels.backends.triton.networks import NetworkCalls

        return NetworkCalls.of_layer(layer).layer()

    def layer_backward(self, grad: Tensor, register_grad: Tensor, layer: Layer, needs: Needs) -> list[Tensor]:
        if self._is_large_layer(layer):
            return self._wide.layer_backward(grad, register_grad, layer, needs)
        from memformer_kernels.backends.triton.networks import NetworkCalls

        calls = NetworkCalls.of_layer(layer)
        need_past = any(needs[3 : 3 + len(layer.registers)])
        (z, q, p, gamma, beta), registers = calls.layer_backward(grad, register_grad, needs[0], need_past)
        arguments = [layer.z, layer.q, layer.p, *layer.registers, layer.gamma, layer.beta, layer.lengths]
        return needed_gradients([z, q, p, *registers, gamma, beta, None], arguments, needs)

    def lfom_solve(self, quadratics: Quadratics, layers: bool) -> Tensor:
        if self._is_wide(quadratics.h, TILE_WIDTH):
            return self._wide.lfom_solve(quadratics, layers)
        from memformer_kernels.backends.triton.networks import QuadraticCalls

        return QuadraticCalls(quadratics).solve(layers)

    def lfom_solve_backward(self, grad: Tensor, quadratics: Quadratics, layers: bool, needs: Needs) -> list[Tensor]:
        if self._is_wide(quadratics.h, TILE_WIDTH):
            return self._wide.lfom_solve_backward(grad, quadratics, layers, needs)
        from memformer_kernels.backends.triton.networks import QuadraticCalls

        return needed_gradients(QuadraticCalls(quadratics).backward(grad, needs), quadratics, needs)

    def attend(self, call: Attention) -> Tensor:
        from memformer_kernels.backends.triton import attention, launch

        launch.check_tensor(call.q)
        return attention.attend(call)

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        from memformer_kernels.backends.triton import attention

        return attention.attend_backward(grad, call, needs)

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        from memformer_kernels.backends.triton import launch, register_update

        launch.check_tensor(z)
        return register_update.update(z, registers, gamma)

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        from memformer_kernels.backends.triton import register_update

        return needed_gradients(register_update.update_backward(grad, registers, gamma), [*registers, gamma], needs)

    def warmup(self, rehearsal: Callable[[int | None], object]) -> None:
        """Compiles the kernels that the rehearsal of any number of tasks would launch, for the GPU of its tensors.

        An interpreter compiles nothing.
        """
        from memformer_kernels.backends.triton import batches, launch

        if launch.interpreted():
            return
        for tasks, number in batches.REHEARSED:
            with torch.no_grad(), launch.compile_only(), batches.planning_for(number):
                rehearsal(tasks)

    def _is_wide(self, tokens: Tensor, widest: int = WIDEST) -> bool:
        _check_tensor(tokens)
        return tokens.shape[2] > widest

    def _is_large(self, network: Network) -> bool:
        _check_tensor(network.z)
        _, tokens, width = network.z.shape
        return not fuses(width, tokens, network.form.space, network.form.response_only)

    def _is_large_layer(self, layer: Layer) -> bool:
        _check_tensor(layer.z)
        _, tokens, width = layer.z.shape
        return not fuses(width, tokens, "token", response_only=False)


def _check_tensor(tokens: Tensor) -> None:
    """Raises RuntimeError for what kernels cannot run on."""
    from memformer_kernels.backends.triton.launch import check_tensor

    check_tensor(tokens)


def _calls(network: Network, need_z: bool = False) -> "ColumnCalls | NetworkCalls | ResponseCalls | SpreadCalls":
    from memformer_kernels.backends.triton import networks, rules, spread

    batch, tokens, width = network.z.shape
    response_only = network.form.response_only
    if network.form.space == "gram":
        # Where one kernel makes the Gram matrices, others make the gradient of what they were made of.
        if spread.spreads(batch, tokens) or (response_only and need_z and rules.gram_apart(width)):
            return spread.SpreadCalls(network, response_only)
        if response_only:
            return networks.ResponseCalls(network)
    if network.form.response_only:
        return networks.ColumnCalls(network)
    return networks.NetworkCalls(network)
