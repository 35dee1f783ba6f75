"""Gram space for few tasks or long contexts: the passes over tokens spread over many programs.

In Gram space Z_l = Z_0 T_l, so a network fed with the D unit vectors as its tokens, and with the context's Gram matrix
given, answers with T_L itself, and with minus the last columns of T_1, ..., T_L where it is asked for predictions. What
depends on N is then one sum over the context, one product of every token with a small matrix and, backward, the same
two again: each splits the tokens among programs, and adds up in a fixed order.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.gram import across, gram, gram_backward, tiles_of, times
from memformer_kernels.backends.triton.networks import NetworkCalls, NetworkGradients, ResponseCalls
from memformer_kernels.calls.arguments import Network, compute_dtype


def spreads(tasks: int, tokens: int) -> bool:
    """Whether one program a task would leave a GPU idle: a rule by the number of tasks, as `rules.gram_splits` is."""
    return tasks > 0 and rules.gram_splits(tasks, tokens) > 1


class SpreadCalls:
    """A network in Gram space, on its context's Gram matrix."""

    def __init__(self, network: Network, response_only: bool) -> None:
        self.network, self.response_only = network, response_only
        z = network.z
        self.dtype = compute_dtype(z)
        lengths = network.lengths
        self.count: int | Tensor = network.context if lengths is None else lengths[:, None, None]
        matrix = gram(z, lengths, network.context, mean=True).contiguous()
        self.width = z.shape[2]
        units = torch.eye(self.width, dtype=self.dtype, device=z.device).expand(z.shape[0], -1, -1)
        inner = network._replace(z=units, lengths=None, context=self.width)
        self.calls = ResponseCalls(inner, matrix) if response_only else NetworkCalls(inner, matrix=matrix)

    def predict(self, queries: int, layers: bool) -> Tensor:
        columns = self.calls.predict(self.width, layers).permute(1, 2, 0).contiguous()
        out = columns.new_empty((columns.shape[0], queries, columns.shape[2]))
        for part in tiles_of(columns.shape[2]):
            times(self._queries(queries), columns[..., part], out[..., part])
        return out.permute(2, 0, 1).contiguous()

    def predict_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        return self._predict_backward(grad, need_z, self.network.z.dtype)

    def loss(self, target: Tensor, queries: int, need_z: bool) -> tuple[Tensor, Tensor, NetworkGradients]:
        """The sum of squared errors, and the gradients of the mean's predictions and arguments."""
        difference = self.predict(queries, layers=False) - target
        error = difference * (2 / max(difference.numel(), 1))
        squares = difference.square().sum(-1).sum(dtype=torch.float64).to(self.dtype)
        return squares, error[0], self._predict_backward(error, need_z, self.dtype)

    def stack(self) -> Tensor:
        z = self.network.z
        if self.response_only:
            # Features are copied, not multiplied: they do not move.
            responses = -self.predict(z.shape[1], layers=False)[0]
            return torch.cat([z[..., :-1], responses[..., None].to(z.dtype)], -1)
        return times(z, self.calls.stack(), torch.empty_like(z, memory_format=torch.contiguous_format))

    def stack_backward(self, grad: Tensor, need_z: bool) -> NetworkGradients:
        z = self.network.z
        if self.response_only:
            responses = -grad[None, ..., -1].to(self.dtype)
            from_responses, *parameters = self._predict_backward(responses, need_z, z.dtype)
            moved = None if from_responses is None else from_responses + pad(grad[..., :-1], (0, 1))
            return (moved, *parameters)  # type: ignore[return-value]
        matrix, *parameters = self.calls.stack_backward(across(z, grad, None, z.shape[1]).contiguous(), need_z)
        z_grad: Tensor | None = None
        if need_z:
            last = self.calls.stack()
            z_grad = self._through_context(
                matrix, torch.empty_like(z, memory_format=torch.contiguous_format), (grad, last.mT)
            )
        return (z_grad, *parameters)  # type: ignore[return-value]

    def _predict_backward(self, grad: Tensor, need_z: bool, z_dtype: torch.dtype) -> NetworkGradients:
        outputs, _, queries = grad.shape
        query, by_query = self._queries(queries), grad.permute(1, 2, 0).contiguous()
        sums = [across(query, by_query[..., part], None, queries) for part in tiles_of(outputs)]
        column_grads = torch.cat(sums, 2).permute(2, 0, 1).contiguous()
        matrix, *parameters = self.calls.predict_backward(column_grads, need_z)
        z_grad: Tensor | None = None
        if need_z:
            z = self.network.z
            out = z.new_empty(z.shape, dtype=z_dtype)
            direct = by_query, self.calls.predict(self.width, outputs > 1).permute(1, 0, 2).contiguous()
            if queries == z.shape[1]:
                z_grad = self._through_context(matrix, out, direct)
            else:
                z_grad = self._through_context(matrix, out)
                times(*direct, z_grad[:, z.shape[1] - queries :])
        return (z_grad, *parameters)  # type: ignore[return-value]

    def _through_context(
        self, matrix_grad: Tensor | None, out: Tensor, other: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """What reaches z through the context's Gram matrix, exactly zero past the context, and a second product."""
        assert matrix_grad is not None
        lengths, context = self.network.lengths, self.network.context
        return gram_backward(matrix_grad / self.count, self.network.z, lengths, context, out, other)

    def _queries(self, queries: int) -> Tensor:
        return self.network.z[:, self.network.z.shape[1] - queries :]
