"""Every token predicted from the tokens before it: all layers in Gram space, on the prefixes of a block at a time.

A prefix's Gram matrix is that of the block's first prefix and the products of the block's tokens before it. Where
features stay, layers are products with those two, and no prefix has a matrix of its own (`response.PrefixResidual`);
with any P and Q, matrices are a running sum, and the prefixes of a block are tasks of the recurrence. A backward walks
the blocks from the last to the first, works each out again and carries the gradient of the first matrices of later
blocks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


@dataclass(frozen=True)
class _Block:
    """The tokens of a block (B, K, D), each the query of its prefix, and what those before them add up to.

    base: sum of the products of all tokens before the block, (B, d or D, D). counts: tokens in the prefixes, (K,).
    """

    tokens: Tensor
    base: Tensor
    counts: Tensor

    @property
    def examples(self) -> Tensor:
        """The block's tokens that one of its prefixes has, (B, K - 1, D): all but the last, whatever that holds."""
        return self.tokens[:, :-1]


class _SumsGrad(NamedTuple):
    """Gradients of a block's base and of its tokens (B, K, D) as examples of its prefixes."""

    base: Tensor
    tokens: Tensor


class _Run(Protocol):
    """The layers of a network on the prefixes of a block.

    columns: after each layer, what the features of a query are multiplied with in its response slot, (B, K, d).
    """

    columns: list[Tensor]

    def backward(self, grads: Sequence[Tensor | None], need_z: bool) -> tuple[_SumsGrad | None, Gradients]:
        """Gradients of the sums, where they are needed, and of the parameters, from those of the columns."""
        ...


class _ResponseRun:
    """The run of a response-only network, whose prefixes are rows of a task."""

    def __init__(self, own: ResponseParameters, block: _Block) -> None:
        features, responses = block.examples[..., :-1], block.examples[..., -1:]
        counts = block.counts[:, None]
        b = torch.cat([block.base[:, None, :, -1], features * responses], 1).cumsum(1) / counts
        self._own, self._block = own, block
        self._residual = response.PrefixResidual.of(block.base[..., :-1].contiguous(), features, b, counts)
        self._trace = response.run(torch.zeros_like(b), self._residual, own.a, own.memory)
        self.columns = self._trace.states[1:]

    def backward(self, grads: Sequence[Tensor | None], need_z: bool) -> tuple[_SumsGrad | None, Gradients]:
        own = self._own
        made = response.run_backward(grads, self._trace, self._residual, own.a, own.memory)
        return self._sums_grad(made) if need_z else None, own.gradients(made, None)

    def _sums_grad(self, made: response.ResponseGrads) -> _SumsGrad:
        """From the gradient e of each n g = b + H s, which is that of b, and times s^T that of H."""
        examples, residual = self._block.examples, self._residual
        by_layer = (made.residual / self._block.counts).permute(0, 2, 3, 1)
        of_b = by_layer.sum(1)
        # Layer 0 multiplies with s_0 = 0.
        errors, states = (x[:, 1:].flatten(1, 2) for x in (by_layer, torch.stack(self._trace.states[:-1], 1)))
        base = torch.cat([errors.mT @ states, of_b.sum(1)[..., None]], -1)
        later = _of_later(of_b)
        features = residual.of_earlier(states).mT @ errors + residual.of_earlier(errors).mT @ states
        features = features + later * examples[..., -1:]
        responses = (later * examples[..., :-1]).sum(-1, keepdim=True)
        return _SumsGrad(base, pad(torch.cat([features, responses], -1), (0, 0, 0, 1)))


class _GeneralRun:
    """The run of a network with any P and Q, on a mean Gram matrix for each prefix."""

    def __init__(self, own: GeneralParameters, block: _Block) -> None:
        examples, self._block, self._own = block.examples, block, own
        products = examples[..., :, None] * examples[..., None, :]
        sums = torch.cat([block.base[:, None], products], 1).cumsum(1)
        means = (sums / block.counts[:, None, None]).flatten(0, 1)
        self._metric = attention.GramMetric(means)
        state = torch.eye(means.shape[-1], dtype=means.dtype, device=means.device).expand_as(means)
        self._trace = attention.run(state, self._metric, own.q, own.p, own.memory, own.heads)
        shape = block.tokens.shape[:2]
        self.columns = [state[:, :-1, -1].reshape(*shape, means.shape[-1] - 1) for state in self._trace.states[1:]]

    def backward(self, grads: Sequence[Tensor | None], need_z: bool) -> tuple[_SumsGrad | None, Gradients]:
        own, tokens = self._own, self._block.tokens
        width = tokens.shape[2]
        outer = [None if grad is None else pad(grad.flatten(0, 1)[..., None], (width - 1, 0, 0, 1)) for grad in grads]
        made = attention.run_backward(outer, self._trace, self._metric, own.q, own.p, own.memory)
        parameters = own.gradients(made, None)
        if not need_z:
            return None, parameters
        assert self._metric.grad is not None
        grad = self._metric.grad.view(*tokens.shape[:2], width, width) / self._block.counts[:, None, None]
        later = _of_later(grad)
        both = (self._block.examples[..., None, :] @ (later + later.mT))[..., 0, :]
        return _SumsGrad(grad.sum(1), pad(both, (0, 0, 0, 1))), parameters


def _of_later(grads: Tensor) -> Tensor:
    """Of prefixes (B, K, ...), for each but the last, the sum over those behind it, (B, K - 1, ...)."""
    return grads[:, 1:].flip(1).cumsum(1).flip(1)


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
            tokens = self._z[:, block]
            grad = pull(slice(block.start - self._first, block.stop - self._first), self._read(block, columns))
            outer = [-(layer_grad[..., None] * tokens[..., :-1]) for layer_grad in grad]
            sums, own = run.backward([*[None] * (len(run.columns) - depth), *outer], need_z)
            parts.append(own)
            if sums is None:
                continue
            made = sums.tokens + self._direct(grad, columns)
            rows.append(made if carry is None else made + self._product_grad(tokens, carry))
            carry = sums.base if carry is None else carry + sums.base
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

    def _run(self, block: slice, base: Tensor) -> _Run:
        counts = torch.arange(block.start, block.stop, dtype=self._z.dtype, device=self._z.device)
        given = _Block(self._z[:, block], base, counts)
        if isinstance(self._parameters, ResponseParameters):
            return _ResponseRun(self._parameters, given)
        return _GeneralRun(self._parameters, given)

    def _read(self, block: slice, columns: Sequence[Tensor]) -> Tensor:
        features = self._z[:, block, :-1]
        return torch.stack([-(features * column).sum(-1) for column in columns])

    def _direct(self, grad: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """Gradient of the tokens (B, K, D) as queries: of their features alone."""
        terms = [layer_grad[..., None] * column for layer_grad, column in zip(grad, columns, strict=True)]
        return pad(-sum(terms[1:], terms[0]), (0, 1))

    def _product_grad(self, tokens: Tensor, grad: Tensor) -> Tensor:
        """Gradient of tokens (B, K, D) from that of the sum of their products, (B, D or d, D)."""
        left = self._left(tokens)
        return left @ grad + pad(tokens @ grad.mT, (0, tokens.shape[2] - left.shape[2]))
