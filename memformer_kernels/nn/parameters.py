"""Parameters of a network's modules: their shapes by the names of structure and granularity, and where they start."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from memformer_kernels.calls.checks import check_room, reject
from memformer_kernels.torch_ops.sharding import fill

Granularity = Literal["scalar", "feature", "token", "full"]
Structure = Literal["response-only", "block", "dense"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

_PRECONDITIONER_START = -0.5
_NOISE = 0.02


def empty_parameters(
    sizes: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> dict[str, nn.Parameter]:
    """Parameters to be filled, by name. sizes: the arguments that make the shapes; an error names the largest."""
    for shape in shapes.values():
        check_room(sizes, shape, dtype)
    return {name: nn.Parameter(torch.empty(*shape, device=device, dtype=dtype)) for name, shape in shapes.items()}


def coefficient_shape(granularity: str, width: int, tokens: int | None) -> tuple[int, int]:
    """(token axis, feature axis) of a gamma or beta."""
    if granularity in ("token", "full"):
        if tokens is None:
            raise ValueError(f"tokens: expected the number of tokens N, since granularity is {granularity!r}, got None")
        return tokens, width if granularity == "full" else 1
    return 1, width if granularity == "feature" else 1


def projection_shapes(lead: tuple[int, ...], d: int, structure: str, responses: int = 1) -> dict[str, tuple[int, ...]]:
    size = d + responses if structure == "dense" else d
    return {name: (*lead, size, size) for name in ("q", "p") if name == "q" or structure != "response-only"}


def start_projections(q: nn.Parameter, p: nn.Parameter | None, structure: str, responses: int = 1) -> None:
    """q starts near a multiple of the identity: a plain gradient step; p near the response-only corner."""
    factory = {"dtype": q.dtype, "device": q.device}
    start = _PRECONDITIONER_START * torch.eye(q.shape[-1], **factory)  # type: ignore[call-overload]
    if structure == "dense":
        start.diagonal()[-responses:] = 0.0
    fill(q, start / q.shape[-3] + _NOISE * torch.randn(q.shape, **factory))  # type: ignore[call-overload]
    if p is not None:
        noise = _NOISE * torch.randn(p.shape, **factory)  # type: ignore[call-overload]
        if structure == "dense":
            noise.diagonal(dim1=-2, dim2=-1)[..., -responses:] += 1.0
        fill(p, noise)


def tokens_of(z: Tensor, d: int, responses: int = 1) -> Tensor:
    """Tokens for a module of d features: the functions would take others for those of another structure."""
    if isinstance(z, Tensor) and not z.is_nested and z.dim() == 3 and z.shape[-1] != d + responses:
        slots = "the response" if responses == 1 else f"{responses} responses"
        reject("z", z, f"D = {d + responses} numbers a token, {d} features and {slots}")
    return z


# A leaf of torch.fx.symbolic_trace: its check asks for what is no graph of operations.
torch.fx.wrap("tokens_of")
