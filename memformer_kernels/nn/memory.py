"""Memory across depth for any stack of layers: each layer's output is a register, and later layers weight them all."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from memformer_kernels.calls.checks import BACKENDS, Backend, check_choice, check_dtype, check_room, check_size, reject
from memformer_kernels.functional import register_update
from memformer_kernels.nn.parameters import empty_parameters
from memformer_kernels.torch_ops.sharding import fill

MEMORIES = ("none", "cgd", "lfom", "lfom_residual")
"""How a layer uses the registers R_j of the layers before it, att being its own output.

none: z + att. cgd: R_l = att + beta * R_{l-1}, z + alpha * R_l (Dutta & Sra, arXiv 2410.07263, eqs. 17-18). lfom: z +
sum_{j<=l} gamma_j * R_j with R_l = att (eqs. 19-20). lfom_residual: the same with gamma_l = 1.
"""

MemoryGranularity = Literal["scalar", "feature"]

MEMORY_GRANULARITIES: tuple[MemoryGranularity, ...] = get_args(MemoryGranularity)

MOST_LAYERS = 2**16
"""The most layers of a `RegisterMemory`, each a module in Python's memory: a number beyond is a slip of the hand."""


def counted(registers: Sequence[Tensor], expected: int) -> Sequence[Tensor]:
    """The registers of the layers before, as many as a layer was made for."""
    if len(registers) != expected:
        raise ValueError(f"registers: expected {expected} of them, got {len(registers)}")
    return registers


def start_memory(gamma: Tensor | None, beta: Tensor | None, own: bool = True) -> None:
    """The start: as if there were no memory. own: whether gamma's last entry weights the layer's own register."""
    if gamma is not None:
        start = torch.zeros(gamma.shape, dtype=gamma.dtype, device=gamma.device)
        if own:
            start[-1] = 1.0
        fill(gamma, start)
    if beta is not None:
        with torch.no_grad():
            beta.zero_()


def remember(
    z: Tensor,
    att: Tensor,
    registers: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    memory: str,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """(z_next, register) of `LayerMemory` by its rule."""
    if beta is not None:
        att = torch.addcmul(att, beta[0].to(att.dtype), registers[-1].to(att.dtype))
    if gamma is None:
        return z + att, att
    weighted = {"cgd": [att], "lfom": [*registers, att], "lfom_residual": registers}[memory]
    base = z + att if memory == "lfom_residual" else z
    return register_update(base, [x.to(z.dtype) for x in weighted], gamma, backend=backend), att


# Leaves of torch.fx.symbolic_trace: what they ask of the registers is no graph of operations.
torch.fx.wrap("counted")
torch.fx.wrap("remember")


class LayerMemory(nn.Module):
    """The memory of one layer: (z, att, registers of the layers before) -> (z_next, register).

    Coefficients start as if there were no memory: 1 for the layer's own output, 0 for the past.

    Args:
        dim: the tokens' width D.
        registers: how many it is given, each of z's shape (..., D).
        memory: one of `MEMORIES`.
        granularity: coefficients, one "scalar" a register or one a "feature".
        backend: as in `register_update`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: an unknown name or a size below 1.
        TypeError: a size that is no int.
    """

    gamma: nn.Parameter | None
    beta: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        registers: int,
        *,
        memory: str = "lfom",
        granularity: MemoryGranularity = "feature",
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim, registers = check_size("dim", dim), check_size("registers", registers, least=0)
        self.dim, self.registers = dim, registers
        self.memory = check_choice("memory", memory, MEMORIES)
        self.granularity = check_choice("granularity", granularity, MEMORY_GRANULARITIES)
        self.backend = check_choice("backend", backend, BACKENDS)
        check_dtype("dtype", dtype)
        weighted = {"none": 0, "cgd": 1, "lfom": registers + 1, "lfom_residual": registers}[memory]
        kept = 1 if memory == "cgd" and registers else 0
        width = dim if granularity == "feature" else 1
        shapes = {name: (count, width) for name, count in {"gamma": weighted, "beta": kept}.items() if count}
        made = empty_parameters({"dim": dim, "registers": registers}, shapes, device=device, dtype=dtype)
        self.gamma, self.beta = made.get("gamma"), made.get("beta")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start: as if there were no memory."""
        start_memory(self.gamma, self.beta, own=self.memory != "lfom_residual")

    def forward(self, z: Tensor, att: Tensor, registers: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """(z_next, register), both of z's shape."""
        given = counted(registers, self.registers)
        made: tuple[Tensor, Tensor] = remember(z, att, given, self.gamma, self.beta, self.memory, self.backend)
        return made

    def extra_repr(self) -> str:
        return f"{self.dim}, registers={self.registers}, memory={self.memory!r}, granularity={self.granularity!r}"


class RegisterMemory(nn.Module):
    """Gives any stack of blocks a first-order memory across depth, without touching the blocks.

    A block may be anything that maps tokens (..., D) to tokens of the same shape and adds to what it is given, as a
    standard Transformer block does; what it adds is its register. A model with memory starts equal to the model
    without.

        memory = RegisterMemory(dim, len(blocks))
        z = memory.run(blocks, z)

    or, where blocks take other arguments, layer by layer:

        registers = []
        for block in blocks:
            z, register = memory(z, block(z, mask) - z, registers)
            registers.append(register)

    A backward keeps one register a layer, but for "none", which keeps nothing. Without gradients `run` keeps those that
    later layers read: all with "lfom" and "lfom_residual", with "cgd" the last one.

    Args:
        dim: the tokens' width D.
        layers: how many blocks there are.
        memory: one of `MEMORIES`.
        granularity: coefficients, one "scalar" a register or one a "feature".
        backend: as in `register_update`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: an unknown name or a size out of range.
        TypeError: a size that is no int.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        *,
        memory: str = "lfom",
        granularity: MemoryGranularity = "feature",
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim, layers = check_size("dim", dim), check_size("layers", layers)
        check_dtype("dtype", dtype)
        check_room({"dim": dim, "layers": layers}, (layers, dim), dtype)
        if layers > MOST_LAYERS:
            reject("layers", layers, f"at most {MOST_LAYERS} layers")
        self.layers = nn.ModuleList(
            LayerMemory(dim, index, memory=memory, granularity=granularity, backend=backend, device=device, dtype=dtype)
            for index in range(layers)
        )

    def reset_parameters(self) -> None:
        """The start: as if there were no memory."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, z: Tensor, att: Tensor, registers: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """(z_next, register) of the layer that `registers`, those of all layers before it, lead to."""
        if len(registers) >= len(self.layers):
            raise ValueError(f"registers: expected fewer than the {len(self.layers)} layers, got {len(registers)}")
        made: tuple[Tensor, Tensor] = self.layers[len(registers)](z, att, registers)
        return made

    def extra_repr(self) -> str:
        first = self.layers[0]
        return f"{first.dim}, layers={len(self.layers)}, memory={first.memory!r}, granularity={first.granularity!r}"

    def run(self, blocks: Iterable[nn.Module], z: Tensor, **arguments: Any) -> Tensor:
        """Tokens after all blocks, each called with (tokens, **arguments) and expected to add to its tokens."""
        reads_all = self.layers[0].memory in ("lfom", "lfom_residual")
        registers: list[Tensor] = []
        for block in blocks:
            z, register = self(z, block(z, **arguments) - z, registers)
            # Where no layer reads further back than the last register, it stands for those before it too.
            registers = [*registers, register] if reads_all else [register] * (len(registers) + 1)
        return z
