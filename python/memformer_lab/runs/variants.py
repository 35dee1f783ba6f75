"""Memformers that no rule names: a preconditioner that is a number, few registers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from memformer_kernels.nn import Memformer, StackArguments

Preconditioner = Literal["free", "scalar"]


class Variant(Memformer):
    """A `Memformer` with a constrained preconditioner or memory.

    Args:
        d: features.
        layers: layers.
        preconditioner: "free"; "scalar": A_l is a multiple of the identity. A_l = -I/2 then stays as it is, since the
            weights of the registers, of which the linear rule gets one a layer, scale it.
        registers: how many of the last registers an lfom layer weights, None for all. 1 keeps no memory.
        **arguments: of `Memformer`.

    Raises:
        ValueError: for the residual rule with a scalar preconditioner, which would be lfom.
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
        super().__init__(d, layers, **{"device": "cpu", "dtype": torch.float32, **arguments})
        self.registers = registers
        if preconditioner == "scalar":
            if self.rule == "lfom_residual":
                raise ValueError("rule must not be 'lfom_residual' where the preconditioner is scalar: that is 'lfom'")
            identity = torch.eye(d, device=self.q.device, dtype=self.q.dtype)
            start = (-0.5 / self.heads * identity).expand_as(self.q).clone()
            self.q = nn.Parameter(start, requires_grad=False)
            if self.gamma is None:
                self.gamma = nn.Parameter(self.q.new_ones(layers, self.heads, 1, 1))

    def stack_arguments(self) -> StackArguments:
        """As `Memformer.stack_arguments`, with the constraints put in."""
        arguments = super().stack_arguments()
        if self.registers is not None and arguments["gamma"] is not None:
            arguments["gamma"] = _newest(arguments["gamma"], self.registers)
        return arguments

    def trainable_entries(self) -> dict[str, Tensor]:
        """As `Memformer.trainable_entries`, without the weights that are held at 0."""
        entries = super().trainable_entries()
        if self.registers is not None and "gamma" in entries:
            entries["gamma"] &= _newest(torch.ones_like(entries["gamma"]), self.registers) != 0
        return entries


def _newest(gamma: Tensor, registers: int) -> Tensor:
    """gamma with the weights of all but the newest `registers` registers set to 0."""
    layer = torch.arange(gamma.shape[1], device=gamma.device, dtype=torch.int64)
    kept = (layer[:, None] - layer[None, :]) < registers
    return torch.where(kept[:, :, None, None, None], gamma, 0.0)
