"""The mathematics, twice, in the plainest PyTorch: what every backend is checked against.

`literal` follows the published equations token by token and forms the N-by-N attention matrix, `reassociated` is the
same with the products regrouped, and `gram` carries the whole network on D-by-D matrices: it shares no arithmetic with
the first, so that each is a check of the other. All run in the dtype they are given and leave gradients to autograd.

Notation (Dutta & Sra, arXiv 2410.07263, tokens as rows here): tasks z (B, N, D) with D = d + 1, the first `context`
tokens labelled, layers l, heads h, registers R_{l,h}, and

    att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
    R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
    Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

With weights (B, N), (1/n) sum z_i z_i^T is sum w_i z_i z_i^T / sum w_i over the context; 0 where that has no weight.

With `responses` = m, D = d + m: the last m slots are responses, where Q's border is zero and P's is the identity. A
prediction is minus those slots, (..., m), or where m = 1 minus the one slot.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Context = int | Tensor | None


def border(block: Tensor, width: int, corner: float) -> Tensor:
    """A block (..., d, d) above and left of `corner` times 1, with zeros elsewhere: (..., D, D). Dense passes."""
    d = block.shape[-1]
    if d == width:
        return block
    lead, slots = block.shape[:-2], width - d
    above = torch.cat([block, block.new_zeros(*lead, d, slots)], -1)
    one = torch.eye(slots, dtype=block.dtype, device=block.device).expand(*lead, slots, slots)
    last = torch.cat([block.new_zeros(*lead, slots, d), corner * one], -1)
    return torch.cat([above, last], -2)


def projections(q: Tensor, p: Tensor | None, width: int, responses: int = 1) -> tuple[Tensor, Tensor]:
    """Q and P as dense (..., H, D, D) matrices; `p=None` is the response-only P, with ones for the responses alone."""
    block = q.new_zeros(*q.shape[:-2], width - responses, width - responses) if p is None else p
    return border(q, width, 0.0), border(block, width, 1.0)


def weight(gamma: Tensor | None, layer: int, register: int) -> Tensor | None:
    """gamma_{l,j}, broadcastable to (H, N, D); None where layer `l` does not weight register `j`."""
    if gamma is not None and gamma.ndim == 5:
        return gamma[layer % gamma.shape[0], register % gamma.shape[1]]
    if layer != register:
        return None
    return torch.ones((), device="cpu", dtype=torch.float32) if gamma is None else gamma[layer % gamma.shape[0]]


def _lengths(z: Tensor, context: Context) -> Tensor:
    if isinstance(context, Tensor):
        return context.to(z.device)
    return torch.full((z.shape[0],), z.shape[1] - 1 if context is None else context, device=z.device, dtype=torch.int64)


def _gates(gate: Tensor | None, q: Tensor) -> Tensor:
    gates = q.new_ones(1) if gate is None else gate
    return gates.expand(q.shape[0], q.shape[1])


def _momentum(beta: Tensor | None, q: Tensor, z: Tensor) -> Tensor:
    if beta is None:
        return q.new_zeros(q.shape[0], 1, 1, 1)
    return beta.expand(q.shape[0], q.shape[1], *z.shape[1:])


def _counted(keys: Tensor, lengths: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys (B, ..., N, D), 0 past the context, times their weights (B, N), and what their sum is divided by."""
    axes = (1,) * (keys.ndim - 3)
    if weights is None:
        return keys, lengths.view(-1, *axes, 1, 1)
    labelled = torch.arange(weights.shape[1], device=weights.device, dtype=torch.int64) < lengths[:, None]
    inside = torch.where(labelled, weights, 0.0)
    total = inside.sum(1)
    return keys * inside.view(len(inside), *axes, -1, 1), torch.where(total > 0, total, 1.0).view(-1, *axes, 1, 1)


def _literal_attention(z: Tensor, query: Tensor, value: Tensor, keys: Tensor, counted: Tensor) -> Tensor:
    """Z Q K^T as an N-by-N matrix, then times K P^T, as the publication writes it."""
    return ((z @ query) @ keys.transpose(-1, -2)) @ (counted @ value.transpose(-1, -2))


def _reassociated_attention(z: Tensor, query: Tensor, value: Tensor, keys: Tensor, counted: Tensor) -> Tensor:
    """Z (Q (K^T K) P^T): the same product at O(N D^2)."""
    return z @ (query @ (keys.transpose(-1, -2) @ counted) @ value.transpose(-1, -2))


def _token_states(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    z: Tensor,
    q: Tensor,
    p: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    gate: Tensor | None,
    context: Context,
    responses: int,
    weights: Tensor | None,
) -> list[Tensor]:
    lengths = _lengths(z, context)
    labelled = torch.arange(z.shape[1], device=z.device, dtype=torch.int64) < lengths[:, None]
    queries, values = projections(q, p, z.shape[-1], responses)
    gates, momentum = _gates(gate, q), _momentum(beta, q, z)
    registers: list[Tensor] = []
    states: list[Tensor] = []
    for layer in range(q.shape[0]):
        keys = torch.where(labelled[:, :, None], z, 0.0)[:, None]
        counted, total = _counted(keys, lengths, weights)
        register = attend(z[:, None], queries[layer], values[layer], keys, counted) / total
        if registers:
            register = register + momentum[layer] * registers[-1]
        registers.append(register)
        for index, past in enumerate(registers):
            gamma_lj = weight(gamma, layer, index)
            if gamma_lj is not None:
                z = z + (gates[layer][:, None, None] * gamma_lj.to(past) * past).sum(1)
        states.append(z)
    return states


def literal_states(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: Context = None,
    responses: int = 1,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """Z_1, ..., Z_L, each (B, N, D), through the N-by-N attention matrix of the publication."""
    return _token_states(_literal_attention, z, q, p, gamma, beta, gate, context, responses, weights)


def reassociated_states(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: Context = None,
    responses: int = 1,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """Z_1, ..., Z_L, each (B, N, D), with the attention product re-associated around the context Gram matrix."""
    return _token_states(_reassociated_attention, z, q, p, gamma, beta, gate, context, responses, weights)


def gram_states(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: Context = None,
    responses: int = 1,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """T_1, ..., T_L, each (B, D, D), with Z_l = Z_0 T_l: the whole network on D-by-D matrices.

    Only for gamma and beta without a token axis, since a coefficient per token does not commute with Z_0.
    """
    lengths = _lengths(z, context)
    labelled = torch.arange(z.shape[1], device=z.device, dtype=torch.int64) < lengths[:, None]
    queries, values = projections(q, p, z.shape[-1], responses)
    gates, momentum = _gates(gate, q), _momentum(beta, q, z[:, :1])
    tokens = torch.where(labelled[:, :, None], z, 0.0)
    counted, total = _counted(tokens, lengths, weights)
    gram = tokens.transpose(-1, -2) @ counted / total
    transform = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(gram)
    registers: list[Tensor] = []
    transforms: list[Tensor] = []
    for layer in range(q.shape[0]):
        current = transform.transpose(-1, -2) @ gram @ transform
        register = transform[:, None] @ queries[layer] @ current[:, None] @ values[layer].transpose(-1, -2)
        if registers:
            register = register + momentum[layer] * registers[-1]
        registers.append(register)
        for index, past in enumerate(registers):
            gamma_lj = weight(gamma, layer, index)
            if gamma_lj is not None:
                transform = transform + (gates[layer][:, None, None] * gamma_lj.to(past) * past).sum(1)
        transforms.append(transform)
    return transforms


def stack(
    z: Tensor,
    q: Tensor,
    *parameters: Tensor | None,
    context: Context = None,
    responses: int = 1,
    weights: Tensor | None = None,
    form: str = "literal",
) -> Tensor:
    """Z_L (B, N, D); `parameters` are p, gamma, beta, gate; `form` is literal, reassociated or gram."""
    last = _FORMS[form](z, q, *parameters, context=context, responses=responses, weights=weights)[-1]
    return z @ last if form == "gram" else last


def predict(
    z: Tensor,
    q: Tensor,
    *parameters: Tensor | None,
    context: Context = None,
    queries: int | None = None,
    responses: int = 1,
    weights: Tensor | None = None,
    form: str = "literal",
) -> Tensor:
    """Predictions after each layer: minus the response slots of the query rows of Z_1, ..., Z_L.

    (L, B, queries) of one response, else (L, B, queries, m).
    """
    lengths = _lengths(z, context)
    if queries is None:
        queries = z.shape[1] - context if isinstance(context, int) else 1
    first = z.shape[1] - queries
    position = torch.arange(z.shape[1], device=z.device, dtype=torch.int64)
    kept = (position < lengths[:, None]) | (position >= first)
    z = torch.where(kept[:, :, None], z, 0.0)
    states = _FORMS[form](z, q, *parameters, context=context, responses=responses, weights=weights)
    columns = [state[:, :, -responses:] for state in states]
    read = [z[:, first:] @ column if form == "gram" else column[:, first:] for column in columns]
    made = -torch.stack(read)
    return made[..., 0] if responses == 1 else made


_FORMS = {"literal": literal_states, "reassociated": reassociated_states, "gram": gram_states}


def prefix_predict(
    z: Tensor,
    q: Tensor,
    *parameters: Tensor | None,
    first: int = 1,
    form: str = "literal",
) -> Tensor:
    """Predictions of tokens first, ..., N - 1, each from all tokens before it: (L, B, N - first) after each layer.

    Token i is a query of its own, its response slot 0; its context are tokens 0, ..., i - 1, whose mean is over i.
    `parameters` are p, gamma, beta, gate, without a token axis.
    """
    predictions = []
    for token in range(first, z.shape[1]):
        query = torch.cat([z[:, token, None, :-1], z.new_zeros(z.shape[0], 1, 1)], -1)
        prefix = torch.cat([z[:, :token], query], 1)
        predictions.append(predict(prefix, q, *parameters, context=token, queries=1, form=form))
    return torch.cat(predictions, -1)


def layer(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    registers: Sequence[Tensor] = (),
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    context: Context = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer by the literal form: Z + sum_j gamma_j * R_j and the new register (B, R, N, D)."""
    lengths = _lengths(z, context)
    labelled = torch.arange(z.shape[1], device=z.device, dtype=torch.int64) < lengths[:, None]
    queries, values = projections(q, p, z.shape[-1])
    keys = torch.where(labelled[:, :, None], z, 0.0)[:, None]
    counted, total = _counted(keys, lengths, weights)
    register = _literal_attention(z[:, None], queries, values, keys, counted) / total
    per_head = any(x is not None and x.ndim >= 3 and x.shape[-3] > 1 for x in (gamma, beta))
    if not per_head:
        register = register.sum(1, keepdim=True)
    if registers and beta is not None:
        register = register + beta * registers[-1]
    if gamma is None:
        return z + register.sum(1), register
    for index, past in enumerate((*registers, register)):
        z = z + (gamma[index % gamma.shape[0]] * past).sum(1)
    return z, register


def lfom_solve(
    h: Tensor,
    b: Tensor,
    a: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    w0: Tensor | None = None,
    **proximal: Tensor | float | None,
) -> Tensor:
    """Iterates w_1, ..., w_L (L, B, d) of the learned first-order method on w^T h w / 2 - b^T w, term by term:

    g_l = b - h w_l;  r_l = -a_l g_l + beta_l * r_{l-1};  w_{l+1} = prox_l(w_l + sum_{j<=l} gamma_{l,j} * r_j).
    `proximal` are level, lower, upper and radius, of which layer l's row is that of `prox`.

    With b (B, d, m) each column is a method of its own, and iterates are (L, B, d, m). gamma and beta may have an axis
    of tasks in front of theirs.
    """
    if b.ndim == 3:
        starts = [None] * b.shape[2] if w0 is None else w0.unbind(-1)
        columns = zip(b.unbind(-1), starts, strict=True)
        return torch.stack([lfom_solve(h, column, a, gamma, beta, start, **proximal) for column, start in columns], -1)
    w = torch.zeros_like(b) if w0 is None else w0
    registers: list[Tensor] = []
    iterates: list[Tensor] = []
    for layer in range(a.shape[0]):
        residual = b - (h @ w[..., None])[..., 0]
        register = -(residual @ a[layer].transpose(-1, -2))
        if registers and beta is not None:
            decay = beta.expand(*beta.shape[:-2], a.shape[0], b.shape[-1])
            register = register + decay[..., layer, :] * registers[-1]
        registers.append(register)
        if gamma is None:
            w = w + register
        else:
            for index in range(layer + 1):
                w = w + gamma[..., layer % gamma.shape[-3], index % gamma.shape[-2], :] * registers[index]
        given = {
            name: torch.as_tensor(x, dtype=b.dtype, device=b.device) for name, x in proximal.items() if x is not None
        }
        rows = {name: x.expand(a.shape[0], 1 if name == "radius" else b.shape[-1]) for name, x in given.items()}
        w = prox(w, **{name: x[layer] for name, x in rows.items()})
        iterates.append(w)
    return torch.stack(iterates)


def prox(
    w: Tensor,
    level: Tensor | None = None,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    radius: Tensor | None = None,
) -> Tensor:
    """Soft thresholding, then bounds, then the projection onto a ball, of w (B, d).

    A level or radius below 0 counts as 0.
    """
    if level is not None:
        w = w.sign() * (w.abs() - level.clamp(min=0)).relu()
    if lower is not None or upper is not None:
        w = torch.clamp(w, lower, upper)
    if radius is not None:
        rho = radius.clamp(min=0)
        w = w * (rho / torch.maximum(torch.linalg.vector_norm(w, dim=-1, keepdim=True), rho))
    return w


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    context: int | Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """out_t = sum over the keys i that t sees of (q_t . k_i) v_i, divided by their number; (B, N, H, F)."""
    seen = seen_keys(q.shape[0], q.shape[1], causal, context, mask, cu_seqlens).to(q.device)
    scores = torch.einsum("bthe,bihe->bhti", q, k)
    scores = torch.where(seen[:, None], scores, 0.0)
    values = v if mask is None else torch.where(mask[:, :, None, None], v, 0.0)
    counts = seen.sum(2).clamp(min=1)[:, :, None, None]
    return torch.einsum("bhti,bihf->bthf", scores, values) / counts


def seen_keys(
    batch: int,
    tokens: int,
    causal: bool,
    context: int | Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Which keys (last axis) every token sees, (B, N, N)."""
    place = torch.arange(tokens, device="cpu", dtype=torch.int64)
    seen = torch.ones(batch, tokens, tokens, dtype=torch.bool, device="cpu")
    if causal:
        seen = seen & (place[None, :] <= place[:, None])
    if context is not None:
        lengths = (
            context.cpu()
            if isinstance(context, Tensor)
            else torch.full((batch,), context, device="cpu", dtype=torch.int64)
        )
        seen = seen & (place < lengths[:, None])[:, None, :]
    if mask is not None:
        seen = seen & mask.cpu()[:, None, :] & mask.cpu()[:, :, None]
    if cu_seqlens is not None:
        sequence = (place[:, None] >= cu_seqlens.cpu()[None, 1:]).sum(1)
        seen = seen & (sequence[:, None] == sequence[None, :])
    return seen


def register_update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """z + sum_j gamma_j * R_j."""
    for coefficient, register in zip(gamma, registers, strict=True):
        z = z + coefficient * register
    return z
