"""A whole network on a batch of tasks: which recurrence runs, and how tokens or predictions are read out of it.

Two structures (`GeneralForm`, `ResponseForm`), each on tokens or in Gram space. A form runs its layers when it is made;
`tokens` and `predictions` read the result, and their `_backward` twins give the gradients of all arguments, if all
that they read was kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.projections import projections
from memformer_kernels.backends.pytorch import recurrence as attention
from memformer_kernels.backends.pytorch import response
from memformer_kernels.backends.pytorch.context import (
    Labelled,
    gram,
    gram_backward,
    shares_gradient,
    weights_gradient,
)
from memformer_kernels.backends.pytorch.memory import Kept, Memory
from memformer_kernels.calls.arguments import DIAGONAL, Form


@dataclass
class Gradients:
    """Gradients of a form's arguments; z is None unless asked for, the others where the argument is.

    weights: of the context's tokens, (B, n or N).
    """

    z: Tensor | None
    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    weights: Tensor | None = None


def _four_axes(beta: Tensor | None) -> Tensor | None:
    """beta with its leading axes of size 1 spelled out: (L or 1, H or 1, N or 1, D or 1)."""
    return None if beta is None else beta.reshape((1,) * (4 - beta.ndim) + tuple(beta.shape))


class GeneralParameters:
    """Parameters of any P and Q, as the recurrence takes them, and their gradients as they were given.

    q, p: dense (L, H, D, D). memory: gamma and beta. heads: the registers that a layer keeps.
    """

    def __init__(
        self,
        q: Tensor,
        p: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        width: int,
        form: Form,
        memory: Callable[[Tensor | None, Tensor | None, bool], Memory] = Memory,
    ) -> None:
        self._block = q.shape[-1], None if p is None else p.shape[-1]
        self._beta = beta
        self.q, self.p = projections(q, p, width, form.responses)
        self.memory = memory(gamma, _four_axes(beta), form.rule in DIAGONAL)
        self.heads = form.kept(q.shape[1])

    def gradients(self, grads: attention.AttentionGrads, z_grad: Tensor | None) -> Gradients:
        """Those of a call, from its run's."""
        q_width, p_width = self._block
        return Gradients(
            z=z_grad,
            q=grads.q[..., :q_width, :q_width],
            p=None if p_width is None else grads.p[..., :p_width, :p_width],
            gamma=grads.gamma,
            beta=None if grads.beta is None or self._beta is None else grads.beta.reshape(self._beta.shape),
        )


class ResponseParameters:
    """Parameters of a response-only network, as its recurrence takes them, and their gradients as they were given.

    a: preconditioners (L, R, d, d). memory: gamma and beta of the response columns, (..., m or 1, N or 1).
    """

    def __init__(self, q: Tensor, gamma: Tensor | None, beta: Tensor | None, form: Form) -> None:
        self._heads, self._gamma, self._beta = q.shape[1], gamma, beta
        self.a = q if form.kept(q.shape[1]) == q.shape[1] else q.sum(1, keepdim=True)
        full_beta = _four_axes(beta)
        self.memory = Memory(
            None if gamma is None else gamma[..., -form.responses :].mT,
            None if full_beta is None else full_beta[..., -form.responses :].mT,
            diagonal=form.rule in DIAGONAL,
        )

    def gradients(self, grads: response.ResponseGrads, z_grad: Tensor | None) -> Gradients:
        """Those of a call, from its run's."""
        q_grad = grads.a
        if q_grad.shape[1] != self._heads:
            q_grad = q_grad.expand(-1, self._heads, -1, -1)
        return Gradients(
            z=z_grad,
            q=q_grad,
            p=None,
            gamma=_last_columns(grads.gamma, self._gamma),
            beta=_last_columns(grads.beta, self._beta),
        )


class GeneralForm:
    """Any P and Q: the state is a matrix, the tokens Z_l or the transform T_l with Z_l = Z_0 T_l."""

    def __init__(
        self,
        z: Tensor,
        q: Tensor,
        p: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        labelled: Labelled,
        form: Form,
        memory: Callable[[Tensor | None, Tensor | None, bool], Memory] = Memory,
        kept: Kept = "all",
    ) -> None:
        self.z, self.labelled, self.gram_space = z, labelled, form.space == "gram"
        self._slots, width = form.responses, z.shape[-1]
        self.parameters = own = GeneralParameters(q, p, gamma, beta, width, form, memory)
        self.metric: attention.TokenMetric | attention.GramMetric
        state = z
        if self.gram_space:
            self.metric = attention.GramMetric(labelled.mean(gram(z, labelled)))
            state = torch.eye(width, dtype=z.dtype, device=z.device).expand(z.shape[0], width, width)
        else:
            self.metric = attention.TokenMetric(labelled)
        self.trace = attention.run(state, self.metric, own.q, own.p, own.memory, own.heads, kept)

    def tokens(self) -> Tensor:
        """Z_L (B, N, D)."""
        last = self.trace.states[-1]
        return self.z @ last if self.gram_space else last

    def tokens_backward(self, grad: Tensor, need_z: bool) -> Gradients:
        """Gradients from that of Z_L."""
        outer: list[Tensor | None] = [None] * self.parameters.q.shape[0]
        if not self.gram_space:
            outer[-1] = grad
            return self._finish(outer, None, need_z)
        outer[-1] = self.z.transpose(-1, -2) @ grad
        direct = grad @ self.trace.states[-1].transpose(-1, -2) if need_z else None
        return self._finish(outer, direct, need_z)

    def predictions(self, queries: int, layers: bool) -> Tensor:
        """Minus the response slots of the last tokens, after every layer or the last: (L or 1, B, queries, m)."""
        first = self.z.shape[1] - queries
        states = [state[:, :, -self._slots :] for state in self.trace.states[1 if layers else -1 :]]
        if self.gram_space:
            return torch.stack([-(self.z[:, first:] @ state) for state in states])
        return torch.stack([-state[:, first:] for state in states])

    def predictions_backward(self, grad: Tensor, need_z: bool) -> Gradients:
        """Gradients from those of the predictions (L or 1, B, queries, m)."""
        depth = self.parameters.q.shape[0]
        outer: list[Tensor | None] = [None] * depth
        _, total, width = self.z.shape
        first, features = total - grad.shape[2], width - self._slots
        direct: Tensor | None = None
        for layer, layer_grad in zip(range(depth - grad.shape[0], depth), grad, strict=True):
            if not self.gram_space:
                outer[layer] = pad(-layer_grad, (features, 0, first, 0))
                continue
            columns = -(self.z[:, first:].transpose(-1, -2) @ layer_grad)
            outer[layer] = pad(columns, (features, 0))
            if need_z:
                rows = -(layer_grad @ self.trace.states[layer + 1][:, :, features:].transpose(-1, -2))
                direct = rows if direct is None else direct + rows
        return self._finish(outer, None if direct is None else pad(direct, (0, 0, first, 0)), need_z)

    def _finish(self, outer: Sequence[Tensor | None], direct: Tensor | None, need_z: bool) -> Gradients:
        own = self.parameters
        grads = attention.run_backward(outer, self.trace, self.metric, own.q, own.p, own.memory)
        z_grad: Tensor | None = None
        if need_z and isinstance(self.metric, attention.GramMetric):
            assert self.metric.grad is not None
            assert direct is not None
            z_grad = direct + gram_backward(self.labelled.mean(self.metric.grad), self.z, self.labelled)
        elif need_z:
            z_grad = grads.state
        made = own.gradients(grads, z_grad)
        made.weights = weights_gradient(self._shares_grad(), self.labelled)
        return made

    def _shares_grad(self) -> Tensor | None:
        if isinstance(self.metric, attention.TokenMetric):
            return self.metric.shares_grad
        assert self.metric.grad is not None
        return shares_gradient(self.metric.grad, self.z, self.labelled)


class ResponseForm:
    """Response-only structure: features never change, so only the response columns move."""

    def __init__(
        self,
        z: Tensor,
        q: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        labelled: Labelled,
        form: Form,
        kept: Kept = "all",
    ) -> None:
        self.z, self.labelled, self.gram_space = z, labelled, form.space == "gram"
        self._slots = slots = form.responses
        self.features = z[..., :-slots]
        self.parameters = own = ResponseParameters(q, gamma, beta, form)
        self.residual: response.Residual
        if self.gram_space:
            matrix = labelled.mean(gram(z, labelled))
            h, b = matrix[:, :-slots, :-slots].contiguous(), matrix[:, :-slots, -slots:].mT
            self.residual = response.GramResidual(h, b, from_zero=True, transposed=h)
            state = torch.zeros_like(b)
        else:
            columns = self.features.transpose(-1, -2).contiguous()
            self.residual = response.TokenResidual(self.features, columns, labelled)
            state = z[..., -slots:].mT
        self.trace = response.run(state, self.residual, own.a, own.memory, kept)

    def _responses(self, state: Tensor, first: int) -> Tensor:
        """The response columns (B, ., m) of tokens `first`, first + 1, ..., at a state."""
        if not self.gram_space:
            return state[..., first:].mT
        return self.z[:, first:, -self._slots :] + self.features[:, first:] @ state.mT

    def tokens(self) -> Tensor:
        """Z_L (B, N, D)."""
        return torch.cat([self.features, self._responses(self.trace.states[-1], 0)], -1)

    def tokens_backward(self, grad: Tensor, need_z: bool) -> Gradients:
        """Gradients from that of Z_L."""
        outer: list[Tensor | None] = [None] * self.parameters.a.shape[0]
        slots, last = self._slots, self.trace.states[-1]
        own = grad[..., -slots:]
        outer[-1] = self._state_grad(own, 0)
        direct = self._direct_grad(own, last, 0) + pad(grad[..., :-slots], (0, slots)) if need_z else None
        return self._finish(outer, direct)

    def predictions(self, queries: int, layers: bool) -> Tensor:
        """Minus the response slots of the last tokens, after every layer or the last: (L or 1, B, queries, m)."""
        first = self.z.shape[1] - queries
        states = self.trace.states[1:] if layers else self.trace.states[-1:]
        return torch.stack([-self._responses(state, first) for state in states])

    def predictions_backward(self, grad: Tensor, need_z: bool) -> Gradients:
        """Gradients from those of the predictions (L or 1, B, queries, m)."""
        depth = self.parameters.a.shape[0]
        outer: list[Tensor | None] = [None] * depth
        first = self.z.shape[1] - grad.shape[2]
        direct = torch.zeros_like(self.z) if need_z else None
        for layer, layer_grad in zip(range(depth - grad.shape[0], depth), grad, strict=True):
            outer[layer] = self._state_grad(-layer_grad, first)
            if direct is not None:
                direct = direct + self._direct_grad(-layer_grad, self.trace.states[layer + 1], first)
        return self._finish(outer, direct)

    def _state_grad(self, grad: Tensor, first: int) -> Tensor:
        """Gradient of the state from that of `_responses`."""
        if not self.gram_space:
            return pad(grad.mT, (first, 0))
        return grad.mT @ self.features[:, first:]

    def _direct_grad(self, grad: Tensor, state: Tensor, first: int) -> Tensor:
        """Gradient of z from that of `_responses`, not counting what reaches z through the state."""
        if not self.gram_space:
            return torch.zeros_like(self.z)
        return pad(torch.cat([grad @ state, grad], -1), (0, 0, first, 0))

    def _finish(self, outer: Sequence[Tensor | None], direct: Tensor | None) -> Gradients:
        """All gradients; that of z is made where its direct part was asked for."""
        own = self.parameters
        grads = response.run_backward(outer, self.trace, self.residual, own.a, own.memory)
        made = own.gradients(grads, None if direct is None else direct + self._z_grad(grads))
        if self.labelled.shares is not None:
            made.weights = weights_gradient(self._shares_grad(grads), self.labelled)
        return made

    def _matrix_grad(self, grads: response.ResponseGrads) -> Tensor:
        """The gradient of the mean Gram matrix, (B, D, D)."""
        return pad(torch.cat(grads.of_quadratics(self.trace), -1), (0, 0, 0, self._slots))

    def _shares_grad(self, grads: response.ResponseGrads) -> Tensor | None:
        if self.gram_space:
            return shares_gradient(self._matrix_grad(grads), self.z, self.labelled)
        states = self.labelled.select(response.stacked_states(self.trace).mT)
        return (states * (self.labelled.select(self.features) @ grads.residual.flatten(2))).sum(-1)

    def _z_grad(self, grads: response.ResponseGrads) -> Tensor:
        """The gradient that reaches z through the recurrence."""
        if self.gram_space:
            return gram_backward(self.labelled.mean(self._matrix_grad(grads)), self.z, self.labelled)
        states = self.labelled.select(response.stacked_states(self.trace).mT)
        rows = self.labelled.times_shares(states) @ grads.residual.flatten(2).mT
        features = self.labelled.place(self.labelled.mean(rows), self.z.shape[1])
        for residual, a, register_grad in zip(self.trace.residuals, self.parameters.a, grads.register, strict=True):
            # The rows of heads and responses alike.
            preconditioned = response.precondition(residual, a).flatten(1, 2)
            features = features + register_grad.flatten(1, 2).mT @ preconditioned
        return torch.cat([features, grads.state.mT], -1)


def _last_columns(grad: Tensor | None, coefficient: Tensor | None) -> Tensor | None:
    """The gradient of a coefficient of which only the response columns are read."""
    if grad is None or coefficient is None:
        return None
    width, columns = coefficient.shape[-1] if coefficient.ndim else 1, grad.mT
    return pad(columns, (width - columns.shape[-1], 0)).reshape(coefficient.shape)
