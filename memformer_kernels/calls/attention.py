"""Validates the arguments of `linear_attention`, and brings its options to the one form kernels know.

They become a weight for each token as a reader and as a key (0: it is not read).
"""

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import Attention, compute_dtype
from memformer_kernels.calls.checks import (
    check_flag,
    check_floating,
    check_integer,
    check_integers,
    check_like,
    dense,
    reject,
    reject_kind,
)
from memformer_kernels.torch_internals import has_data, transforming

_BOUNDS = frozenset((torch.int32, torch.int64))


def check_attention(
    q: object, k: object, v: object, causal: object, context: object, mask: object, cu_seqlens: object
) -> Attention:
    """The arguments of `linear_attention`."""
    queries, keys, values = check_floating("q", q), check_floating("k", k), check_floating("v", v)
    if queries.ndim != 4 or queries.shape[1] < 1 or queries.shape[2] < 1 or queries.shape[3] < 1:
        reject("q", q, "queries (B, N, H, E) with N, H, E >= 1")
    if keys.shape != queries.shape:
        reject("k", k, f"q's shape {tuple(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != queries.shape[:3] or values.shape[3] < 1:
        reject("v", v, f"values (B, N, H, F) = {(*queries.shape[:3], 'F')} with F >= 1")
    keys, values = check_like("k", keys, queries), check_like("v", values, queries)
    ordered = check_flag("causal", causal)
    padding = None if mask is None else check_mask(mask, queries)
    if ordered and context is not None:
        reject("context", context, "None together with causal=True, where a token's context is what came before it")
    if cu_seqlens is not None:
        if context is not None or padding is not None:
            name = "context" if context is not None else "mask"
            reject(name, context if context is not None else mask, "None together with cu_seqlens, which says it all")
        bounds = _bounds(cu_seqlens, queries)
        rows = _packed_weights(bounds, queries, ordered)
        return Attention(queries, keys, values, rows, None, bounds, "causal" if ordered else "full")
    if ordered:
        rows, seen = _causal_weights(padding, queries)
        return Attention(queries, keys, values, rows, seen, None, "causal")
    return _with_context(queries, keys, values, context, padding)


def check_history(k: object, v: object, mask: object) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of `attention_state`, in one dtype; there may be no token yet."""
    keys, values = check_floating("k", k), check_floating("v", v)
    if keys.ndim != 4 or keys.shape[2] < 1 or keys.shape[3] < 1:
        reject("k", k, "keys (B, N, H, E) with H, E >= 1")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] < 1:
        reject("v", v, f"values (B, N, H, F) = {(*keys.shape[:3], 'F')} with F >= 1")
    return keys, check_like("v", values, keys), None if mask is None else check_mask(mask, keys)


def check_step(q: object, k: object, v: object, state: object) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `attention_step`: q, k and v in one dtype."""
    # By its fields, since a class that was loaded again is another.
    if not isinstance(state, tuple) or getattr(state, "_fields", ()) != ("sum", "tokens"):
        reject_kind("state", state, "an AttentionState")
    total, count = check_floating("state.sum", state[0]), state[1]
    if total.ndim != 4:
        reject("state.sum", total, "sums (B, H, E, F)")
    batch, heads, width, value_width = total.shape
    if not isinstance(count, Tensor) or count.dtype != torch.int64 or not dense(count):
        reject_kind("state.tokens", count, "an int64 tensor (B,)")
    shapes: dict[str, tuple[object, tuple[int, ...]]] = {
        "state.tokens": (count, (batch,)),
        "q": (q, (batch, heads, width)),
        "k": (k, (batch, heads, width)),
        "v": (v, (batch, heads, value_width)),
    }
    for name, (given, shape) in shapes.items():
        tensor = count if given is count else check_floating(name, given)
        if tensor.shape != shape:
            reject(name, given, f"shape {shape}, the state's")
        if tensor.device != total.device:
            reject(name, given, f"a tensor on {total.device}, where the state is")
    queries, keys, values = check_floating("q", q), check_floating("k", k), check_floating("v", v)
    dtype = compute_dtype(queries)
    if total.dtype != dtype:
        reject_kind("state.sum", total, f"{dtype}, in which tokens of {queries.dtype} are summed")
    return queries, check_like("k", keys, queries), check_like("v", values, queries)


def check_bounds(bounds: Tensor, tokens: int) -> None:
    """The values of cu_seqlens, where reading them does not wait for a device."""
    if bounds.device.type != "cpu":
        return
    first, last = int(bounds[0]), int(bounds[-1])
    if first != 0 or last != tokens or bool((bounds.diff() < 0).any()):
        raise ValueError(f"cu_seqlens: expected bounds that rise from 0 to N = {tokens}, got {bounds.tolist()}")


def _with_context(q: Tensor, k: Tensor, v: Tensor, context: object, mask: Tensor | None) -> Attention:
    batch, tokens = q.shape[:2]
    count = tokens
    if context is not None and not isinstance(context, Tensor):
        count = check_integer("context", context)
        if not 1 <= count <= tokens:
            reject("context", context, f"an int from 1 to N = {tokens}")
    if mask is None and not isinstance(context, Tensor):
        number = torch.full((1, 1), count, dtype=compute_dtype(q), device=q.device)
        rows = number.reciprocal().expand(batch, tokens)
        return Attention(q, k[:, :count], v[:, :count], rows, None, None, "full")
    seen = torch.ones(1, tokens, dtype=torch.bool, device=q.device) if mask is None else mask
    place = torch.arange(tokens, device=q.device, dtype=torch.int64)
    if isinstance(context, Tensor):
        check_integers("context", context)
        if context.shape != (batch,) or context.device != q.device:
            reject("context", context, f"one length per sample, shape ({batch},), on {q.device}")
        if _readable(context) and context.numel():
            low, high = (int(x) for x in torch.aminmax(context))
            if low < 1 or high > tokens:
                raise ValueError(f"context: expected lengths from 1 to N = {tokens}, got lengths from {low} to {high}")
        seen = seen & (place < context[:, None])
    elif context is not None:
        seen = seen & (place < count)
    seen = seen.expand(batch, tokens)
    rows = seen.sum(1, keepdim=True).clamp(min=1).to(compute_dtype(q)).reciprocal().expand(batch, tokens)
    rows = rows if mask is None else torch.where(mask, rows, 0.0)
    return Attention(q, k, v, rows, seen.to(rows.dtype), None, "full")


def _causal_weights(mask: Tensor | None, q: Tensor) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(q)
    if mask is None:
        counts = torch.arange(1, q.shape[1] + 1, device=q.device, dtype=torch.int64).to(dtype)
        return counts.reciprocal()[None].expand(q.shape[:2]), None
    counts = mask.cumsum(1).clamp(min=1).to(dtype)
    return torch.where(mask, counts.reciprocal(), 0.0), mask.to(dtype)


def _packed_weights(bounds: Tensor, q: Tensor, causal: bool) -> Tensor:
    place = torch.arange(q.shape[1], device=q.device, dtype=torch.int64)
    # On a GPU the bounds are not read: a token past the last counts to the last sequence.
    sequence = torch.searchsorted(bounds[1:].contiguous(), place, right=True).clamp(max=bounds.shape[0] - 2)
    start, end = bounds[sequence], bounds[sequence + 1]
    counts = place - start + 1 if causal else end - start
    return counts.clamp(min=1).to(compute_dtype(q)).reciprocal()[None].expand(q.shape[:2])


def _bounds(cu_seqlens: object, q: Tensor) -> Tensor:
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in _BOUNDS or not dense(cu_seqlens):
        reject_kind("cu_seqlens", cu_seqlens, "an int32 or int64 tensor (S + 1,)")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.device != q.device:
        reject("cu_seqlens", cu_seqlens, f"the bounds (S + 1,) of S >= 1 sequences, on {q.device}")
    if _readable(cu_seqlens):
        check_bounds(cu_seqlens, q.shape[1])
    return cu_seqlens.to(torch.int64)


def check_mask(mask: object, tokens: Tensor) -> Tensor:
    """A mask of tokens (B, N, ...)."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not dense(mask):
        reject_kind("mask", mask, "a bool tensor (B, N), true for tokens that exist")
    if mask.shape != tokens.shape[:2] or mask.device != tokens.device:
        reject("mask", mask, f"shape (B, N) = {tuple(tokens.shape[:2])} on {tokens.device}")
    return mask


def _readable(tensor: Tensor) -> bool:
    """Whether values can be read here: on the host, and outside compilers and transforms."""
    if torch.compiler.is_compiling() or transforming():
        return False
    return tensor.device.type == "cpu" and has_data(tensor)
