"""The backends of what is for other people's models: attention with factored heads and the register update.

The CUDA library has no kernels for them: `plan` hands its calls to torch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import library
from memformer_kernels.backends.base import Needs
from memformer_kernels.maths import factored
from memformer_kernels.maths import registers as depth
from memformer_kernels.maths.factored import Attention


class TorchBlocks:
    """Plain PyTorch, on every device."""

    def attend(self, call: Attention) -> Tensor:
        return factored.attend(call).contiguous()

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        return [self.attend(part) for part in factored.gradients(grad, call, needs)]

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        return depth.update(z, registers, gamma).contiguous()

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        own, coefficients = depth.update_gradients(grad, registers, gamma)
        return _asked([*own, coefficients], needs)


class NativeBlocks:
    """The CPU library (csrc/cpu): results and gradients are allocated here and written there."""

    @functools.cached_property
    def _operators(self) -> Any:
        return library.operators("cpu")

    def attend(self, call: Attention) -> Tensor:
        result = call.v.new_empty((*call.q.shape[:3], call.v.shape[3]))
        self._operators.attention.default(*_arguments(call), result)
        return result

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        grads = _room(call[:3], needs[:3])
        self._operators.attention_backward.default(grad, *_arguments(call), *grads)
        return _made(grads)

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        result = torch.empty_like(z, memory_format=torch.contiguous_format)
        self._operators.register_update.default(z.contiguous(), _contiguous(registers), gamma.contiguous(), result)
        return result

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        *own, coefficients = grads = _room([*registers, gamma], needs)
        wanted = [register is not None for register in own]
        self._operators.register_update_backward.default(
            grad.contiguous(), _contiguous(registers), gamma.contiguous(), _made(own), wanted, coefficients
        )
        return _made(grads)


class TritonBlocks:
    """Fused Triton kernels: CUDA tensors, or CPU tensors in Triton's interpreter."""

    def attend(self, call: Attention) -> Tensor:
        from memformer_kernels.kernels import attention, launch

        launch.check_device(call.q)
        return attention.attend(*call).contiguous()

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        return [self.attend(part) for part in factored.gradients(grad, call, needs)]

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        from memformer_kernels.kernels import launch, register_update

        launch.check_device(z)
        return register_update.update(z, registers, gamma)

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        from memformer_kernels.kernels import register_update

        return _asked(register_update.update_backward(grad, registers, gamma), needs)


def _arguments(call: Attention) -> tuple[Any, ...]:
    """As the library reads them; only the gradients that it makes itself see later tokens."""
    *tensors, bounds, form = call
    return *tensors, None if bounds is None else bounds.to(torch.int64).contiguous(), form == "causal"


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _room(arguments: Sequence[Tensor], needs: Needs) -> list[Tensor | None]:
    """Room for the gradients that are needed, None for the others."""
    return [
        torch.empty_like(argument, memory_format=torch.contiguous_format) if needed else None
        for argument, needed in zip(arguments, needs, strict=True)
    ]


def _made(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _asked(grads: Sequence[Tensor], needs: Needs) -> list[Tensor]:
    return [grad.contiguous() for grad, needed in zip(grads, needs, strict=True) if needed]
