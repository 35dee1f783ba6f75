"""Validates the arguments of `linear_attention` and `register_update`, and brings each to the one form kernels know.

Attention's options become a weight for every token as a reader and as a key (0: it is not read). A register update
becomes tokens (A, M, C) with coefficients (J, M).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import Attention, Update, compute_dtype
from memformer_kernels.calls.checks import (
    HALF,
    autocasts,
    broadcasts,
    check_flag,
    check_floating,
    check_integer,
    check_integers,
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
    keys, values = _like("k", keys, queries), _like("v", values, queries)
    ordered = check_flag("causal", causal)
    padding = None if mask is None else _mask(mask, queries)
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


def check_update(z: object, registers: object, gamma: object) -> Update:
    """The arguments of `register_update`."""
    tokens = check_floating("z", z)
    if isinstance(registers, Tensor | str) or not isinstance(registers, Sequence):
        reject_kind("registers", registers, "a sequence of tensors of z's shape")
    if not registers:
        reject("registers", registers, "at least one register")
    checked = []
    for index, register in enumerate(registers):
        name = f"registers[{index}]"
        made = check_floating(name, register)
        if made.shape != tokens.shape:
            reject(name, register, f"z's shape {tuple(tokens.shape)}")
        checked.append(_like(name, made, tokens))
    weights = check_floating("gamma", gamma)
    shape = tuple(weights.shape)
    trailing, missing = shape[1:], tokens.ndim + 1 - len(shape)
    fits = len(shape) >= 1 and shape[0] == len(checked)
    if not fits or not broadcasts(trailing, tokens.shape):
        reject("gamma", gamma, f"shape (J, ...) with J = {len(checked)} registers, ... broadcastable to z's shape")
    fits = weights.dtype == tokens.dtype or (weights.dtype == torch.float32 and tokens.dtype in HALF)
    if not fits and (weights.dtype == torch.float64 or not autocasts(tokens)):
        reject_kind("gamma", gamma, f"float32 or z's dtype {tokens.dtype}")
    if weights.device != tokens.device:
        reject("gamma", gamma, f"a tensor on {tokens.device}, where z is")
    return _folded(tokens, checked, weights, (1,) * missing + trailing)


def check_history(k: object, v: object) -> tuple[Tensor, Tensor]:
    """The arguments of `attention_state`, in one dtype; there may be no token yet."""
    keys, values = check_floating("k", k), check_floating("v", v)
    if keys.ndim != 4 or keys.shape[2] < 1 or keys.shape[3] < 1:
        reject("k", k, "keys (B, N, H, E) with H, E >= 1")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] < 1:
        reject("v", v, f"values (B, N, H, F) = {(*keys.shape[:3], 'F')} with F >= 1")
    return keys, _like("v", values, keys)


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
    return queries, _like("k", keys, queries), _like("v", values, queries)


def check_bounds(bounds: Tensor, tokens: int) -> None:
    """The values of cu_seqlens, where reading them does not wait for a device."""
    if bounds.device.type != "cpu":
        return
    first, last = int(bounds[0]), int(bounds[-1])
    if first != 0 or last != tokens or bool((bounds.diff() < 0).any()):
        raise ValueError(f"cu_seqlens: expected bounds that rise from 0 to N = {tokens}, got {bounds.tolist()}")


def _folded(z: Tensor, registers: list[Tensor], gamma: Tensor, axes: tuple[int, ...]) -> Update:
    """Axes before the first and after the last along which gamma varies become A and C; those between become M."""
    varying = [axis for axis, size in enumerate(axes) if size != 1]
    first, last = (varying[0], varying[-1] + 1) if varying else (0, 0)
    before, middle, after = z.shape[:first], z.shape[first:last], z.shape[last:]
    shape = (math.prod(before), math.prod(middle), math.prod(after))
    weights = gamma.reshape(len(registers), *axes[first:last]).expand(len(registers), *middle)
    return Update(z.reshape(shape), [r.reshape(shape) for r in registers], weights.reshape(len(registers), shape[1]))


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


def _mask(mask: object, q: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not dense(mask):
        reject_kind("mask", mask, "a bool tensor (B, N), true for tokens that exist")
    if mask.shape != q.shape[:2] or mask.device != q.device:
        reject("mask", mask, f"shape (B, N) = {tuple(q.shape[:2])} on {q.device}")
    return mask


def _readable(tensor: Tensor) -> bool:
    """Whether values can be read here: on the host, and outside compilers and transforms."""
    if torch.compiler.is_compiling() or transforming():
        return False
    return tensor.device.type == "cpu" and has_data(tensor)


def _like(name: str, tensor: Tensor, first: Tensor) -> Tensor:
    """A tensor that must have the first one's device and dtype; autocast brings the dtype."""
    if tensor.device != first.device:
        reject(name, tensor, f"a tensor on {first.device}, where the first argument is")
    if tensor.dtype == first.dtype:
        return tensor
    if torch.float64 in (tensor.dtype, first.dtype) or not autocasts(first):
        reject_kind(name, tensor, f"the first argument's dtype {first.dtype}")
    return tensor.to(first.dtype)
