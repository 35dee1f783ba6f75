"""What a checked call is made of: the tensors of each operation by name, and the precision its sums are kept in."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Network(NamedTuple):
    """The arguments of a stack, gates folded into q or gamma; `lengths` (B,) are ragged contexts, else None."""

    z: Tensor
    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    lengths: Tensor | None
    context: int
    algorithm: str


class Layer(NamedTuple):
    """The arguments of one layer; `registers` are those of the layers before it."""

    z: Tensor
    q: Tensor
    p: Tensor | None
    registers: Sequence[Tensor]
    gamma: Tensor | None
    beta: Tensor | None
    lengths: Tensor | None
    context: int


class Quadratics(NamedTuple):
    """The arguments of a learned first-order method on w^T h w / 2 - b^T w."""

    h: Tensor
    b: Tensor
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    w0: Tensor | None


class Attention(NamedTuple):
    """Tokens q, k (B, ., H, E) and v (B, ., H, F); weights rows and keys (B, .), None for ones.

    Where both kinds of weights are given, a token of weight 0 is left out by selection, so that what it holds is never
    read; weights of one kind alone are not 0. The form says which keys t sees:
    "full" (all), "causal" (i <= t) or "anticausal" (i >= t); with bounds (S + 1,), only keys of its own sequence of a
    packed batch.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    keys: Tensor | None
    bounds: Tensor | None
    form: str


class Update(NamedTuple):
    """z and registers (A, M, C), gamma (J, M): register j is weighed with gamma[j, m]."""

    z: Tensor
    registers: list[Tensor]
    gamma: Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over a tensor's entries are kept in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def kept_heads(heads: int, *coefficients: Tensor | None) -> int:
    """Registers a layer keeps: one per head where a coefficient has a head axis, else one for the sum over heads."""
    per_head = any(x is not None and x.ndim >= 3 and x.shape[-3] > 1 for x in coefficients)
    return heads if per_head else 1
