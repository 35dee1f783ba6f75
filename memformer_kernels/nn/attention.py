"""Linear attention with factored heads and memory across depth, as one layer of a model of any width."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memformer_kernels.calls.attention import check_mask
from memformer_kernels.calls.checks import (
    BACKENDS,
    Backend,
    check_choice,
    check_dtype,
    check_flag,
    check_room,
    check_size,
    reject,
)
from memformer_kernels.functional import AttentionState, attention_state, attention_step, linear_attention
from memformer_kernels.nn.memory import LayerMemory, MemoryGranularity
from memformer_kernels.torch_ops.sharding import local_part

FeatureMap = Literal["identity", "elu", "relu"]

FEATURE_MAPS: dict[FeatureMap, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "elu": lambda x: F.elu(x) + 1,
    "relu": F.relu,
}
"""What queries and keys pass through. identity: the Memformer's own, whose layers are optimiser steps; elu and relu:
positive scores (Katharopoulos et al., arXiv 2006.16236)."""


def without_padding(z: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (B, N, D) with zeros where there is none."""
    return z if mask is None else torch.where(check_mask(mask, z)[..., None], z, 0.0)


def of_width(z: Tensor, dim: int, axes: int) -> Tensor:
    """Tokens of the layer's width, with so many axes."""
    if isinstance(z, Tensor) and (z.dim() != axes or z.shape[-1] != dim):
        reject("z", z, f"tokens ({'B, N' if axes == 3 else 'B'}, dim = {dim})")
    return z


def split_heads(projected: Tensor, head_dim: int) -> Tensor:
    """(..., H, E) of (..., H E), whose width says how many heads are here: under tensor parallelism a rank's share."""
    if projected.shape[-1] % head_dim:
        raise ValueError(
            f"num_heads: expected whole heads of {head_dim} on every rank, got projections of {projected.shape[-1]}"
        )
    made: Tensor = projected.unflatten(-1, (projected.shape[-1] // head_dim, head_dim))  # type: ignore[no-untyped-call]
    return made


# Leaves of torch.fx.symbolic_trace: their checks ask for what is no graph of operations.
torch.fx.wrap("linear_attention")
torch.fx.wrap("split_heads")
torch.fx.wrap("without_padding")
torch.fx.wrap("of_width")


class MemformerAttention(nn.Module):
    """One layer: z (B, N, D) and the registers of the layers before -> (z_next, register), all of z's shape.

        att = concat_h(out_h) W_o,   out_h = linear attention on z W_q, z W_k, z W_v (`linear_attention`)
        register = att + beta * registers[-1];   z_next = z + sum_j gamma_j * R_j     (`LayerMemory`)

    Layers chain by passing registers on:

        registers = []
        for layer in layers:  # the l-th was made with registers=l
            z, register = layer(z, registers)
            registers.append(register)

    There is no dropout: train() and eval() are alike. How many heads there are is read off the projections' width, so
    that W_q, W_k and W_v may be split by columns over ranks and W_o by rows (tensor parallelism).

    Args:
        dim: the tokens' width D.
        num_heads: H.
        head_dim: E; None: dim / num_heads. W_q, W_k and W_v are (D, H E), W_o is (H E, D).
        causal: token t sees the tokens up to itself.
        memory: one of `MEMORIES`, see `LayerMemory`.
        registers: how many registers of earlier layers it is given.
        granularity: see `LayerMemory`.
        feature_map: one of `FEATURE_MAPS`, for queries and keys.
        norm: RMS normalisation of each head's output, for use at width, since its size follows the third power of z's.
        prenorm: RMS normalisation of what the projections read, as usual in a residual stack; z itself is passed on as
            it is.
        bias: of the four projections.
        backend: as in `linear_attention`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: sizes that do not fit, or an unknown name.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        causal: bool = False,
        memory: str = "none",
        *,
        registers: int = 0,
        granularity: MemoryGranularity = "feature",
        feature_map: FeatureMap = "identity",
        norm: bool = False,
        prenorm: bool = False,
        bias: bool = False,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim, num_heads = check_size("dim", dim), check_size("num_heads", num_heads)
        self.dim, self.num_heads = dim, num_heads
        if head_dim is None and dim % num_heads:
            reject("num_heads", num_heads, f"a divisor of dim = {dim}, or head_dim given with it")
        self.head_dim = check_size("head_dim", dim // num_heads if head_dim is None else head_dim)
        self.causal = check_flag("causal", causal)
        self.feature_map = check_choice("feature_map", feature_map, tuple(FEATURE_MAPS))
        self.backend = check_choice("backend", backend, BACKENDS)
        for name, flag in {"norm": norm, "prenorm": prenorm, "bias": bias}.items():
            check_flag(name, flag)
        check_dtype("dtype", dtype)
        width = self.num_heads * self.head_dim
        check_room({"dim": dim, "num_heads": num_heads, "head_dim": self.head_dim}, (dim, width), dtype)

        def projection(inner: int, outer: int) -> nn.Linear:
            return nn.Linear(inner, outer, bias=bias, device=device, dtype=dtype)

        def rms(size: int) -> nn.RMSNorm:
            return nn.RMSNorm(size, eps=1e-6, device=device, dtype=dtype)

        self.prenorm = rms(dim) if prenorm else None
        self.q_proj, self.k_proj, self.v_proj = (projection(dim, width) for _ in range(3))
        self.norm = rms(self.head_dim) if norm else None
        self.o_proj = projection(width, dim)
        self.memory = LayerMemory(
            dim, registers, memory=memory, granularity=granularity, backend=backend, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Draws the projections again from torch's default generator and starts the memory as if there were none."""
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        z: Tensor,
        registers: Sequence[Tensor] = (),
        *,
        context: int | Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(z_next, register). context, mask, cu_seqlens: see `linear_attention`; a packed batch is (1, N, D).

        Padding, where mask is false, is read by nobody and may hold anything; it gets z plus what the output's bias and
        its own registers give.
        """
        q, k, v = self._projected(without_padding(of_width(z, self.dim, 3), mask))
        out = linear_attention(
            q, k, v, causal=self.causal, context=context, mask=mask, cu_seqlens=cu_seqlens, backend=self.backend
        )
        return self._remembered(z, out, registers)

    def prefill(
        self, z: Tensor, registers: Sequence[Tensor] = (), *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, AttentionState]:
        """(z_next, register, state) of prompts z (B, N, D), from which `step` goes on. Causal layers only.

        Prompts of unequal lengths are padded on either side, with a mask (B, N) that is true for tokens that exist.
        """
        self._require_causal()
        q, k, v = self._projected(without_padding(of_width(z, self.dim, 3), mask))
        out = linear_attention(q, k, v, causal=True, mask=mask, backend=self.backend)
        return *self._remembered(z, out, registers), attention_state(k, v, mask)

    def step(
        self, z: Tensor, registers: Sequence[Tensor], state: AttentionState
    ) -> tuple[Tensor, Tensor, AttentionState]:
        """(z_next, register, state) of one more token z (B, D), with that token's registers. Causal layers only.

        Equal to the last row of `forward` on all tokens so far, at a cost that does not grow with them.
        """
        self._require_causal()
        q, k, v = self._projected(of_width(z, self.dim, 2))
        out, after = attention_step(q, k, v, state)
        return *self._remembered(z, out, registers), after

    def initial_state(self, batch: int) -> AttentionState:
        """The state before the first of B samples' tokens. Raises ValueError for a negative B, TypeError for no int."""
        weight = local_part(self.k_proj.weight)
        shape = (check_size("batch", batch, least=0), weight.shape[0] // self.head_dim, self.head_dim)
        check_room({"batch": batch}, (*shape, self.head_dim), weight.dtype)
        empty = weight.new_zeros(shape[0], 0, *shape[1:])
        return attention_state(empty, empty)

    def _projected(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., H, E)."""
        read = z if self.prenorm is None else self.prenorm(z)
        q, k, v = (split_heads(x(read), self.head_dim) for x in (self.q_proj, self.k_proj, self.v_proj))
        mapped = FEATURE_MAPS[self.feature_map]
        # Scores of order one whatever the head's width; a scale of q is one of W_q.
        return mapped(q), mapped(k) * (1 / math.sqrt(self.head_dim)), v

    def _remembered(self, z: Tensor, out: Tensor, registers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        heads = out if self.norm is None else self.norm(out)
        made: tuple[Tensor, Tensor] = self.memory(z, self.o_proj(heads.flatten(-2)), registers)
        return made

    def _require_causal(self) -> None:
        if not self.causal:
            raise ValueError("causal: expected a layer made with causal=True to take tokens one by one, got False")

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, causal={self.causal}, "
            f"feature_map={self.feature_map!r}"
        )
