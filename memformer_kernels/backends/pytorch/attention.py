"""Linear attention with factored heads as one weighted sum over keys, in plain PyTorch; its gradients are the same sum.

    attend(q, k, v)_t = rows_t sum over the i that t sees of keys_i (q_t . k_i) v_i

The sum over keys is carried from chunk to chunk as an (E, F) matrix per head, so that time and memory are linear in the
number of tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.calls.arguments import Attention, compute_dtype

TRANSPOSED = {"full": "full", "causal": "anticausal", "anticausal": "causal"}
"""The form in which keys see the tokens that see them."""

_SPAN_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Entries of q worked on at a time: a small part of a long sequence's memory, on the CPU what its caches hold."""


def attend(call: Attention) -> Tensor:
    """(B, N, H, F) in v's dtype; float64 is summed in float64, all else in float32."""
    if call.bounds is not None:
        out = _packed(call, call.bounds)
    elif torch.compiler.is_exporting():
        out = _for_every_length(call)
    elif call.form == "full":
        out = _full(call)
    else:
        out = _in_order(call)
    return out.to(call.v.dtype)


def gradients(grad: Tensor, call: Attention, needs: Sequence[bool]) -> list[Attention]:
    """What gives the gradients of q, k and v when it is attended, for those that are needed."""
    back = TRANSPOSED[call.form]
    parts = (
        call._replace(q=grad, k=call.v, v=call.k),
        Attention(call.v, grad, call.q, call.keys, call.rows, call.bounds, back),
        Attention(call.k, call.q, grad, call.keys, call.rows, call.bounds, back),
    )
    return [part for part, needed in zip(parts, needs, strict=False) if needed]


def chunk_length(width: int) -> int:
    """Tokens whose scores are formed at once: about as many as a head is wide, where both kinds of work cost alike."""
    return 64 if width <= 64 else 128


def _prepared(call: Attention, span: slice) -> tuple[Tensor, Tensor, Tensor]:
    """A span of q, k and v in the working dtype and weighted, with heads before tokens: (B, H, n, .)."""
    q, k, v, rows, keys, *_ = call
    selects = rows is not None and keys is not None
    kept = (keys != 0).to(keys.dtype) if selects and keys is not None else None
    return (
        _weighted(q[:, span], _part(rows, span), selects),
        _weighted(k[:, span], _part(keys, span), selects),
        _weighted(v[:, span], _part(kept, span), selects),
    )


def _weighted(tokens: Tensor, weights: Tensor | None, selects: bool) -> Tensor:
    values = tokens.to(compute_dtype(tokens)).transpose(1, 2)
    if weights is None:
        return values.contiguous()
    kept = weights[:, None, :, None]
    scaled = values.contiguous() * kept.to(values.dtype)
    return torch.where(kept != 0, scaled, 0.0) if selects else scaled


def _spans(tokens: Tensor, count: int) -> list[slice]:
    """[0, count) in runs of whole chunks of about as many entries as the device is given at a time."""
    batch, _, heads, width = tokens.shape
    chunk = chunk_length(width)
    entries = _SPAN_ELEMENTS.get(tokens.device.type, 2**21)
    size = max(1, entries // max(batch * heads * width * chunk, 1)) * chunk
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _part(weights: Tensor | None, span: slice) -> Tensor | None:
    return None if weights is None else weights[:, span]


def _for_every_length(call: Attention) -> Tensor:
    """The same as one program for any number of tokens: no loop over spans, no padding that depends on a length.

    Tokens are brought to whole chunks, and back, by taking them by their places.
    """
    q, form = call.q, call.form
    queries, keyed, values = _prepared(call, slice(None))
    if form == "full":
        return (queries @ (keyed.mT @ values)).transpose(1, 2)
    tokens, chunk = q.shape[1], chunk_length(q.shape[3])
    # Always two chunks or more: a program for one would be another program.
    starts = torch.arange(tokens // chunk + 2, device=q.device, dtype=torch.int64)[:, None] * chunk
    place = starts + torch.arange(chunk, device=q.device, dtype=torch.int64)
    inside, nearest = (place < tokens)[:, :, None], place.clamp(max=tokens - 1)
    cut_q, cut_k, cut_v = (torch.where(inside, x[:, :, nearest], 0.0) for x in (queries, keyed, values))
    out = _chunks_in_order(cut_q, cut_k, cut_v, None, form)[0]
    token = torch.arange(tokens, device=q.device, dtype=torch.int64)
    return out[:, :, token // chunk, token % chunk].transpose(1, 2)


def _full(call: Attention) -> Tensor:
    q, k, v, rows, keys, *_ = call
    selects = rows is not None and keys is not None
    total = q.new_zeros((), dtype=compute_dtype(q))
    for span in _spans(k, k.shape[1]):
        _, keyed, values = _prepared(call._replace(q=q[:, :0], rows=rows if rows is None else rows[:, :0]), span)
        total = total + keyed.mT @ values
    made = []
    for span in _spans(q, q.shape[1]):
        part = _weighted(q[:, span], _part(rows, span), selects) @ total
        made.append(part.transpose(1, 2).to(v.dtype))
    return made[0].contiguous() if len(made) == 1 else torch.cat(made, 1)


def _in_order(call: Attention) -> Tensor:
    q, form = call.q, call.form
    spans = _spans(q, q.shape[1])
    made: list[Tensor] = []
    state: Tensor | None = None
    for span in spans if form == "causal" else spans[::-1]:
        cut_q, cut_k, cut_v = (_cut(x, chunk_length(q.shape[3])) for x in _prepared(call, span))
        part, state = _chunks_in_order(cut_q, cut_k, cut_v, state, form)
        made.append(part.flatten(2, 3)[:, :, : span.stop - span.start].transpose(1, 2).to(call.v.dtype))
    if form != "causal":
        made.reverse()
    return made[0].contiguous() if len(made) == 1 else torch.cat(made, 1)


def _cut(x: Tensor, chunk: int) -> Tensor:
    """(B, H, n, .) in chunks, the last one filled up with zeros."""
    filled = pad(x, (0, 0, 0, -x.shape[2] % chunk))
    return filled.reshape(*x.shape[:2], filled.shape[2] // chunk, chunk, x.shape[3])


def _chunks_in_order(
    queries: Tensor, keys: Tensor, values: Tensor, state: Tensor | None, form: str
) -> tuple[Tensor, Tensor]:
    """On chunks (B, H, m, C, .); `state` is the sum over the keys before them. The result, and the sum after them."""
    local = keys.mT @ values
    # The first in order gets what was before, every other one the sum of those before it: no sum is ever subtracted, so
    # that no token reaches a chunk that does not see it.
    first = torch.zeros_like(local[:, :, :1]) if state is None else state[:, :, None]
    if form == "causal":
        sums = _running(torch.cat([first, local], 2))
        before, after = sums[:, :, :-1], sums[:, :, -1]
    else:
        sums = _running(torch.cat([local, first], 2).flip(2)).flip(2)
        before, after = sums[:, :, 1:], sums[:, :, 0]
    out = _seen(queries @ keys.mT, form) @ values + queries @ before
    return out, after


def _running(local: Tensor) -> Tensor:
    """Running sums over the chunks; on a GPU in log2 of their number steps, since cumsum has no fixed order there."""
    if not local.is_cuda:
        return local.cumsum(2)
    return _scan(local, torch.zeros(local.shape[2], device=local.device, dtype=local.dtype))


def _seen(scores: Tensor, form: str) -> Tensor:
    """Scores (..., C, C) of the keys that each token of a chunk sees."""
    return scores if form == "full" else scores.tril() if form == "causal" else scores.triu()


def _packed(call: Attention, bounds: Tensor) -> Tensor:
    """Chunks that begin with a sequence's first token or follow its last chunk; none holds tokens of two sequences."""
    q, k, v, rows, keys, _, form = call
    tokens, sequences = q.shape[1], bounds.shape[0] - 1
    chunk = min(64, max(16, tokens // max(sequences, 1)))
    chunks = tokens // chunk + sequences
    starts, ends = bounds[:-1].to(torch.int64), bounds[1:].to(torch.int64)
    counts = (ends - starts + chunk - 1) // chunk
    last = counts.cumsum(0)
    number = torch.arange(chunks, device=q.device, dtype=torch.int64)
    owner = torch.searchsorted(last, number, right=True)
    own = owner.clamp(max=sequences - 1)
    place = starts[own] + (number - (last - counts)[own]) * chunk
    index = place[:, None] + torch.arange(chunk, device=q.device, dtype=torch.int64)
    inside = (index < ends[own][:, None]) & (owner < sequences)[:, None]
    index = index.clamp(0, tokens - 1)

    def cut(x: Tensor, weights: Tensor | None) -> Tensor:
        taken = x[:, index].to(compute_dtype(x))
        weight = inside[None] if weights is None else torch.where(inside, weights[:, index], 0.0)
        kept = weight[..., None, None]
        scaled = taken if weights is None else taken * kept.to(taken.dtype)
        return torch.where(kept != 0, scaled, 0.0).permute(0, 3, 1, 2, 4)

    queries, keyed, values = cut(q, rows), cut(k, keys), cut(v, None if keys is None else (keys != 0).to(keys.dtype))
    local = keyed.mT @ values
    if form == "full":
        out = queries @ _scan(local, owner)[:, :, last[own] - 1]
    else:
        flipped = form == "anticausal"
        ordered, owners = (local.flip(2), owner.flip(0)) if flipped else (local, owner)
        before = _shift(_scan(ordered, owners), owners, 1)
        before = before.flip(2) if flipped else before
        out = _seen(queries @ keyed.mT, form) @ values + queries @ before
    token = torch.arange(tokens, device=q.device, dtype=torch.int64)
    sequence = torch.searchsorted(ends, token, right=True)
    position = (last - counts)[sequence] * chunk + token - starts[sequence]
    return out.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, position]


def _shift(sums: Tensor, owner: Tensor, by: int) -> Tensor:
    """What lies `by` chunks before each, where that is of the same sequence, else zero."""
    moved = pad(sums[:, :, :-by], (0, 0, 0, 0, by, 0))
    same = pad(owner[by:] == owner[:-by], (by, 0))
    return torch.where(same[:, None, None], moved, 0.0)


def _scan(local: Tensor, owner: Tensor) -> Tensor:
    """Running sums over the chunks of every sequence by itself, in log2 of their number steps."""
    sums, by = local, 1
    while by < local.shape[2]:
        sums = sums + _shift(sums, owner, by)
        by *= 2
    return sums
