"""One layer on tokens, for use inside other models: Z + sum_h sum_j gamma_j * R_j with the last R_j made here."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.context import Labelled, weights_gradient
from memformer_kernels.backends.pytorch.memory import over_tasks
from memformer_kernels.backends.pytorch.recurrence import TokenMetric, attend, attend_backward


@dataclass
class LayerGradients:
    """Gradients of the layer's arguments, None where the argument is; of the context's weights (B, n or N)."""

    z: Tensor
    q: Tensor
    p: Tensor
    registers: list[Tensor]
    gamma: Tensor | None
    beta: Tensor | None
    weights: Tensor | None


class LayerForm:
    """One layer from tokens z (B, N, D), dense q and p (H, D, D) and the registers (B, R, N, D) of the layers before.

    gamma (len(registers) + 1 or 1, H', N', D') or None for the new register alone; beta up to (H', N', D') or None.
    heads: R, the registers that a layer keeps.
    """

    def __init__(
        self,
        z: Tensor,
        q: Tensor,
        p: Tensor,
        registers: Sequence[Tensor],
        gamma: Tensor | None,
        beta: Tensor | None,
        labelled: Labelled,
        heads: int,
    ) -> None:
        self.z, self.q, self.p, self.gamma = z, q, p, gamma
        self.beta = beta if registers else None
        self.metric = TokenMetric(labelled)
        self.gram = self.metric.gram(z)
        fresh = attend(z, self.gram, q, p, heads)
        self.registers = [*registers, self._register(fresh, registers)]

    def _register(self, fresh: Tensor, previous: Sequence[Tensor]) -> Tensor:
        """The new register from the attention output and the registers before it."""
        return fresh if self.beta is None else fresh + self.beta * previous[-1]

    def tokens(self) -> Tensor:
        """Z after the layer, (B, N, D)."""
        if self.gamma is None:
            return self.z + self.registers[-1].sum(1)
        return self.z + (self.gamma.unsqueeze(1) * torch.stack(self.registers)).sum((0, 2))

    def backward(self, grad: Tensor, register_grad: Tensor) -> LayerGradients:
        """Gradients from those of the tokens (B, N, D) and of the new register (B, R, N, D)."""
        fresh_grad, kept_grads, gamma_grad, beta_grad = self._memory_backward(grad, register_grad)
        z_grad, gram_grad, q_grad, p_grad = attend_backward(fresh_grad, self.z, self.gram, self.q, self.p)
        z_grad = grad + z_grad + self.metric.backward(gram_grad, self.z)
        return LayerGradients(
            z=z_grad,
            q=q_grad,
            p=p_grad,
            registers=kept_grads,
            gamma=gamma_grad,
            beta=beta_grad,
            weights=weights_gradient(self.metric.shares_grad, self.metric.labelled),
        )

    def _memory_backward(
        self, grad: Tensor, register_grad: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None]:
        """Gradients of the new register, of those before it, of gamma and of beta."""
        update_grad = grad.unsqueeze(1)
        gamma_grad: Tensor | None = None
        if self.gamma is None:
            kept_grads = [torch.zeros_like(register) for register in self.registers[:-1]]
            fresh_grad = update_grad + register_grad
        else:
            products = torch.stack(self.registers, 1) * update_grad.unsqueeze(1)
            gamma_grad = over_tasks(products, self.gamma.shape)
            weighted = self.gamma.expand(len(self.registers), *self.gamma.shape[1:])
            kept_grads = [(weighted[j] * update_grad).expand_as(register_grad) for j in range(len(self.registers) - 1)]
            fresh_grad = weighted[-1] * update_grad + register_grad
        beta_grad: Tensor | None = None
        if self.beta is not None:
            kept_grads[-1] = kept_grads[-1] + self.beta * fresh_grad
            beta_grad = over_tasks(self.registers[-2] * fresh_grad, self.beta.shape)
        return fresh_grad, kept_grads, gamma_grad, beta_grad
