"""One layer of memory-augmented linear attention, for other models."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memformer_kernels.calls.checks import BACKENDS, Backend, check_choice, check_dtype, check_flag, check_size
from memformer_kernels.functional import memformer_layer
from memformer_kernels.nn.memory import counted, start_memory
from memformer_kernels.nn.parameters import (
    GRANULARITIES,
    STRUCTURES,
    Granularity,
    Structure,
    coefficient_shape,
    empty_parameters,
    projection_shapes,
    start_projections,
    tokens_of,
)

# Leaves of torch.fx.symbolic_trace: their checks ask for what is no graph of operations.
torch.fx.wrap("counted")
torch.fx.wrap("memformer_layer")
torch.fx.wrap("tokens_of")


class MemformerLayer(nn.Module):
    """One layer of memory-augmented linear attention on tokens z (B, N, d + 1), for use inside other models.

    Heads share gamma and beta: a register is (B, 1, N, d + 1). Parameters start as those of `Memformer`. Layers chain
    by passing registers on:

        registers = []
        for layer in layers:  # the l-th was made with registers=l
            z, register = layer(z, registers)
            registers.append(register)

    Args:
        d: features of a token.
        heads: H.
        registers: how many registers of earlier layers it is given and weights (0: plain linear attention).
        momentum: whether the new register keeps beta times the last one.
        granularity: as in `Memformer`.
        structure: as in `Memformer`.
        tokens: N, needed by token and full granularity.
        backend: as in `memformer_layer`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: an unknown name, a size below 1 or missing `tokens`.
        TypeError: a size that is no int.
    """

    q: nn.Parameter
    p: nn.Parameter | None
    gamma: nn.Parameter
    beta: nn.Parameter | None

    def __init__(
        self,
        d: int,
        *,
        heads: int = 1,
        registers: int = 0,
        momentum: bool = False,
        granularity: Granularity = "feature",
        structure: Structure = "block",
        tokens: int | None = None,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d, heads, registers = (
            check_size("d", d),
            check_size("heads", heads),
            check_size("registers", registers, least=0),
        )
        self.d, self.heads, self.registers = d, heads, registers
        check_choice("structure", structure, STRUCTURES)
        self.granularity = check_choice("granularity", granularity, GRANULARITIES)
        tokens = None if tokens is None else check_size("tokens", tokens)
        grid = coefficient_shape(granularity, d + 1, tokens)
        self.backend = check_choice("backend", backend, BACKENDS)
        check_flag("momentum", momentum)
        check_dtype("dtype", dtype)
        self.structure = structure
        shapes = projection_shapes((heads,), d, structure) | {"gamma": (registers + 1, 1, *grid)}
        if momentum:
            shapes["beta"] = (1, *grid)
        sizes = {"d": d, "heads": heads, "registers": registers, "tokens": tokens or 0}
        made = empty_parameters(sizes, shapes, device=device, dtype=dtype)
        self.q, self.p = made["q"], made.get("p")
        self.gamma, self.beta = made["gamma"], made.get("beta")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws q and p again from torch's default generator and starts the memory as if there were none."""
        start_projections(self.q, self.p, self.structure)
        start_memory(self.gamma, self.beta)

    def forward(
        self,
        z: Tensor,
        registers: Sequence[Tensor] = (),
        *,
        context: int | Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(z_next (B, N, d + 1), register (B, 1, N, d + 1)) from the tokens and the registers of the layers before."""
        given, z = counted(registers, self.registers), tokens_of(z, self.d)
        network = (z, self.q, self.p, given, self.gamma, self.beta)
        return memformer_layer(*network, context=context, weights=weights, backend=self.backend)

    def extra_repr(self) -> str:
        memory = f"registers={self.registers}, momentum={self.beta is not None}, granularity={self.granularity!r}"
        return f"d={self.d}, heads={self.heads}, structure={self.structure!r}, {memory}"
