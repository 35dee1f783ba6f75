"""The response-only recurrence: features stay fixed, so a task's state is a row s for each response, (B, m, M).

    g_l = g(s_l);  r_{l,h} = U A_{l,h} g_l + beta * r_{l-1,h};  s_{l+1} = s_l + sum_h sum_{j<=l} gamma_{l,j,h} * r_{j,h}

On tokens s is the response column, g(s) = X^T s / n over the context and U = X. In Gram space s = -w, g(s) = b + H s
and U = 1: a linear first-order method on w^T H w / 2 - b^T w (Dutta & Sra, arXiv 2410.07263), since g = b - H w.
Responses do not meet: the rows of a task share H and the preconditioners, and one product takes all of them. The rows
may be prefixes of the task as well, whose H differ by what their tokens add.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch.context import Labelled
from memformer_kernels.backends.pytorch.memory import Kept, Memory
from memformer_kernels.backends.pytorch.proximal import ProximalSteps
from memformer_kernels.calls.arguments import Proximal


@dataclass(frozen=True)
class GramResidual:
    """g(s) = b + H s with h (B, d, d) and b (B, m, d); the state lives where the residual does, so U = 1.

    from_zero: s_0 is 0 and nothing asks for its gradient, which spares a product with H in each direction. transposed:
    H^T, which is h itself where that is symmetric: a row times a contiguous matrix is what libraries do fastest.
    """

    h: Tensor
    b: Tensor
    from_zero: bool
    transposed: Tensor

    def start(self, state: Tensor) -> Tensor:
        """g (B, m, d) at s_0."""
        return self.b if self.from_zero else self.at(state)

    def at(self, state: Tensor) -> Tensor:
        """g (B, m, d) at the state (B, m, d)."""
        return self.b + state @ self.transposed

    def transpose(self, grad: Tensor) -> Tensor:
        """Gradient of the state from that of g."""
        return grad @ self.h

    def lift(self, preconditioned: Tensor) -> Tensor:
        return preconditioned

    def lift_transpose(self, grad: Tensor) -> Tensor:
        return grad


@dataclass(frozen=True)
class TokenResidual:
    """g(s) = (1/n) sum_{i<n} x_i s_i and U = X, for features x (B, N, d) and s the response columns (B, m, N).

    columns: X^T (B, d, N) in memory of its own, since a row times such a matrix is what libraries do fastest.
    """

    features: Tensor
    columns: Tensor
    labelled: Labelled
    from_zero: ClassVar[bool] = False

    def start(self, state: Tensor) -> Tensor:
        """g (B, m, d) at s_0."""
        return self.at(state)

    def at(self, state: Tensor) -> Tensor:
        """g (B, m, d) at the state (B, m, N)."""
        rows = self.labelled.times_shares(self.labelled.select(state.mT)).mT
        return self.labelled.mean(rows @ self.labelled.select(self.features))

    def transpose(self, grad: Tensor) -> Tensor:
        """Gradient of the state from that of g."""
        rows = (self.labelled.mean(grad) @ self.columns).mT
        own = self.labelled.times_shares(self.labelled.select(rows))
        return self.labelled.place(own, self.features.shape[1]).mT

    def lift(self, preconditioned: Tensor) -> Tensor:
        return _every_row(preconditioned, self.columns)

    def lift_transpose(self, grad: Tensor) -> Tensor:
        return _every_row(grad, self.features)


@dataclass(frozen=True)
class PrefixResidual:
    """g(s_i) = b_i + H_i s_i of K prefixes of a task, each a token longer than the one before, as rows (B, K, .).

        n_i H_i = H_0 + sum_{j<i} x_j x_j^T

    is multiplied with as it is written: K d^2 and 2 K^2 d multiply-adds a task, in three products, where a matrix for
    each prefix would be K d^2 numbers to write and to read in every layer.

    base: H_0 (B, d, d), symmetric. features: x (B, K - 1, d). finite: the same with 0 for what is not finite, which
    prefixes without that token must not see. b: (B, K, d). counts: n (K, 1).
    """

    base: Tensor
    features: Tensor
    finite: Tensor
    b: Tensor
    counts: Tensor
    from_zero: ClassVar[bool] = True

    @classmethod
    def of(cls, base: Tensor, features: Tensor, b: Tensor, counts: Tensor) -> "PrefixResidual":
        return cls(base, features, torch.where(features.isfinite(), features, 0.0), b, counts)

    def start(self, state: Tensor) -> Tensor:
        """g (B, K, d) at s_0 = 0."""
        return self.b

    def at(self, state: Tensor) -> Tensor:
        """g (B, K, d) at the states (B, K, d)."""
        return self.b + self._times(state)

    def transpose(self, grad: Tensor) -> Tensor:
        """Gradient of the states from that of g."""
        return self._times(grad)

    def lift(self, preconditioned: Tensor) -> Tensor:
        return preconditioned

    def lift_transpose(self, grad: Tensor) -> Tensor:
        return grad

    def of_earlier(self, rows: Tensor) -> Tensor:
        """x_j . row_i for rows (B, R K, d), R of each prefix: (B, R K, K - 1), with 0 where prefix i has no token j."""
        prefixes = self.b.shape[1]
        products = rows @ self.features.mT
        of_each = products.view(len(rows), rows.shape[1] // prefixes, prefixes, prefixes - 1)
        return of_each.tril(-1).flatten(1, 2)

    def _times(self, rows: Tensor) -> Tensor:
        """H_i row_i, (B, K, d)."""
        return torch.baddbmm(self.of_earlier(rows) @ self.finite, rows, self.base) / self.counts


Residual = GramResidual | TokenResidual | PrefixResidual


def _every_row(rows: Tensor, matrices: Tensor) -> Tensor:
    """rows (B, R, m, I) times their task's matrix (B, I, J)."""
    return (rows.flatten(1, 2) @ matrices).reshape(*rows.shape[:-1], matrices.shape[-1])


@dataclass
class ResponseTrace:
    """What a forward run keeps: states s_0, ..., s_L (B, m, M), g_0, ..., g_{L-1} (B, m, d) and registers r_0, ...,
    r_{L-1} (B, R, m, M), or the last of them; where layers end in a prox, also the points s_l + ... (B, m, M) that it
    is taken of.
    """

    states: list[Tensor]
    residuals: list[Tensor] = field(default_factory=list)
    registers: list[Tensor] = field(default_factory=list)
    points: list[Tensor] = field(default_factory=list)


def run(
    state: Tensor,
    residual: Residual,
    a: Tensor,
    memory: Memory,
    kept: Kept = "all",
    steps: ProximalSteps | None = None,
) -> ResponseTrace:
    """All L layers from s_0 (B, m, M) with preconditioners a (L, R, d, d), and their proxes where there are any."""
    trace, memory.forward_only = ResponseTrace([state]), kept != "all"
    for layer in range(a.shape[0]):
        made = residual.at(state) if layer else residual.start(state)
        fresh = residual.lift(precondition(made, a[layer]))
        trace.registers.append(memory.register(layer, fresh, trace.registers))
        state = state + memory.update(layer, trace.registers)
        if steps is not None:
            trace.points = [*trace.points, state] if kept == "all" else []
            state = steps.after(layer, state)
        trace.registers = memory.kept(trace.registers)
        trace.residuals = [*trace.residuals, made] if kept == "all" else []
        trace.states = [state] if kept == "last" else [*trace.states, state]
    return trace


def precondition(residual: Tensor, a: Tensor) -> Tensor:
    """A_h g for every head, (B, R, m, d), as one product with the stacked heads a (R, d, d)."""
    (batch, responses, width), heads = residual.shape, a.shape[0]
    made = residual.reshape(batch * responses, width) @ a.reshape(heads * width, width).T
    return made.reshape(batch, responses, heads, width).transpose(1, 2)


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

    state: of s_0, where it does not start from zero. residual (B, d, L, m) and register (L of (B, R, m, M)): of g_0,
    ..., g_{L-1} and r_0, ..., r_{L-1}, from which the caller makes the gradients of what its residual was built from.
    a, gamma, beta: of the parameters. proximal: of each layer's prox, where there is one.
    """

    state: Tensor
    residual: Tensor
    register: list[Tensor]
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    proximal: list[Proximal]

    def of_quadratics(self, trace: ResponseTrace) -> tuple[Tensor, Tensor]:
        """Gradients of H (B, d, d) and of b, (B, d, m), that a `GramResidual` was built from."""
        return self.residual.flatten(2) @ stacked_states(trace), self.residual.sum(2)


def stacked_states(trace: ResponseTrace) -> Tensor:
    """s_0, ..., s_{L-1} as rows, (B, L m, M), as the columns of `residual.flatten(2)` have their gradients of g."""
    return torch.stack(trace.states[:-1], 1).flatten(1, 2)


def run_backward(
    state_grads: Sequence[Tensor | None],
    trace: ResponseTrace,
    residual: Residual,
    a: Tensor,
    memory: Memory,
    steps: ProximalSteps | None = None,
) -> ResponseGrads:
    """Backward of `run` from the gradients that reach s_1, ..., s_L from outside (None where nothing does)."""
    layers, heads, width, _ = a.shape
    grad = torch.zeros_like(trace.states[0])
    batch, responses, _ = grad.shape
    update_grads: list[Tensor] = []
    register_grads: list[Tensor] = []
    residual_grads: list[Tensor] = []
    a_grads: list[Tensor] = []
    proximal_grads: list[Proximal] = []
    for layer in reversed(range(layers)):
        outer = state_grads[layer]
        grad = grad if outer is None else grad + outer
        if steps is not None:
            grad, own = steps.pull_back(layer, trace.points[layer], grad)
            proximal_grads.insert(0, own)
        update_grads.insert(0, grad)
        later = register_grads[0] if register_grads else None
        register_grad = memory.register_grad(layer, update_grads, later).expand_as(trace.registers[layer])
        register_grads.insert(0, register_grad)
        preconditioned = residual.lift_transpose(register_grad)
        flat = preconditioned.transpose(1, 2).reshape(batch * responses, heads * width)
        made = trace.residuals[layer].reshape(batch * responses, width)
        a_grads.insert(0, _outer_total(flat, made).reshape(heads, width, width))
        residual_grad = (flat @ a[layer].reshape(heads * width, width)).reshape(batch, responses, width)
        residual_grads.insert(0, residual_grad)
        if layer or not residual.from_zero:
            grad = grad + residual.transpose(residual_grad)
    return ResponseGrads(
        state=grad,
        residual=torch.stack([x.mT for x in residual_grads], 2),
        register=register_grads,
        a=torch.stack(a_grads),
        gamma=memory.gamma_grad(trace.registers, update_grads),
        beta=memory.beta_grad(trace.registers, register_grads),
        proximal=proximal_grads,
    )
