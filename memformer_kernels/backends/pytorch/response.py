"""The response-only recurrence: features stay fixed, so a task's state is one vector s (B, M).

    g_l = g(s_l);  r_{l,h} = U A_{l,h} g_l + beta * r_{l-1,h};  s_{l+1} = s_l + sum_h sum_{j<=l} gamma_{l,j,h} * r_{j,h}

On tokens s is the response column, g(s) = X^T s / n over the context and U = X. In Gram space s = -w, g(s) = b + H s
and U = 1: a linear first-order method on w^T H w / 2 - b^T w (Dutta & Sra, arXiv 2410.07263), since g = b - H w.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch.context import Labelled
from memformer_kernels.backends.pytorch.memory import Kept, Memory


@dataclass(frozen=True)
class GramResidual:
    """g(s) = b + H s with h (B, d, d) and b (B, d); the state lives where the residual does, so U = 1.

    from_zero: s_0 is 0 and nothing asks for its gradient, which spares a product with H in each direction. transposed:
    H^T, which is h itself where that is symmetric: a row times a contiguous matrix is what libraries do fastest.
    """

    h: Tensor
    b: Tensor
    from_zero: bool
    transposed: Tensor

    def start(self, state: Tensor) -> Tensor:
        """g (B, d) at s_0."""
        return self.b if self.from_zero else self.at(state)

    def at(self, state: Tensor) -> Tensor:
        """g (B, d) at the state (B, d)."""
        return self.b + (state[:, None] @ self.transposed)[:, 0]

    def transpose(self, grad: Tensor) -> Tensor:
        """Gradient of the state from that of g."""
        return (grad[:, None] @ self.h)[:, 0]

    def lift(self, preconditioned: Tensor) -> Tensor:
        return preconditioned

    def lift_transpose(self, grad: Tensor) -> Tensor:
        return grad


@dataclass(frozen=True)
class TokenResidual:
    """g(s) = (1/n) sum_{i<n} x_i s_i and U = X, for features x (B, N, d) and s the response column (B, N).

    columns: X^T (B, d, N) in memory of its own, since a row times such a matrix is what libraries do fastest.
    """

    features: Tensor
    columns: Tensor
    labelled: Labelled
    from_zero: ClassVar[bool] = False

    def start(self, state: Tensor) -> Tensor:
        """g (B, d) at s_0."""
        return self.at(state)

    def at(self, state: Tensor) -> Tensor:
        """g (B, d) at the state (B, N)."""
        row = self.labelled.times_shares(self.labelled.select(state[..., None])).transpose(-1, -2)
        return self.labelled.mean(row @ self.labelled.select(self.features))[:, 0]

    def transpose(self, grad: Tensor) -> Tensor:
        """Gradient of the state from that of g."""
        rows = (self.labelled.mean(grad[:, None]) @ self.columns).transpose(-1, -2)
        own = self.labelled.times_shares(self.labelled.select(rows))
        return self.labelled.place(own, self.features.shape[1])[..., 0]

    def lift(self, preconditioned: Tensor) -> Tensor:
        return preconditioned @ self.columns

    def lift_transpose(self, grad: Tensor) -> Tensor:
        return grad @ self.features


Residual = GramResidual | TokenResidual


@dataclass
class ResponseTrace:
    """What a forward run keeps: states s_0, ..., s_L (B, M), g_0, ..., g_{L-1} (B, d) and registers r_0, ..., r_{L-1}
    (B, R, M), or the last of them.
    """

    states: list[Tensor]
    residuals: list[Tensor] = field(default_factory=list)
    registers: list[Tensor] = field(default_factory=list)


def run(state: Tensor, residual: Residual, a: Tensor, memory: Memory, kept: Kept = "all") -> ResponseTrace:
    """All L layers from s_0 (B, M) with preconditioners a (L, R, d, d)."""
    trace, memory.forward_only = ResponseTrace([state]), kept != "all"
    for layer in range(a.shape[0]):
        made = residual.at(state) if layer else residual.start(state)
        fresh = residual.lift(precondition(made, a[layer]))
        trace.registers.append(memory.register(layer, fresh, trace.registers))
        state = state + memory.update(layer, trace.registers)
        trace.registers = memory.kept(trace.registers)
        trace.residuals = [*trace.residuals, made] if kept == "all" else []
        trace.states = [state] if kept == "last" else [*trace.states, state]
    return trace


def precondition(residual: Tensor, a: Tensor) -> Tensor:
    """A_h g for every head, (B, R, d), as one product with the stacked heads a (R, d, d)."""
    heads, width = a.shape[0], a.shape[-1]
    return (residual @ a.reshape(heads * width, width).T).reshape(residual.shape[0], heads, width)


_TASKS_PER_PRODUCT = 32


def _outer_total(left: Tensor, right: Tensor) -> Tensor:
    """sum_b left_b right_b^T, (I, J) from (B, I) and (B, J).

    One product over all tasks would add them up one after another; short products and a pairwise sum over those keep
    the float32 error from growing with B.
    """
    missing = -left.shape[0] % _TASKS_PER_PRODUCT
    products = (left.shape[0] + missing) // _TASKS_PER_PRODUCT
    left = pad(left, (0, 0, 0, missing)).reshape(products, _TASKS_PER_PRODUCT, left.shape[1])
    right = pad(right, (0, 0, 0, missing)).reshape(products, _TASKS_PER_PRODUCT, right.shape[1])
    return (left.transpose(-1, -2) @ right).sum(0)


@dataclass
class ResponseGrads:
    """Gradients of `run`.

    state: of s_0, where it does not start from zero. residual (B, d, L) and register (L of (B, R, M)): of g_0, ...,
    g_{L-1} and r_0, ..., r_{L-1}, from which the caller makes the gradients of what its residual was built from. a,
    gamma, beta: of the parameters.
    """

    state: Tensor
    residual: Tensor
    register: list[Tensor]
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None


def run_backward(
    state_grads: Sequence[Tensor | None], trace: ResponseTrace, residual: Residual, a: Tensor, memory: Memory
) -> ResponseGrads:
    """Backward of `run` from the gradients that reach s_1, ..., s_L from outside (None where nothing does)."""
    layers, heads, width, _ = a.shape
    grad = torch.zeros_like(trace.states[0])
    update_grads: list[Tensor] = []
    register_grads: list[Tensor] = []
    residual_grads: list[Tensor] = []
    a_grads: list[Tensor] = []
    for layer in reversed(range(layers)):
        outer = state_grads[layer]
        grad = grad if outer is None else grad + outer
        update_grads.insert(0, grad)
        later = register_grads[0] if register_grads else None
        register_grad = memory.register_grad(layer, update_grads, later).expand_as(trace.registers[layer])
        register_grads.insert(0, register_grad)
        preconditioned = residual.lift_transpose(register_grad)
        flat = preconditioned.reshape(preconditioned.shape[0], heads * width)
        a_grads.insert(0, _outer_total(flat, trace.residuals[layer]).reshape(heads, width, width))
        residual_grad = flat @ a[layer].reshape(heads * width, width)
        residual_grads.insert(0, residual_grad)
        if layer or not residual.from_zero:
            grad = grad + residual.transpose(residual_grad)
    return ResponseGrads(
        state=grad,
        residual=torch.stack(residual_grads, 2),
        register=register_grads,
        a=torch.stack(a_grads),
        gamma=memory.gamma_grad(trace.registers, update_grads),
        beta=memory.beta_grad(trace.registers, register_grads),
    )
