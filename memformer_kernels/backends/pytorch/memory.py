"""Memory registers: how layer l weights the registers it has kept, and the transpose of that.

Registers are (B, R, *S): R heads, or one where heads are summed; S is the token grid (N, D), the Gram grid (D, D) or
that of a row for each response, (m, N) or (m, d). The coefficients broadcast against (R, *S).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kept = Literal["all", "states", "last"]
"""What a run of all layers keeps: "all" that a backward reads; every state, for results after each layer; the last."""


@dataclass
class Memory:
    """gamma and beta of the update R_l = fresh + beta_l * R_{l-1}, X_{l+1} = X_l + sum_h sum_{j<=l} gamma_{l,j} * R_j.

    gamma: None (ones on the diagonal), (L or 1, R', *S') if `diagonal`, else (L or 1, L or 1, R', *S').
    beta:  None (zero) or (L or 1, R', *S').

    It serves one run of all layers. Where no backward follows (`forward_only`), one running register is enough unless
    every layer has weights of its own for all registers: the last one, or the weighted sum of all that layers share.
    """

    gamma: Tensor | None
    beta: Tensor | None
    diagonal: bool
    forward_only: bool = False
    _shared_sum: Tensor | None = field(default=None, init=False)

    def _beta(self, layer: int) -> Tensor:
        assert self.beta is not None
        return self.beta[layer % self.beta.shape[0]]

    def register(self, layer: int, fresh: Tensor, previous: Sequence[Tensor]) -> Tensor:
        """R_l from this layer's attention output and the registers before it."""
        if self.beta is None or not previous:
            return fresh
        return fresh + self._beta(layer) * previous[-1]

    def advance(self, layer: int, state: Tensor, fresh: Tensor, previous: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """R_l and X_{l+1} from X_l (B, *S), this layer's attention output and the registers before it."""
        register = self.register(layer, fresh, previous)
        return register, state + self.update(layer, [*previous, register])

    @property
    def runs(self) -> bool:
        """Whether one sum of all registers so far, as all layers weight them, moves every layer."""
        return self.forward_only and self.gamma is not None and not self.diagonal and self.gamma.shape[0] == 1

    def kept(self, registers: list[Tensor]) -> list[Tensor]:
        """Those of the registers so far that something still reads."""
        one = self.gamma is None or self.diagonal or self.gamma.shape[0] == 1
        if not self.forward_only or not one:
            return registers
        return [] if self.beta is None else registers[-1:]

    def update(self, layer: int, registers: Sequence[Tensor]) -> Tensor:
        """sum_h sum_{j<=l} gamma_{l,j,h} * R_{j,h}, (B, *S)."""
        if self.gamma is None:
            weighted = registers[-1]
        elif self.diagonal:
            weighted = self.gamma[layer % self.gamma.shape[0]] * registers[-1]
        elif self.runs:
            weights = self.gamma[0]
            weighted = _add_weighted(self._shared_sum, weights[layer % weights.shape[0]], registers[-1])
            self._shared_sum = weighted
        else:
            weighted = _weighted_sum(self._row(layer), registers)
        return weighted[:, 0] if weighted.shape[1] == 1 else weighted.sum(1)

    def _row(self, layer: int) -> Tensor:
        assert self.gamma is not None
        return self.gamma[layer % self.gamma.shape[0]][: layer + 1]

    def _column(self, layer: int) -> Tensor:
        assert self.gamma is not None
        rows = self.gamma[:, layer % self.gamma.shape[1]]
        return rows[layer:] if rows.shape[0] > 1 else rows

    def register_grad(self, layer: int, update_grads: Sequence[Tensor], later: Tensor | None) -> Tensor:
        """Gradient of R_l, (B, R, *S), from those of the updates of layers l, l+1, ... and of R_{l+1}."""
        own = update_grads[0].unsqueeze(1)
        if self.gamma is None:
            grad = own
        elif self.diagonal:
            grad = self.gamma[layer % self.gamma.shape[0]] * own
        else:
            grad = _weighted_sum(self._column(layer), [update_grad.unsqueeze(1) for update_grad in update_grads])
        if self.beta is None or later is None:
            return grad
        return grad + self._beta(layer + 1) * later

    def gamma_grad(self, registers: Sequence[Tensor], update_grads: Sequence[Tensor]) -> Tensor | None:
        """Gradient of gamma, summed over tasks; exactly zero for the entries j > l that no layer reads."""
        if self.gamma is None:
            return None
        shape = self.gamma.shape
        if self.diagonal:
            products = [r * u.unsqueeze(1) for r, u in zip(registers, update_grads, strict=True)]
            return _over_layers(torch.stack([over_tasks(x, shape[1:]) for x in products]), shape[0])
        rows = []
        for layer, update_grad in enumerate(update_grads):
            kept = torch.stack(tuple(registers[: layer + 1])) * update_grad.unsqueeze(1)
            row = over_tasks(kept.transpose(0, 1), (layer + 1, *shape[2:]))
            unread = row.new_zeros(len(registers) - layer - 1, *row.shape[1:])
            rows.append(_over_layers(torch.cat([row, unread]), shape[1]))
        return _over_layers(torch.stack(rows), shape[0])

    def beta_grad(self, registers: Sequence[Tensor], register_grads: Sequence[Tensor]) -> Tensor | None:
        """Gradient of beta, summed over tasks; zero for the first layer, which has no register before it."""
        if self.beta is None:
            return None
        shape = self.beta.shape
        products = [r * g for r, g in zip(registers[:-1], register_grads[1:], strict=True)]
        layers = [over_tasks(x, shape[1:]) for x in products]
        return _over_layers(torch.stack([self.beta.new_zeros(shape[1:]), *layers]), shape[0])


def _weighted_sum(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """sum_j weights_j * terms_j, one pass a term: no copy holds them side by side. One weight may serve all terms."""
    total = _add_weighted(None, weights[0], terms[0])
    for index, term in enumerate(terms[1:], 1):
        total = _add_weighted(total, weights[index % weights.shape[0]], term)
    return total


def _add_weighted(total: Tensor | None, weight: Tensor, term: Tensor) -> Tensor:
    return weight * term if total is None else torch.addcmul(total, weight, term)


def over_tasks(products: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over tasks (the first axis), then over the axes along which a coefficient of this shape is shared."""
    return products.sum(0).sum_to_size(tuple(shape))


def _over_layers(stacked: Tensor, size: int) -> Tensor:
    return stacked.sum(0, keepdim=True) if size == 1 and stacked.shape[0] != 1 else stacked
