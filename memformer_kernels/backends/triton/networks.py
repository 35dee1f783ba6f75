"""Networks, layers and quadratics as calls of the Triton kernels' recurrences, and their gradients back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.projections import projections
from memformer_kernels.backends.triton import columns, network, network_backward, solve, solve_backward
from memformer_kernels.backends.triton.coefficients import DIAGONAL, FULL, LINEAR, in_full
from memformer_kernels.backends.triton.rules import Config
from memformer_kernels.calls.arguments import Form, Layer, Network, Quadratics, compute_dtype

NetworkGradients = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of z, q, p, gamma and beta."""


def _rule(gamma: Tensor | None) -> int:
    if gamma is None:
        return LINEAR
    return DIAGONAL if gamma.ndim == 4 else FULL


class _Response(ABC):
    """Tokens of a response-only network, by its predictions: features stay, responses are minus those."""

    network: Network

    @abstractmethod
    def predict(self, queries: int, layers: bool) -> Tensor:
        """Predictions (1 or L, B, queries)."""

    @abstractmethod
    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        """Gradients of everything from those of the predictions."""

    def stack(self) -> Tensor:
        z = self.network.z
        responses = -self.predict(z.shape[1], layers=False)[0]
        return torch.cat([z[..., :-1], responses[..., None].to(z.dtype)], -1)

    def stack_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        responses = -grad[None, ..., -1].to(compute_dtype(self.network.z))
        z, *parameters = self.predict_backward(responses, need_z)
        return (z if z is None else z + pad(grad[..., :-1], (0, 1)), *parameters)  # type: ignore[return-value]


class ResponseCalls(_Response):
    """A response-only network in Gram space: coefficients are read in the response column alone.

    Where `matrix` gives the mean context Gram matrices, gradients name theirs in place of z's.
    """

    def __init__(self, network: Network, matrix: Tensor | None = None) -> None:
        self.network = network
        dtype = compute_dtype(network.z)
        layers, heads = network.q.shape[:2]
        kept = network.form.kept(heads)
        a = network.q.to(dtype)
        rule = _rule(network.gamma)
        leading = (layers, layers, kept, 1) if rule == FULL else (layers, kept, 1)
        width = network.z.shape[2]
        self.recurrence = solve.Recurrence(
            a=(a if kept == heads else a.sum(1, keepdim=True)).contiguous(),
            rule=rule,
            gamma=in_full(network.gamma, leading, width, dtype, column=True),
            beta=in_full(network.beta, (layers, kept, 1), width, dtype, column=True),
            z=network.z,
            lengths=network.lengths,
            context=network.context,
            matrix=matrix,
        )

    def predict(self, queries: int, layers: bool) -> Tensor:
        return solve.solve(self.recurrence, queries, self.network.q.shape[0] if layers else 1)

    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        outputs, _, queries = grad.shape
        z_dtype = self.network.z.dtype
        return self._gradients(
            solve_backward.solve_backward(self.recurrence, grad.contiguous(), None, queries, outputs, need_z, z_dtype)[
                0
            ]
        )

    def loss(self, target: Tensor, queries: int, need_z: bool) -> tuple[Tensor, Tensor, NetworkGradients]:
        """The sum of squared errors, and the gradients of the mean's predictions and arguments."""
        dtype = self.recurrence.a.dtype
        grads, error = solve_backward.solve_backward(
            self.recurrence, None, target.contiguous(), queries, 1, need_z, dtype
        )
        return grads.squares, error[0], self._gradients(grads)

    def _gradients(self, grads: solve_backward.Gradients) -> NetworkGradients:
        tasks = grads.z if self.recurrence.matrix is None else grads.matrix
        return tasks, grads.a.expand(self.network.q.shape), None, grads.gamma, grads.beta


class ColumnCalls(_Response):
    """A response-only network on tokens, tiny enough that features stay in registers."""

    def __init__(self, network: Network, config: Config) -> None:
        self.network = network
        dtype = compute_dtype(network.z)
        layers, heads = network.q.shape[:2]
        kept = network.form.kept(heads)
        a = network.q.to(dtype)
        rule = _rule(network.gamma)
        leading = (layers, layers, kept) if rule == FULL else (layers, kept)
        gamma_tokens, beta_tokens = _token_axis(network.gamma), _token_axis(network.beta)
        self.recurrence = columns.Recurrence(
            z=network.z,
            lengths=network.lengths,
            context=network.context,
            a=(a if kept == heads else a.sum(1, keepdim=True)).contiguous(),
            rule=rule,
            gamma=in_full(network.gamma, (*leading, gamma_tokens), 1, dtype, column=True),
            beta=in_full(network.beta, (layers, kept, beta_tokens), 1, dtype, column=True),
            config=config,
        )

    def predict(self, queries: int, layers: bool) -> Tensor:
        return columns.predictions(self.recurrence, queries, self.network.q.shape[0] if layers else 1)

    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        return self._backward(grad.contiguous(), None, grad.shape[2], grad.shape[0], need_z, self.network.z.dtype)[0]

    def loss(self, target: Tensor, queries: int, need_z: bool) -> tuple[Tensor, Tensor, NetworkGradients]:
        """The sum of squared errors, and the gradients of the mean's predictions and arguments."""
        dtype = self.recurrence.a.dtype
        gradients, error, squares = self._backward(None, target.contiguous(), queries, 1, need_z, dtype)
        return squares, error[0], gradients

    def _backward(
        self,
        error: Tensor | None,
        target: Tensor | None,
        queries: int,
        outputs: int,
        need_z: bool,
        z_dtype: torch.dtype,
    ) -> tuple[NetworkGradients, Tensor, Tensor]:
        grads, error = columns.predictions_backward(self.recurrence, error, target, queries, outputs, need_z, z_dtype)
        gradients = grads.z, grads.a.expand(self.network.q.shape), None, grads.gamma, grads.beta
        return gradients, error, grads.squares


class NetworkCalls:
    """A network of any structure, on tokens or in Gram space, or a single layer.

    Where `matrix` gives the mean context Gram matrices, gradients name theirs in place of z's.
    """

    def __init__(
        self,
        z: Tensor,
        q: Tensor,
        p: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        lengths: Tensor | None,
        context: int,
        form: Form,
        past: Tensor | None = None,
        matrix: Tensor | None = None,
    ) -> None:
        dtype = compute_dtype(z)
        layers, heads = q.shape[:2]
        width = z.shape[2]
        kept = form.kept(heads)
        depth = layers if past is None else layers + past.shape[0]
        rule = _rule(gamma)
        leading = (layers, depth, kept) if rule == FULL else (layers, kept)
        dense_q, dense_p = projections(q.to(dtype), None if p is None else p.to(dtype), width)
        self.q_width, self.p_width = q.shape[-1], 0 if p is None else p.shape[-1]
        self.recurrence = network.Recurrence(
            z=z,
            lengths=lengths,
            context=context,
            space=form.space,
            q=dense_q.contiguous(),
            p=dense_p.contiguous(),
            p_grad=p is not None,
            rule=rule,
            gamma=in_full(gamma, (*leading, _token_axis(gamma)), width, dtype),
            beta=in_full(beta, (layers, kept, _token_axis(beta)), width, dtype),
            kept=kept,
            past=past,
            matrix=matrix,
        )

    @classmethod
    def of_network(cls, network: Network, matrix: Tensor | None = None) -> "NetworkCalls":
        return cls(*network, matrix=matrix)

    @classmethod
    def of_layer(cls, layer: Layer) -> "NetworkCalls":
        """One layer as a network whose registers from before come with the call."""
        return cls(
            layer.z,
            layer.q[None],
            None if layer.p is None else layer.p[None],
            None if layer.gamma is None else layer.gamma[None],
            layer.beta,
            layer.lengths,
            layer.context,
            layer.form,
            _stacked(layer.registers),
        )

    def layer(self) -> tuple[Tensor, Tensor]:
        """Z after a single layer, and its register."""
        tokens, register = network.tokens(self.recurrence, register=True)
        assert register is not None
        return tokens, register

    def layer_backward(
        self, grad: Tensor, register_grad: Tensor, need_z: bool
    ) -> tuple[NetworkGradients, list[Tensor]]:
        """Gradients of the arguments, and of the registers from before."""
        grads = network_backward.tokens_backward(self.recurrence, grad.contiguous(), register_grad.contiguous(), need_z)
        z, q, p, gamma, beta = self._gradients(grads)
        own = z, q[0], None if p is None else p[0], None if gamma is None else gamma[0], beta
        return own, [] if grads.past is None else list(grads.past)

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


def _stacked(registers: Sequence[Tensor]) -> Tensor | None:
    if not registers:
        return None
    return registers[0].contiguous()[None] if len(registers) == 1 else torch.stack(tuple(registers))


def _token_axis(coefficient: Tensor | None) -> int:
    return 1 if coefficient is None or coefficient.ndim < 2 else coefficient.shape[-2]


class QuadraticCalls:
    """A learned first-order method on a batch of quadratics."""

    def __init__(self, quadratics: Quadratics) -> None:
        h, b, a, gamma, beta, w0 = quadratics
        layers, width = a.shape[:2]
        self.quadratics = quadratics
        self.recurrence = solve.Recurrence(
            a=a[:, None].contiguous(),
            rule=LINEAR if gamma is None else FULL,
            gamma=in_full(gamma, (layers, layers), width, h.dtype),
            beta=in_full(beta, (layers,), width, h.dtype),
            h=h.contiguous(),
            b=b.contiguous(),
            start=None if w0 is None else w0.contiguous(),
        )

    def solve(self, layers: bool) -> Tensor:
        """The weights after the last layer (1, B, d), or after every one (L, B, d)."""
        return solve.solve(self.recurrence, 0, self.quadratics.a.shape[0] if layers else 1)

    def backward(self, grad: Tensor) -> list[Tensor | None]:
        """Gradients of (h, b, a, gamma, beta, w0)."""
        grads, _ = solve_backward.solve_backward(
            self.recurrence, grad.contiguous(), None, 0, grad.shape[0], needs_tasks=True, z_dtype=grad.dtype
        )
        return [grads.h, grads.b, grads.a[:, 0], grads.gamma, grads.beta, grads.start]
