"""The general recurrence: X_{l+1} = X_l + sum_h sum_j gamma * R_j with R_{l,h} = X Q_h G(X) P_h^T + beta * R_{l-1,h}.

It runs alike on tokens (X = Z_l, G the mean Gram matrix of their context rows) and in Gram space (X = T_l with
Z_l = Z_0 T_l, G(T) = T^T G_0 T): only the `metric` differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.context import (
    Labelled,
    across_tokens,
    gram,
    gram_backward,
    shares_gradient,
)
from memformer_kernels.backends.pytorch.memory import Kept, Memory


class Metric(Protocol):
    """What makes a state's Gram matrix, divided by n."""

    def gram(self, state: Tensor) -> Tensor: ...

    def backward(self, grad: Tensor, state: Tensor) -> Tensor: ...


@dataclass
class TokenMetric:
    """G(Z) = (1/n) sum_{i<n} z_i z_i^T of tokens (B, N, D); `shares_grad` collects the gradient of tokens' shares."""

    labelled: Labelled
    shares_grad: Tensor | None = None

    def gram(self, state: Tensor) -> Tensor:
        return self.labelled.mean(gram(state, self.labelled))

    def backward(self, grad: Tensor, state: Tensor) -> Tensor:
        own = shares_gradient(grad, state, self.labelled)
        self.shares_grad = own if own is None or self.shares_grad is None else self.shares_grad + own
        return gram_backward(self.labelled.mean(grad), state, self.labelled)


@dataclass
class GramMetric:
    """G(T) = T^T G_0 T; `grad` collects the gradient of the symmetric G_0 (B, D, D)."""

    initial: Tensor
    grad: Tensor | None = None

    def gram(self, state: Tensor) -> Tensor:
        return state.transpose(-1, -2) @ self.initial @ state

    def backward(self, grad: Tensor, state: Tensor) -> Tensor:
        own = state @ grad @ state.transpose(-1, -2)
        self.grad = own if self.grad is None else self.grad + own
        return self.initial @ state @ (grad + grad.transpose(-1, -2))


def attend(state: Tensor, gram: Tensor, q: Tensor, p: Tensor, heads: int) -> Tensor:
    """X Q_h G P_h^T, (B, heads, M, D) for q, p (H, D, D); `heads` is H, or 1 for the sum over heads."""
    matrices = q @ gram[:, None] @ p.transpose(-1, -2)
    if heads != q.shape[0]:
        matrices = matrices.sum(1, keepdim=True)
    return state[:, None] @ matrices


def attend_backward(
    grad: Tensor, state: Tensor, gram: Tensor, q: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attend` with respect to state, gram, q and p, for grad (B, heads, M, D)."""
    query_gram = q @ gram[:, None]
    matrices = query_gram @ p.transpose(-1, -2)
    if grad.shape[1] != q.shape[0]:
        matrices = matrices.sum(1, keepdim=True)
    state_grad = (grad @ matrices.transpose(-1, -2)).sum(1)
    matrices_grad = across_tokens(state[:, None], grad)
    projected = matrices_grad @ p
    q_grad = (projected @ gram[:, None]).sum(0)
    p_grad = (matrices_grad.transpose(-1, -2) @ query_gram).sum(0)
    gram_grad = (q.transpose(-1, -2) @ projected).sum(1)
    return state_grad, gram_grad, q_grad, p_grad


@dataclass
class AttentionTrace:
    """What a forward run keeps: states X_0, ..., X_L and registers R_0, ..., R_{L-1}, or the last of them."""

    states: list[Tensor]
    registers: list[Tensor] = field(default_factory=list)


def run(
    state: Tensor, metric: Metric, q: Tensor, p: Tensor, memory: Memory, heads: int, kept: Kept = "all"
) -> AttentionTrace:
    """All L layers from X_0 (B, M, D) with q, p (L, H, D, D); `heads` registers a layer."""
    trace, memory.forward_only = AttentionTrace([state]), kept != "all"
    for layer in range(q.shape[0]):
        fresh = attend(state, metric.gram(state), q[layer], p[layer], heads)
        register, state = memory.advance(layer, state, fresh, trace.registers)
        trace.registers = memory.kept([*trace.registers, register])
        trace.states = [state] if kept == "last" else [*trace.states, state]
    return trace


@dataclass
class AttentionGrads:
    """Gradients of X_0, q, p, gamma and beta; those of the coefficients are None where the coefficient is."""

    state: Tensor
    q: Tensor
    p: Tensor
    gamma: Tensor | None
    beta: Tensor | None


def run_backward(
    state_grads: Sequence[Tensor | None], trace: AttentionTrace, metric: Metric, q: Tensor, p: Tensor, memory: Memory
) -> AttentionGrads:
    """Backward of `run` from the gradients that reach X_1, ..., X_L from outside (None where nothing does)."""
    layers = q.shape[0]
    grad = torch.zeros_like(trace.states[0])
    update_grads: list[Tensor] = []
    register_grads: list[Tensor] = []
    q_grads: list[Tensor] = []
    p_grads: list[Tensor] = []
    for layer in reversed(range(layers)):
        outer = state_grads[layer]
        grad = grad if outer is None else grad + outer
        update_grads.insert(0, grad)
        later = register_grads[0] if register_grads else None
        register_grad = memory.register_grad(layer, update_grads, later).expand_as(trace.registers[layer])
        register_grads.insert(0, register_grad)
        state = trace.states[layer]
        gram = metric.gram(state)
        state_grad, gram_grad, q_grad, p_grad = attend_backward(register_grad, state, gram, q[layer], p[layer])
        q_grads.insert(0, q_grad)
        p_grads.insert(0, p_grad)
        grad = grad + state_grad + metric.backward(gram_grad, state)
    return AttentionGrads(
        state=grad,
        q=torch.stack(q_grads),
        p=torch.stack(p_grads),
        gamma=memory.gamma_grad(trace.registers, update_grads),
        beta=memory.beta_grad(trace.registers, register_grads),
    )
