"""What a backend is: the operations of the package and their gradients, on checked tensors.

A backend never validates sizes and never chooses: `problem` has checked the arguments and `plan` has named the backend
and the algorithm. Every result is a new contiguous tensor. Gradients come as a list in the order of the call's tensors
(`None` arguments and those whose `needs` entry is false are left out; registers count one entry each). Calls with
weights, whose entry of `needs` is the last, are for backends of which `plan.takes_weights` says so; others are given
none and no such entry.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import Attention, Layer, Network, Proximal, Quadratics

Needs = Sequence[bool]


class Backend(Protocol):
    """The operations mean what they mean in `functional`; `layers` asks for every layer's result."""

    def context_gram(self, z: Tensor, lengths: Tensor | None, context: int) -> Tensor: ...

    def context_gram_backward(self, grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor: ...

    def stack(self, network: Network) -> Tensor: ...

    def stack_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]: ...

    def predict(self, network: Network, queries: int, layers: bool) -> Tensor: ...

    def predict_backward(
        self, grad: Tensor, network: Network, queries: int, layers: bool, needs: Needs
    ) -> list[Tensor]: ...

    def loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        """The mean squared error, then the gradients of (z, target, q, p, gamma, beta, lengths) that are needed.

        All in float64 for float64 tokens, else float32: half precision could not hold a gradient that a loss scale has
        yet to multiply.
        """
        ...

    def layer(self, layer: Layer) -> tuple[Tensor, Tensor]: ...

    def layer_backward(self, grad: Tensor, register_grad: Tensor, layer: Layer, needs: Needs) -> list[Tensor]: ...

    def lfom_solve(self, quadratics: Quadratics, layers: bool) -> Tensor: ...

    def lfom_solve_backward(self, grad: Tensor, quadratics: Quadratics, layers: bool, needs: Needs) -> list[Tensor]: ...

    def attend(self, call: Attention) -> Tensor:
        """The weighted sum over keys of `backends.pytorch.attention`."""
        ...

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        """The gradients of (q, k, v) that are needed."""
        ...

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        """z + sum_j gamma_j * R_j on tokens (A, M, C) and coefficients (J, M)."""
        ...

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        """The gradients of (*registers, gamma) that are needed."""
        ...

    def warmup(self, rehearsal: Callable[[int | None], object]) -> None:
        """Builds, loads or compiles what the calls that `rehearsal` makes to this backend would wait for.

        A backend that compiles or loads each kernel by itself calls it, with no kernel run; others never do. It makes
        the calls with so many tasks, or for None with their own.
        """
        ...


class PrefixBackend(Protocol):
    """Predictions of tokens `network.context`, ..., N - 1, each from the tokens before it; no contexts are ragged.

    The backends that plans give such calls to.
    """

    def prefix_predict(self, network: Network, layers: bool) -> Tensor:
        """(L or 1, B, N - context)."""
        ...

    def prefix_predict_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        """The gradients of (z, q, p, gamma, beta) that are needed; `grad` is of all layers or of the last."""
        ...

    def prefix_loss(self, network: Network, target: Tensor, needs: Needs) -> list[Tensor]:
        """Their mean squared error, then gradients of (z, target, q, p, gamma, beta), as `Backend.loss` has them."""
        ...


class ProximalBackend(Protocol):
    """First-order methods whose steps end in a prox. The backends that plans give such calls to."""

    def proximal_solve(self, quadratics: Quadratics, proximal: Proximal, layers: bool) -> Tensor:
        """(L or 1, B, d)."""
        ...

    def proximal_solve_backward(
        self, grad: Tensor, quadratics: Quadratics, proximal: Proximal, layers: bool, needs: Needs
    ) -> list[Tensor]:
        """The gradients of (h, b, a, gamma, beta, w0, level, lower, upper, radius) that are needed."""
        ...


def needed_gradients(
    grads: Sequence[Tensor | None],
    arguments: Sequence[Tensor | None],
    needs: Needs,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The gradients that are needed, in `dtype` or their arguments'; what nothing reads has gradient zero."""
    kept = []
    for grad, argument, needed in zip(grads, arguments, needs, strict=True):
        if needed and argument is not None:
            made = torch.zeros_like(argument) if grad is None else grad
            kept.append(made.to(dtype or argument.dtype).contiguous())
    return kept
