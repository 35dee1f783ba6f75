"""Response-only Memformers written as the first-order method that they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from memformer_kernels import lfom_solve
from memformer_kernels.nn import Memformer
from memformer_lab.runs.models import reads_statistics_alone


class FirstOrderMethod(NamedTuple):
    """The parameters of `memformer_kernels.lfom_solve`: a (L, d, d), gamma (L, L, 1), beta (L, 1), or None."""

    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None

    def solver(self, *, layers: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """(h, b) -> weights (R, B, d): R = 1 for the last layer's alone, R = L with `layers`."""

        def solve(h: Tensor, b: Tensor) -> Tensor:
            # Sampled quadratics come with the batch axis last; every layer reads h again.
            weights = lfom_solve(h.contiguous(), b.contiguous(), self.a, self.gamma, self.beta, layers=layers)
            return weights if layers else weights.unsqueeze(0)

        return solve


def first_order_method(model: Memformer) -> FirstOrderMethod | None:
    """The method that a model runs on g = b - H w, or None where it is not one.

    A response-only model of one head whose gamma and beta have no token axis moves the response column alone, so only
    the last feature of gamma and beta counts (Dutta & Sra, arXiv 2410.07263). Gates fold into gamma.
    """
    if model.structure != "response-only" or model.heads > 1 or not reads_statistics_alone(model):
        return None
    arguments, layers = model.stack_arguments(), model.layers
    q, gamma, beta, gate = arguments["q"], arguments["gamma"], arguments["beta"], arguments["gate"]
    if gamma is not None and gamma.ndim == 4:
        gamma = torch.diag_embed(gamma[:, 0, 0, -1].expand(layers))[..., None]
    elif gamma is not None:
        gamma = gamma[:, :, 0, 0, -1:]
    if gate is not None:
        gates = gate.reshape(-1, 1, 1)
        gamma = torch.eye(layers, dtype=q.dtype, device=q.device)[..., None] * gates if gamma is None else gamma * gates
    return FirstOrderMethod(q[:, 0], gamma, None if beta is None else beta[:, 0, 0, -1:])
