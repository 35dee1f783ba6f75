"""Tasks too large for one program: batched products through torch, the registers' updates fused by Triton kernels.

A layer's products are large enough for the library; what is left between them is memory traffic, and the kernels of
`registers` pass over it once. A response-only network keeps vectors as registers, small compared with the matrices
that its products read: it stays with plain PyTorch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.backend import TorchBackend
from memformer_kernels.backends.pytorch.layer import LayerForm
from memformer_kernels.backends.pytorch.memory import Memory
from memformer_kernels.backends.triton.coefficients import in_full
from memformer_kernels.backends.triton.registers import update, update_backward


class FusedMemory(Memory):
    """`Memory` in one pass a layer.

    It serves one forward and at most one backward, which starts at the last layer.
    """

    def __init__(
        self, layers: int, heads: int, width: int, gamma: Tensor | None, beta: Tensor | None, diagonal: bool
    ) -> None:
        super().__init__(gamma, beta, diagonal)
        leading = (layers, heads) if diagonal else (layers, layers, heads)
        self._full_gamma = in_full(gamma, leading, width)
        self._full_beta = in_full(beta, (layers, heads), width)
        self._registers: list[Tensor] = []
        self._gamma_total, self._beta_total = (
            None if full.values is None else torch.zeros_like(full.values)
            for full in (self._full_gamma, self._full_beta)
        )

    def advance(self, layer: int, state: Tensor, fresh: Tensor, previous: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        gamma, beta = self._full_gamma.values, self._full_beta.values
        register = torch.empty_like(fresh, memory_format=torch.contiguous_format)
        before, carried = (previous[-1], beta[layer]) if beta is not None and layer > 0 else (None, None)
        if not self.forward_only:
            self._registers.append(register)
        if gamma is None or self.diagonal:
            weights = None if gamma is None else gamma[layer, None]
            return register, update(state, fresh, (), weights, before, carried, register)
        if self.runs:
            # Of all layers' weighted registers, summed over heads: what the last layer added and this one's.
            total = torch.zeros_like(state) if self._shared_sum is None else self._shared_sum
            self._shared_sum = update(total, fresh, (), gamma[layer, layer, None], before, carried, register)
            return register, state + self._shared_sum
        return register, update(state, fresh, previous, gamma[layer, : layer + 1], before, carried, register)

    def register_grad(self, layer: int, update_grads: Sequence[Tensor], later: Tensor | None) -> Tensor:
        gamma, beta = self._full_gamma.values, self._full_beta.values
        last = 1 if gamma is None or self.diagonal else len(update_grads)
        if gamma is not None:
            gamma = gamma[layer, None] if self.diagonal else gamma[layer:, layer].contiguous()
        carries = beta is not None and later is not None
        grads = update_backward(
            [grad.contiguous() for grad in update_grads[:last]],
            self._registers[layer],
            gamma,
            later if carries else None,
            beta[layer + 1] if beta is not None and carries else None,
        )
        if self._gamma_total is not None and grads.gamma is not None:
            column = self._gamma_total[layer, None] if self.diagonal else self._gamma_total[layer:, layer]
            column.copy_(grads.gamma)
        if self._beta_total is not None and grads.beta is not None:
            self._beta_total[layer + 1] = grads.beta
        return grads.register

    def gamma_grad(self, registers: Sequence[Tensor], update_grads: Sequence[Tensor]) -> Tensor | None:
        return None if self._gamma_total is None else self._full_gamma.gradient(self._gamma_total)

    def beta_grad(self, registers: Sequence[Tensor], register_grads: Sequence[Tensor]) -> Tensor | None:
        return None if self._beta_total is None else self._full_beta.gradient(self._beta_total)


class FusedLayerForm(LayerForm):
    """`LayerForm` whose update and its backward are one pass each."""

    def _register(self, fresh: Tensor, previous: Sequence[Tensor]) -> Tensor:
        heads, width = fresh.shape[1], fresh.shape[3]
        self._full_gamma = in_full(self.gamma, (len(previous) + 1, heads), width)
        self._full_beta = in_full(self.beta, (heads,), width)
        kept = () if self.gamma is None else tuple(before.contiguous() for before in previous)
        before = previous[-1].contiguous() if self.beta is not None else None
        register = torch.empty_like(fresh)
        beta = self._full_beta.values
        self._moved = update(self.z, fresh, kept, self._full_gamma.values, before, beta, register)
        return register

    def tokens(self) -> Tensor:
        return self._moved

    def _memory_backward(
        self, grad: Tensor, register_grad: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None]:
        updates, gamma = [grad.contiguous()], self._full_gamma.values
        own_gamma = None if gamma is None else gamma[-1:]
        own = update_backward(updates, self.registers[-1], own_gamma, None, None, register_grad.contiguous())
        kept_grads, gamma_grads, beta_grad = [], [], None
        for place, register in enumerate(self.registers[:-1]):
            carries = self.beta is not None and place == len(self.registers) - 2
            # Where gamma weights the new register alone, those before it reach the result through beta or not at all.
            grads = update_backward(
                [] if gamma is None else updates,
                register.contiguous(),
                None if gamma is None else gamma[place, None],
                own.register if carries else None,
                self._full_beta.values if carries else None,
            )
            kept_grads.append(grads.register)
            gamma_grads.append(grads.gamma)
            beta_grad = grads.beta
        gamma_grad = None
        if own.gamma is not None:
            parts = [part for part in (*gamma_grads, own.gamma) if part is not None]
            gamma_grad = self._full_gamma.gradient(torch.cat(parts))
        return own.register, kept_grads, gamma_grad, None if beta_grad is None else self._full_beta.gradient(beta_grad)


class WideBackend(TorchBackend):
    """The PyTorch backend with fused updates."""

    _layer_type = FusedLayerForm

    def _memory(
        self, layers: int, heads: int, width: int, gamma: Tensor | None, beta: Tensor | None, diagonal: bool
    ) -> Memory:
        return FusedMemory(layers, heads, width, gamma, beta, diagonal)
