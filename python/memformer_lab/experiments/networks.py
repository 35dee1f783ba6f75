"""Memformers that the library's rules do not name: scalar preconditioners, few registers, parameters without memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from memformer_kernels.nn import Memformer, StackArguments
from memformer_lab.experiments.fitting import seeded

Preconditioner = Literal["free", "scalar", "shared"]


class Variant(Memformer):
    """A `Memformer` with a constrained preconditioner or memory.

    Args:
        d: features.
        layers: layers.
        preconditioner: "free"; "scalar", A_l a multiple of the identity; "shared", one A for all layers.
        registers: how many of the last registers an lfom layer weighs, None for all. 1 keeps no memory.
        **arguments: of `Memformer`.
    """

    def __init__(
        self,
        d: int,
        layers: int,
        *,
        preconditioner: Preconditioner = "free",
        registers: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(d, layers, **arguments)
        self.preconditioner, self.registers = preconditioner, registers
        if preconditioner == "scalar":
            self.q = nn.Parameter(torch.full((layers, self.heads, 1, 1), -0.5))
        elif preconditioner == "shared":
            self.q = nn.Parameter(self.q.detach()[:1].clone())

    def stack_arguments(self) -> StackArguments:
        """As `Memformer.stack_arguments`, with the constraints put in."""
        arguments = super().stack_arguments()
        if self.preconditioner == "scalar":
            arguments["q"] = self.q * torch.eye(self.d, dtype=self.q.dtype, device=self.q.device)
        elif self.preconditioner == "shared":
            arguments["q"] = self.q.expand(self.layers, -1, -1, -1).contiguous()
        if self.registers is not None and arguments["gamma"] is not None:
            arguments["gamma"] = _newest(arguments["gamma"], self.registers)
        return arguments


def network(
    seed: int,
    d: int,
    layers: int,
    *,
    preconditioner: Preconditioner = "free",
    registers: int | None = None,
    **arguments: Any,
) -> Variant:
    """A fresh `Variant` with seeded parameters."""
    model = seeded(lambda: Variant(d, layers, preconditioner=preconditioner, registers=registers, **arguments), seed)
    assert isinstance(model, Variant)
    return model


def _newest(gamma: Tensor, registers: int) -> Tensor:
    """gamma with the weights of all but the newest `registers` registers set to 0."""
    layer = torch.arange(gamma.shape[1], device=gamma.device)
    kept = (layer[:, None] - layer[None, :]) < registers
    return torch.where(kept[:, :, None, None, None], gamma, 0.0)
