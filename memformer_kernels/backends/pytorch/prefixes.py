"""Every token predicted from the tokens before it: all layers in Gram space, on the prefixes of a block at a time.

A prefix's Gram matrix is that of the block's first prefix and a running sum of the products of the block's tokens; the
prefixes of a block are tasks of the recurrences. A backward walks the blocks from the last to the first, works each out
again and carries the gradient of the matrices of later prefixes: of those, no more than a block's are kept.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch import recurrence as attention
from memformer_kernels.backends.pytorch import response
from memformer_kernels.backends.pytorch.context import across_tokens
from memformer_kernels.backends.pytorch.forms import GeneralParameters, Gradients, ResponseParameters

_SHORTEST_BLOCK = 32


def block_length(prefixes: int) -> int:
    """Prefixes of a block. No fewer than there are blocks, so that one matrix for each is not the larger part."""
    blocks = math.ceil(prefixes / max(_SHORTEST_BLOCK, math.isqrt(prefixes - 1) + 1))
    return math.ceil(prefixes / blocks)


class _ResponseRun:
    """The layers of a response-only network on means (M, d, D): H and, in the last column, b.

    columns: after each layer, what the features of a query are multiplied with in its response slot, (M, d).
    """

    def __init__(self, own: ResponseParameters, means: Tensor) -> None:
        h, b = means[..., :-1].contiguous(), means[..., -1:].mT
        self._own = own
        self._residual = response.GramResidual(h, b, from_zero=True, transposed=h)
        self._trace = response.run(torch.zeros_like(b), self._residual, own.a, own.memory)
        self.columns = [state[:, 0] for state in self._trace.states[1:]]

    def backward(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, Gradients]:
        """Gradients of the means and of the parameters from those of the columns."""
        own = self._own
        outer = [None if grad is None else grad[:, None] for grad in grads]
        made = response.run_backward(outer, self._trace, self._residual, own.a, own.memory)
        return torch.cat(made.of_quadratics(self._trace), -1), own.gradients(made, None)


class _GeneralRun:
    """The same for any P and Q, on whole Gram matrices (M, D, D)."""

    def __init__(self, own: GeneralParameters, means: Tensor) -> None:
        self._own, self._metric = own, attention.GramMetric(means)
        state = torch.eye(means.shape[-1], dtype=means.dtype, device=means.device).expand_as(means)
        self._trace = attention.run(state, self._metric, own.q, own.p, own.memory, own.heads)
        self.columns = [state[:, :-1, -1] for state in self._trace.states[1:]]

    def backward(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, Gradients]:
        own, width = self._own, self._metric.initial.shape[-1]
        outer = [None if grad is None else pad(grad[..., None], (width - 1, 0, 0, 1)) for grad in grads]
        made = attention.run_backward(outer, self._trace, self._metric, own.q, own.p, own.memory)
        assert self._metric.grad is not None
        return self._metric.grad, own.gradients(made, None)


class PrefixForm:
    """A network on the prefixes of tasks z (B, N, D), the shortest of which has `first` tokens."""

    def __init__(self, z: Tensor, first: int, parameters: GeneralParameters | ResponseParameters) -> None:
        self._z, self._first, self._parameters = z, first, parameters
        self._response_only = isinstance(parameters, ResponseParameters)

    def predictions(self, layers: bool) -> Tensor:
        """Of tokens first, ..., N - 1, after every layer or the last: (L or 1, B, N - first)."""
        made = []
        for block, base in self._blocks():
            run = self._run(block, base)
            made.append(self._read(block, run.columns if layers else run.columns[-1:]))
        return torch.cat(made, 2)

    def gradients(self, pull: Callable[[slice, Tensor], Tensor], depth: int, need_z: bool) -> list[Gradients]:
        """Gradients of all arguments, in parts that add up; that of z is whole, in one of them.

        pull(predictions' places, predictions) says the gradient of those, (depth, B, their number), after the last
        `depth` layers.
        """
        parts: list[Gradients] = []
        rows: list[Tensor] = []
        carry: Tensor | None = None
        for block, base in reversed(list(self._blocks())):
            run = self._run(block, base)
            columns = run.columns[len(run.columns) - depth :]
            grad = pull(slice(block.start - self._first, block.stop - self._first), self._read(block, columns))
            features = self._z[:, block, :-1]
            outer = [-(layer_grad[..., None] * features).flatten(0, 1) for layer_grad in grad]
            means_grad, own = run.backward([*[None] * (len(run.columns) - depth), *outer])
            parts.append(own)
            if need_z:
                sums_grad = means_grad.reshape(*features.shape[:2], *means_grad.shape[1:]) / self._counts(block)
                direct = self._direct(grad, columns)
                rows.append(direct + self._through_later(block, sums_grad, carry))
                total = sums_grad.sum(1)
                carry = total if carry is None else carry + total
        if need_z:
            assert carry is not None
            rows.append(self._product_grad(self._z[:, : self._first], carry))
            parts[0].z = torch.cat(rows[::-1], 1)
        return parts

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Tokens to predict, and the sum of products of all tokens before them, (B, D or d, D)."""
        tokens = self._z.shape[1]
        length = block_length(tokens - self._first)
        base = self._gram(slice(0, self._first))
        for start in range(self._first, tokens, length):
            block = slice(start, min(start + length, tokens))
            yield block, base
            if block.stop < tokens:
                base = base + self._gram(block)

    def _left(self, tokens: Tensor) -> Tensor:
        """A response-only network reads no product of the response with itself."""
        return tokens[..., :-1] if self._response_only else tokens

    def _gram(self, block: slice) -> Tensor:
        tokens = self._z[:, block]
        return across_tokens(self._left(tokens), tokens)

    def _counts(self, block: slice) -> Tensor:
        """Tokens in the prefixes of a block, to divide (B, K, ., .) by."""
        count = torch.arange(block.start, block.stop, dtype=self._z.dtype, device=self._z.device)
        return count[:, None, None]

    def _run(self, block: slice, base: Tensor) -> _ResponseRun | _GeneralRun:
        tokens = self._z[:, block.start : block.stop - 1]
        products = self._left(tokens)[..., :, None] * tokens[..., None, :]
        means = torch.cat([base[:, None], products], 1).cumsum(1) / self._counts(block)
        flat = means.flatten(0, 1)
        if isinstance(self._parameters, ResponseParameters):
            return _ResponseRun(self._parameters, flat)
        return _GeneralRun(self._parameters, flat)

    def _read(self, block: slice, columns: Sequence[Tensor]) -> Tensor:
        features = self._z[:, block, :-1]
        return torch.stack([-(features * column.view_as(features)).sum(-1) for column in columns])

    def _direct(self, grad: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """Gradient of the tokens (B, K, D) as queries: of their features alone."""
        terms = [
            layer_grad[..., None] * column.reshape(*layer_grad.shape, column.shape[1])
            for layer_grad, column in zip(grad, columns, strict=True)
        ]
        return pad(-sum(terms[1:], terms[0]), (0, 1))

    def _through_later(self, block: slice, sums_grad: Tensor, carry: Tensor | None) -> Tensor:
        """Gradient of the tokens (B, K, D) as examples of later prefixes: the block's own, and `carry` of the rest."""
        later = sums_grad[:, 1:].flip(1).cumsum(1).flip(1)
        if carry is not None:
            later = torch.cat([later, torch.zeros_like(sums_grad[:, :1])], 1) + carry[:, None]
            return self._products_grad(self._z[:, block], later)
        # No prefix has the last token, whatever it holds.
        tokens = self._z[:, block.start : block.stop - 1]
        return pad(self._products_grad(tokens, later), (0, 0, 0, 1))

    def _products_grad(self, tokens: Tensor, grad: Tensor) -> Tensor:
        """Gradient of tokens (B, K, D) from those of their products, (B, K, D or d, D)."""
        left = self._left(tokens)
        own = (left[..., None, :] @ grad)[..., 0, :]
        return own + pad((grad @ tokens[..., None])[..., 0], (0, tokens.shape[2] - left.shape[2]))

    def _product_grad(self, tokens: Tensor, grad: Tensor) -> Tensor:
        """The same where all products have one gradient (B, D or d, D)."""
        left = self._left(tokens)
        return left @ grad + pad(tokens @ grad.mT, (0, tokens.shape[2] - left.shape[2]))
