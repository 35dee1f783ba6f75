"""Linear attention with factored heads: the sum over keys of `backends.pytorch.attention`, which is its own gradient.

Tokens of a sequence are divided into splits. The keys of each split are summed, the sums before each split are then
added up, and every split goes on from its own. Later tokens see earlier ones; "anticausal" walks a sequence backwards.
Packed sequences are splits of their own, one program each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch.attention import gradients
from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.attention_kernels import (
    Attend,
    AttendStrides,
    Constants,
    States,
    StatesStrides,
    attend_kernel,
    state_kernel,
)
from memformer_kernels.backends.triton.batches import planned
from memformer_kernels.backends.triton.launch import architecture, launch, strides_of, triton_type
from memformer_kernels.calls.arguments import Attention, compute_dtype
from memformer_kernels.calls.checks import HALF

ENOUGH_PROGRAMS = 1024
"""Programs that keep an H100 or H200 busy without dividing sequences: 8 for each of 132 multiprocessors."""


class Before(NamedTuple):
    """How sequences are divided, and what the tokens of a split see of other splits.

    sums: over the keys before each split (B, H, splits, E, F), over all keys (B, H, 1, E, F) where every token sees
    them all, or None for none.
    """

    splits: int
    split_tokens: int
    sums: Tensor | None


def attend(call: Attention, before: Before | None = None) -> Tensor:
    """`backends.pytorch.attention.attend` for heads up to 256 wide: (B, N, H, F) in v's dtype.

    before: `sums_before` of the same keys, where it is there already.
    """
    q, k, v, rows, keys, bounds, form = call
    batch, tokens, heads, _ = q.shape
    value_width = v.shape[3]
    out = v.new_empty((batch, tokens, heads, value_width))
    if out.numel() == 0:
        return out
    constants, options = _constants(q, value_width, form)
    blocks = triton.cdiv(value_width, constants.COLUMNS)
    if bounds is not None:
        before, bounds = Before(bounds.shape[0] - 1, tokens, None), bounds.to(torch.int64).contiguous()
    elif before is None:
        before = sums_before(k, v, keys, form, tokens)
    launch(
        attend_kernel,
        batch * heads * before.splits * blocks,
        t=Attend(q, k, v, rows, keys, bounds, before.sums, out),
        strides=AttendStrides(
            strides_of(q), strides_of(k), strides_of(v), _strides(rows), _strides(keys), _of_sums(before.sums)
        ),
        heads=heads,
        tokens=tokens,
        splits=before.splits,
        split_tokens=before.split_tokens,
        blocks=blocks,
        C=constants,
        **options,
    )
    return out


def attend_backward(grad: Tensor, call: Attention, needs: Sequence[bool]) -> list[Tensor]:
    """The gradients of q, k and v that are needed: three such sums, of which those of k and of v begin alike.

    What the values of later tokens add to a key's gradient is the transpose of what they add to a value's.
    """
    parts = gradients(grad, call, (True, True, True))
    by_values = parts[2]
    before: Before | None = None
    if needs[1] and needs[2] and call.bounds is None and grad.numel() and call.q.numel():
        before = sums_before(by_values.k, by_values.v, by_values.keys, by_values.form, by_values.q.shape[1])
    turned = before
    if before is not None and before.sums is not None:
        turned = before._replace(sums=before.sums.mT)
    begun = None, turned, before
    return [attend(part, sums) for part, sums, needed in zip(parts, begun, needs, strict=False) if needed]


def sums_before(k: Tensor, v: Tensor, keys: Tensor | None, form: str, tokens: int) -> Before:
    """How sequences of `tokens` queries are divided by their keys' sums, and these."""
    batch, _, heads, width = k.shape
    blocks = triton.cdiv(v.shape[3], _constants(k, v.shape[3], form)[0].COLUMNS)
    splits, split_tokens = _splits(tokens, planned(batch) * heads * blocks, width)
    if form == "full":
        return Before(splits, split_tokens, _states(k, v, keys).sum(2, keepdim=True))
    return Before(splits, split_tokens, _before(_states(k, v, keys), form) if splits > 1 else None)


def _states(k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """The sums over the keys of every split, (B, H, splits, E, F)."""
    batch, tokens, heads, width = k.shape
    constants, options = _constants(k, v.shape[3], "full")
    blocks = triton.cdiv(v.shape[3], constants.COLUMNS)
    splits, split_tokens = _splits(tokens, planned(batch) * heads * blocks, width)
    states = v.new_empty((batch, heads, splits, width, v.shape[3]), dtype=compute_dtype(v))
    launch(
        state_kernel,
        batch * heads * splits * blocks * constants.PARTS,
        t=States(k, v, keys, states),
        strides=StatesStrides(strides_of(k), strides_of(v), _strides(keys)),
        heads=heads,
        tokens=tokens,
        splits=splits,
        split_tokens=split_tokens,
        blocks=blocks,
        C=constants,
        **options,
    )
    return states


def _before(states: Tensor, form: str) -> Tensor:
    """The sum over the splits that each split's tokens see in whole: a sum in log2 of their number steps, one order."""
    ordered = states.flip(2) if form == "anticausal" else states
    sums, by = pad(ordered[:, :, :-1], (0, 0, 0, 0, 1, 0)), 1
    while by < sums.shape[2]:
        sums = sums + pad(sums[:, :, :-by], (0, 0, 0, 0, by, 0))
        by *= 2
    return (sums.flip(2) if form == "anticausal" else sums).contiguous()


def _strides(weights: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if weights is None else strides_of(weights)


def _of_sums(sums: Tensor | None) -> tuple[int, ...]:
    """From one entry of k and one of v to the next, of sums that lie one after another."""
    return (0, 0) if sums is None else (sums.stride(3), sums.stride(4))


def _splits(tokens: int, programs: int, width: int) -> tuple[int, int]:
    """How many programs share a sequence, and how many tokens each has; by the batch, since many sequences fill a GPU.

    None has fewer than four times as many as a head is wide: the sums of splits stay a part of the tokens' memory.
    """
    least = max(256, 4 * int(triton.next_power_of_2(width)))
    splits = max(1, min(triton.cdiv(tokens, least), triton.cdiv(ENOUGH_PROGRAMS, programs)))
    split_tokens = triton.cdiv(triton.cdiv(tokens, splits), 64) * 64
    return triton.cdiv(tokens, split_tokens), split_tokens


def _constants(q: Tensor, value_width: int, form: str) -> tuple[Constants, dict[str, int]]:
    """What kernels are compiled for: the sum so far, a chunk's rows and its scores stay in registers together.

    By what these hold. A float32 operand is three TF32 parts, of which two are more than a half-precision one takes;
    where no product reads from shared memory, both its operands are in registers.
    """
    width, stored, dtype = q.shape[3], q.dtype, compute_dtype(q)
    halves, double, wgmma = stored in HALF, stored == torch.float64, rules.wgmma(architecture(q.device))
    part = min(64, max(rules.DOT_MINIMUM, int(triton.next_power_of_2(width))))
    parts = triton.cdiv(width, part)
    crowded = parts > 1 or (part == 64 and not halves)
    if double:
        chunk, columns = 16, 16
    else:
        # wgmma multiplies 64 rows at a time.
        chunk = 64 if halves and wgmma and parts == 1 else 32 if halves or parts == 1 else 16
        columns = 32 if parts > 2 or (crowded and not wgmma) else 64
    constants = Constants(
        FORM=form,
        WIDTH=width,
        VALUE_WIDTH=value_width,
        PARTS=parts,
        PART=part,
        COLUMNS=min(max(rules.DOT_MINIMUM, int(triton.next_power_of_2(value_width))), columns),
        CHUNK=chunk,
        ACC=triton_type(dtype),
        # Half-precision operands fit in TF32; what is summed between two products is rounded as they are.
        PRECISION="tf32" if halves else rules.precision(dtype),
    )
    stages = 2 if parts == 1 and not double and (wgmma or not crowded) else 1
    return constants, {"num_warps": 4 if (halves and parts == 1) or part == 16 else 8, "num_stages": stages}
