"""A whole Memformer by the name of its rule, and one layer of it for other models."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from memformer_kernels.calls.checks import (
    ALGORITHMS,
    BACKENDS,
    check_choice,
    check_dtype,
    check_flag,
    check_size,
    reject,
)
from memformer_kernels.functional import memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.nn.memory import counted, empty_parameters, start_memory
from memformer_kernels.torch_ops.sharding import fill, on_every_process

RULES = ("linear", "cgd", "recursive", "lfom", "lfom_shared", "lfom_residual", "gated_heads")
"""The published models, by what memory does.

linear: none (preconditioned gradient descent; GD++ with block structure). cgd: R_l = att + beta_l R_{l-1}, layer l adds
alpha_l R_l (Dutta & Sra, arXiv 2410.07263, eqs. 17-18). recursive: the same with a Hadamard beta. lfom: layer l adds
sum_{j<=l} gamma_{l,j} * R_j (eqs. 19-20); lfom_shared: one gamma_j for every layer; lfom_residual: 1 for the new
register, gamma_{l,j} for the past ones. gated_heads: a mixture of experts, lfom_residual for each head, with one gate a
head.
"""

GRANULARITIES = ("scalar", "feature", "token", "full")
STRUCTURES = ("response-only", "block", "dense")

_DEFAULT_GRANULARITY = {"cgd": "scalar", "recursive": "full"}
_PRECONDITIONER_START = -0.5
_NOISE = 0.02


class StackArguments(TypedDict):
    """A network's parameters as the functions of `memformer_kernels.functional` take them."""

    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    gate: Tensor | None


def _coefficient_shape(granularity: str, width: int, tokens: int | None) -> tuple[int, int]:
    """(token axis, feature axis) of a gamma or beta."""
    if granularity in ("token", "full"):
        if tokens is None:
            raise ValueError(f"tokens: expected the number of tokens N, since granularity is {granularity!r}, got None")
        return tokens, width if granularity == "full" else 1
    return 1, width if granularity == "feature" else 1


def _projection_shapes(lead: tuple[int, ...], d: int, structure: str) -> dict[str, tuple[int, ...]]:
    size = d + 1 if structure == "dense" else d
    return {name: (*lead, size, size) for name in ("q", "p") if name == "q" or structure != "response-only"}


def _start_projections(q: nn.Parameter, p: nn.Parameter | None, structure: str) -> None:
    """q starts near a multiple of the identity: a plain gradient step; p near the response-only corner."""
    factory = {"dtype": q.dtype, "device": q.device}
    start = _PRECONDITIONER_START * torch.eye(q.shape[-1], **factory)  # type: ignore[call-overload]
    if structure == "dense":
        start[-1, -1] = 0.0
    fill(q, start / q.shape[-3] + _NOISE * torch.randn(q.shape, **factory))  # type: ignore[call-overload]
    if p is not None:
        noise = _NOISE * torch.randn(p.shape, **factory)  # type: ignore[call-overload]
        if structure == "dense":
            noise[..., -1, -1] += 1.0
        fill(p, noise)


def residual_gamma(gamma: Tensor) -> Tensor:
    """gamma (L, L, ...) of a residual rule with the fixed 1 of every layer's new register."""
    own = torch.eye(gamma.shape[0], dtype=torch.bool, device=gamma.device)[:, :, None, None, None]
    return torch.where(on_every_process(own, gamma), 1.0, gamma)


def tokens_of(z: Tensor, d: int) -> Tensor:
    """Tokens for a module of d features: the functions would take others for those of another structure."""
    if isinstance(z, Tensor) and not z.is_nested and z.dim() == 3 and z.shape[-1] != d + 1:
        reject("z", z, f"D = {d + 1} numbers a token, {d} features and the response")
    return z


# Leaves of torch.fx.symbolic_trace: their checks ask for what is no graph of operations.
torch.fx.wrap("counted")
torch.fx.wrap("memformer_layer")
torch.fx.wrap("memformer_loss")
torch.fx.wrap("memformer_predict")
torch.fx.wrap("memformer_stack")
torch.fx.wrap("residual_gamma")
torch.fx.wrap("tokens_of")


class Memformer(nn.Module):
    """L layers of memory-augmented linear attention on tasks z (B, N, d + 1).

    Parameters start near gradient descent without memory: q near -I/2 (divided among heads), gamma the identity
    (lfom_shared: 1/L), beta 0; the noise is drawn from torch's default generator.

    Args:
        d: features of a token.
        layers: L.
        heads: H.
        rule: one of `RULES`: what the memory does.
        granularity: what gamma or beta varies over: "scalar", "feature" (D), "token" (N) or "full" (N, D); None takes
            the rule's own (cgd: scalar, recursive: full, else feature).
        structure: "response-only" (features stay as they are), "block" (GD++: P and Q have blocks, features are
            transformed too) or "dense" (any P and Q).
        tokens: N, needed by token and full granularity.
        backend: as in `memformer_predict`.
        algorithm: as in `memformer_predict`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: an unknown name, a size below 1 or missing `tokens`.
        TypeError: a size that is no int.

    Example:
        >>> model = Memformer(d=5, layers=4)
        >>> model.loss(torch.randn(8, 21, 6), torch.randn(8, 1)).backward()
    """

    q: nn.Parameter
    p: nn.Parameter | None
    gamma: nn.Parameter | None
    beta: nn.Parameter | None
    gate: nn.Parameter | None

    def __init__(
        self,
        d: int,
        layers: int,
        *,
        heads: int = 1,
        rule: str = "lfom",
        granularity: str | None = None,
        structure: str = "response-only",
        tokens: int | None = None,
        backend: str = "auto",
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d, layers, heads = check_size("d", d), check_size("layers", layers), check_size("heads", heads)
        self.d, self.layers, self.heads = d, layers, heads
        self.tokens = None if tokens is None else check_size("tokens", tokens)
        self.rule = check_choice("rule", rule, RULES)
        self.structure = check_choice("structure", structure, STRUCTURES)
        default = _DEFAULT_GRANULARITY.get(rule, "feature")
        self.granularity = check_choice("granularity", default if granularity is None else granularity, GRANULARITIES)
        self.backend = check_choice("backend", backend, BACKENDS)
        self.algorithm = check_choice("algorithm", algorithm, ALGORITHMS)
        check_dtype("dtype", dtype)
        shapes = _projection_shapes((layers, heads), d, structure) | self._memory_shapes()
        sizes = {"d": d, "layers": layers, "heads": heads, "tokens": self.tokens or 0}
        made = empty_parameters(sizes, shapes, device=device, dtype=dtype)
        self.q, self.p = made["q"], made.get("p")
        self.gamma, self.beta, self.gate = made.get("gamma"), made.get("beta"), made.get("gate")
        self.reset_parameters()

    def _memory_shapes(self) -> dict[str, tuple[int, ...]]:
        layers, heads = self.layers, self.heads
        if self.rule == "linear":
            return {}
        grid = _coefficient_shape(self.granularity, self.d + 1, self.tokens)
        if self.rule in ("cgd", "recursive"):
            return {"gamma": (layers, 1, 1, 1), "beta": (layers, 1, *grid)}
        if self.rule == "lfom_shared":
            return {"gamma": (1, layers, 1, *grid)}
        if self.rule == "gated_heads":
            return {"gamma": (layers, layers, heads, *grid), "gate": (heads,)}
        return {"gamma": (layers, layers, 1, *grid)}

    def reset_parameters(self) -> None:
        """Draws q and p again from torch's default generator and starts the memory as if there were none."""
        _start_projections(self.q, self.p, self.structure)
        with torch.no_grad():
            if self.beta is not None:
                self.beta.zero_()
            if self.gate is not None:
                self.gate.fill_(1.0)
            if self.gamma is not None:
                self.gamma.fill_({"cgd": 1.0, "recursive": 1.0, "lfom_shared": 1.0 / self.layers}.get(self.rule, 0.0))
            if self.gamma is not None and self.rule == "lfom":
                own = torch.eye(self.layers, dtype=self.gamma.dtype, device=self.gamma.device)
                fill(self.gamma, own[:, :, None, None, None].expand(self.gamma.shape).contiguous())

    def stack_arguments(self) -> StackArguments:
        """The parameters as the functions take them; residual rules get their fixed 1 for the new register here."""
        gamma: Tensor | None = self.gamma
        if gamma is not None and self.rule in ("lfom_residual", "gated_heads"):
            gamma = residual_gamma(gamma)
        return {"q": self.q, "p": self.p, "gamma": gamma, "beta": self.beta, "gate": self.gate}

    def forward(self, z: Tensor, *, context: int | Tensor | None = None) -> Tensor:
        """Z_L (B, N, d + 1)."""
        return memformer_stack(
            tokens_of(z, self.d),
            **self.stack_arguments(),
            context=context,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def predict(
        self, z: Tensor, *, context: int | Tensor | None = None, queries: int | None = None, layers: bool = False
    ) -> Tensor:
        """Predictions of the last `queries` tokens, (B, queries), or after each layer, (L, B, queries)."""
        return memformer_predict(
            tokens_of(z, self.d),
            **self.stack_arguments(),
            context=context,
            queries=queries,
            layers=layers,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def loss(
        self, z: Tensor, target: Tensor, *, context: int | Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """Mean squared error of the predictions against `target` (B, queries)."""
        return memformer_loss(
            tokens_of(z, self.d),
            target,
            **self.stack_arguments(),
            context=context,
            queries=queries,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        parts = (
            f"d={self.d}, layers={self.layers}, heads={self.heads}, rule={self.rule!r}, structure={self.structure!r}"
        )
        return parts if self.rule == "linear" else f"{parts}, granularity={self.granularity!r}"


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
        granularity: str = "feature",
        structure: str = "block",
        tokens: int | None = None,
        backend: str = "auto",
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
        grid = _coefficient_shape(granularity, d + 1, tokens)
        self.backend = check_choice("backend", backend, BACKENDS)
        check_flag("momentum", momentum)
        check_dtype("dtype", dtype)
        self.structure = structure
        shapes = _projection_shapes((heads,), d, structure) | {"gamma": (registers + 1, 1, *grid)}
        if momentum:
            shapes["beta"] = (1, *grid)
        sizes = {"d": d, "heads": heads, "registers": registers, "tokens": tokens or 0}
        made = empty_parameters(sizes, shapes, device=device, dtype=dtype)
        self.q, self.p = made["q"], made.get("p")
        self.gamma, self.beta = made["gamma"], made.get("beta")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws q and p again from torch's default generator and starts the memory as if there were none."""
        _start_projections(self.q, self.p, self.structure)
        start_memory(self.gamma, self.beta)

    def forward(
        self, z: Tensor, registers: Sequence[Tensor] = (), *, context: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z_next (B, N, d + 1), register (B, 1, N, d + 1)) from the tokens and the registers of the layers before."""
        given, z = counted(registers, self.registers), tokens_of(z, self.d)
        return memformer_layer(z, self.q, self.p, given, self.gamma, self.beta, context=context, backend=self.backend)

    def extra_repr(self) -> str:
        memory = f"registers={self.registers}, momentum={self.beta is not None}, granularity={self.granularity!r}"
        return f"d={self.d}, heads={self.heads}, structure={self.structure!r}, {memory}"
