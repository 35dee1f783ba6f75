"""Networks, layers and quadratics as calls of the Triton kernels' recurrences, and their gradients back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.base import Needs
from memformer_kernels.backends.projections import projections
from memformer_kernels.backends.triton import (
    columns,
    columns_backward,
    network,
    network_backward,
    rules,
    solve,
    solve_backward,
)
from memformer_kernels.backends.triton.coefficients import DIAGONAL, FULL, LINEAR, Coefficient, in_full
from memformer_kernels.calls.arguments import Layer, Network, Quadratics, compute_dtype

NetworkGradients = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of z, q, p, gamma and beta."""


class _Weights(NamedTuple):
    """The rule of gamma, and both coefficients in full."""

    rule: int
    gamma: Coefficient
    beta: Coefficient


_RULES = {"linear": LINEAR, "diagonal": DIAGONAL, "shared": FULL, "full": FULL}


def _weights(call: Network, width: int, before: int = 0, column: bool = False) -> _Weights:
    """before: registers from before the first layer. column: coefficients are read in the response column alone."""
    layers, heads = call.q.shape[:2]
    kept, dtype = call.form.kept(heads), compute_dtype(call.z)
    rule = _RULES[call.form.rule]
    leading = (layers, layers + before, kept) if rule == FULL else (layers, kept)
    return _Weights(
        rule,
        in_full(call.gamma, leading, width, dtype, column=column),
        in_full(call.beta, (layers, kept), width, dtype, column=column),
    )


def _blocks(call: Network) -> Tensor:
    """The blocks A of q (L, R, d, d) of a response-only network, summed over heads that share a register."""
    heads = call.q.shape[1]
    a = call.q.to(compute_dtype(call.z))
    return (a if call.form.kept(heads) == heads else a.sum(1, keepdim=True)).contiguous()


class _Response(ABC):
    """A response-only network, by its predictions: of its tokens features stay, responses are minus those."""

    def __init__(self, call: Network) -> None:
        self.call = call

    @abstractmethod
    def _predict(self, queries: int, outputs: int) -> Tensor:
        """Predictions (outputs, B, queries)."""

    @abstractmethod
    def _backward(
        self,
        error: Tensor | None,
        target: Tensor | None,
        queries: int,
        outputs: int,
        need_z: bool,
        z_dtype: torch.dtype,
    ) -> tuple[NetworkGradients, Tensor, Tensor]:
        """Gradients of everything, of the predictions, and for a target the sum of squared errors."""

    def predict(self, queries: int, layers: bool) -> Tensor:
        """Predictions (1 or L, B, queries)."""
        return self._predict(queries, self.call.q.shape[0] if layers else 1)

    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        """Gradients of everything from those of the predictions."""
        outputs, _, queries = grad.shape
        return self._backward(grad.contiguous(), None, queries, outputs, need_z, self.call.z.dtype)[0]

    def loss(self, target: Tensor, queries: int, need_z: bool) -> tuple[Tensor, Tensor, NetworkGradients]:
        """The sum of squared errors, and the gradients of the mean's predictions and arguments."""
        dtype = compute_dtype(self.call.z)
        gradients, error, squares = self._backward(None, target.contiguous(), queries, 1, need_z, dtype)
        return squares, error[0], gradients

    def stack(self) -> Tensor:
        z = self.call.z
        responses = -self.predict(z.shape[1], layers=False)[0]
        return torch.cat([z[..., :-1], responses[..., None].to(z.dtype)], -1)

    def stack_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        responses = -grad[None, ..., -1].to(compute_dtype(self.call.z))
        z, *parameters = self.predict_backward(responses, need_z)
        return (z if z is None else z + pad(grad[..., :-1], (0, 1)), *parameters)  # type: ignore[return-value]


class ResponseCalls(_Response):
    """A response-only network in Gram space: coefficients are read in the response column alone.

    Where `matrix` gives the mean context Gram matrices, gradients name theirs in place of z's, where z's is needed.
    """

    def __init__(self, call: Network, matrix: Tensor | None = None) -> None:
        super().__init__(call)
        features = call.q.shape[-1]
        weights = _weights(call, features + solve.sums_tokens(call.z, matrix), column=True)
        self.recurrence = solve.Recurrence(
            _blocks(call), *weights, z=call.z, lengths=call.lengths, context=call.context, matrix=matrix
        )

    def _predict(self, queries: int, outputs: int) -> Tensor:
        return solve.solve(self.recurrence, queries, outputs)

    def _backward(
        self,
        error: Tensor | None,
        target: Tensor | None,
        queries: int,
        outputs: int,
        need_z: bool,
        z_dtype: torch.dtype,
    ) -> tuple[NetworkGradients, Tensor, Tensor]:
        needs = solve_backward.TaskNeeds(need_z)
        grads, error = solve_backward.solve_backward(self.recurrence, error, target, queries, outputs, needs, z_dtype)
        tasks = grads.z if self.recurrence.matrix is None else grads.matrix
        return (tasks, grads.a.expand(self.call.q.shape), None, grads.gamma, grads.beta), error, grads.squares


class ColumnCalls(_Response):
    """A response-only network on tokens."""

    def __init__(self, call: Network) -> None:
        super().__init__(call)
        weights = _weights(call, 1, column=True)
        config = rules.columns_config(call.z.shape[2], call.z.shape[1])
        self.recurrence = columns.Recurrence(call.z, call.lengths, call.context, _blocks(call), *weights, config)

    def _predict(self, queries: int, outputs: int) -> Tensor:
        return columns.predictions(self.recurrence, queries, outputs)

    def _backward(
        self,
        error: Tensor | None,
        target: Tensor | None,
        queries: int,
        outputs: int,
        need_z: bool,
        z_dtype: torch.dtype,
    ) -> tuple[NetworkGradients, Tensor, Tensor]:
        grads, error = columns_backward.predictions_backward(
            self.recurrence, error, target, queries, outputs, need_z, z_dtype
        )
        return (grads.z, grads.a.expand(self.call.q.shape), None, grads.gamma, grads.beta), error, grads.squares


class NetworkCalls:
    """A network of any structure, on tokens or in Gram space, or a single layer.

    past: registers (B, R, N, D) from before the first layer. Where `matrix` gives the mean context Gram matrices,
    gradients name theirs in place of z's, where z's is needed.
    """

    def __init__(self, call: Network, past: Sequence[Tensor] = (), matrix: Tensor | None = None) -> None:
        z, q, p = call.z, call.q, call.p
        dtype, width = compute_dtype(z), z.shape[2]
        weights = _weights(call, width, len(past))
        dense_q, dense_p = projections(q.to(dtype), None if p is None else p.to(dtype), width)
        self.q_width, self.p_width = q.shape[-1], 0 if p is None else p.shape[-1]
        self.recurrence = network.Recurrence(
            z=z,
            lengths=call.lengths,
            context=call.context,
            space=call.form.space,
            q=dense_q.contiguous(),
            p=dense_p.contiguous(),
            p_grad=p is not None,
            rule=weights.rule,
            gamma=weights.gamma,
            beta=weights.beta,
            kept=call.form.kept(q.shape[1]),
            past=tuple(register.contiguous() for register in past),
            matrix=matrix,
        )

    @classmethod
    def of_layer(cls, layer: Layer) -> "NetworkCalls":
        """One layer as a network whose registers from before come with the call."""
        q, p, gamma = (None if x is None else x[None] for x in (layer.q, layer.p, layer.gamma))
        assert q is not None
        call = Network(layer.z, q, p, gamma, layer.beta, layer.lengths, layer.context, layer.form)
        return cls(call, layer.registers)

    def layer(self) -> tuple[Tensor, Tensor]:
        """Z after a single layer, and its register."""
        tokens, register = network.tokens(self.recurrence, register=True)
        assert register is not None
        return tokens, register

    def layer_backward(
        self, grad: Tensor, register_grad: Tensor, need_z: bool, need_past: bool
    ) -> tuple[NetworkGradients, list[Tensor | None]]:
        """Gradients of the arguments, and of the registers from before."""
        past = self.recurrence.past
        grads = network_backward.tokens_backward(
            self.recurrence, grad.contiguous(), register_grad.contiguous(), need_z, need_past
        )
        z, q, p, gamma, beta = self._gradients(grads)
        layer = z, q[0], None if p is None else p[0], None if gamma is None else gamma[0], beta
        return layer, [None] * len(past) if grads.past is None else list(grads.past)

    def predict(self, queries: int, layers: bool) -> Tensor:
        return network.predictions(self.recurrence, queries, self.recurrence.q.shape[0] if layers else 1)

    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        return self._gradients(network_backward.predictions_backward(self.recurrence, grad.contiguous(), need_z))

    def stack(self) -> Tensor:
        return network.tokens(self.recurrence, register=False)[0]

    def stack_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        return self._gradients(network_backward.tokens_backward(self.recurrence, grad.contiguous(), None, need_z))

    def loss(self, target: Tensor, queries: int, need_z: bool) -> tuple[Tensor, Tensor, NetworkGradients]:
        """The sum of squared errors, and the gradients of the mean's predictions and arguments."""
        grads, error = network_backward.squared_errors(self.recurrence, target.contiguous(), need_z)
        return grads.squares, error[0], self._gradients(grads)

    def _gradients(self, grads: network_backward.Gradients) -> NetworkGradients:
        q = grads.q[..., : self.q_width, : self.q_width]
        p = None if grads.p is None else grads.p[..., : self.p_width, : self.p_width]
        tasks = grads.z if self.recurrence.matrix is None else grads.matrix
        return tasks, q, p, grads.gamma, grads.beta


class QuadraticCalls:
    """A learned first-order method on a batch of quadratics."""

    def __init__(self, quadratics: Quadratics) -> None:
        h, b, a, gamma, beta, w0 = quadratics
        layers, width = a.shape[:2]
        self.quadratics = quadratics
        self.recurrence = solve.Recurrence(
            a=a[:, None].contiguous(),
            rule=LINEAR if gamma is None else FULL,
            gamma=in_full(gamma, (layers, layers), width, h.dtype, tokens=False),
            beta=in_full(beta, (layers,), width, h.dtype, tokens=False),
            h=h.contiguous(),
            b=b.contiguous(),
            start=None if w0 is None else w0.contiguous(),
        )

    def solve(self, layers: bool) -> Tensor:
        """The weights after the last layer (1, B, d), or after every one (L, B, d)."""
        return solve.solve(self.recurrence, 0, self.quadratics.a.shape[0] if layers else 1)

    def backward(self, grad: Tensor, needs: Needs) -> list[Tensor | None]:
        """Gradients of (h, b, a, gamma, beta, w0), of h, b and w0 where they are needed."""
        wanted = solve_backward.TaskNeeds(needs[0], needs[1], needs[5])
        grads, _ = solve_backward.solve_backward(
            self.recurrence, grad.contiguous(), None, 0, grad.shape[0], wanted, z_dtype=grad.dtype
        )
        return [grads.h, grads.b, grads.a[:, 0], grads.gamma, grads.beta, grads.start]
