"""The peers for networks that `formulations` does not write out: any rule, structure and number of heads, three ways.

All compute -[Z_L]_{query, D-1} (B, N - n) of

    att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
    R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
    Z_{l+1}  = Z_l + sum_h gate_h sum_{j<=l} gamma_{l,j,h} * R_{j,h}

or, given the target (B, N - n), its mean squared error. Parameters have the shapes of `Workload.parameter_shapes`.
Heads that share their memory are added up before it.
"""

from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn.functional import pad

Optional = Tensor | None
Form = Callable[[Tensor, Optional, Tensor, Optional, Optional, Optional, Optional, int], Tensor]
"""(z, target, q, gamma, beta, gate, p, n) -> the loss, or without a target the predictions."""


def published(
    z: Tensor, target: Optional, q: Tensor, gamma: Optional, beta: Optional, gate: Optional, p: Optional, n: int
) -> Tensor:
    """Per layer and head the (N, N) attention matrix Z Q Z^T, masked to the context, times Z P^T."""
    queries, values = _projections(q, p, z.shape[2])
    mask = torch.zeros(z.shape[1], dtype=z.dtype, device=z.device)
    mask[:n] = 1

    def attend(z: Tensor, layer: int) -> Tensor:
        rows = z[:, None]
        return ((rows @ queries[layer]) @ rows.mT * mask) @ (rows @ values[layer].mT) / n

    return _tokens(attend, z, target, q, gamma, beta, gate, n)


def reassociated(
    z: Tensor, target: Optional, q: Tensor, gamma: Optional, beta: Optional, gate: Optional, p: Optional, n: int
) -> Tensor:
    """Z (Q G P^T) with every layer's own context Gram matrix G; where only responses move, X (A (X^T y))."""
    if p is None:
        x = z[:, :, :-1]

        def respond(y: Tensor, layer: int) -> Tensor:
            return x[:, None] @ (_heads(q, gamma, gate, layer) @ (torch.bmm(x[:, :n].mT, y[:, :n]) / n)[:, None])

        responses = _layers(respond, z[:, :, -1:], q, _last(gamma), _last(beta), gate)
        return _finish(-responses[:, n:, 0], target)
    queries, values = _projections(q, p, z.shape[2])
    summed = not _apart(gamma, gate)

    def attend(z: Tensor, layer: int) -> Tensor:
        context = z[:, :n]
        step = queries[layer] @ (torch.bmm(context.mT, context) / n)[:, None] @ values[layer].mT
        return z[:, None] @ (step.sum(1, keepdim=True) if summed else step)

    return _tokens(attend, z, target, q, gamma, beta, gate, n)


def gram(
    z: Tensor, target: Optional, q: Tensor, gamma: Optional, beta: Optional, gate: Optional, p: Optional, n: int
) -> Tensor:
    """All layers on (D, D) matrices, Z_l = Z_0 T_l: S_l = T_l Q (T_l^T G T_l) P^T; no memory a token.

    Where only responses move, Z_l's are y + X s_l, and S_l is the vector A (b + H s_l).
    """
    context = z[:, :n]
    g = torch.bmm(context.mT, context) / n
    if p is None:
        h, b = g[:, :-1, :-1], g[:, :-1, -1:]

        def step(s: Tensor, layer: int) -> Tensor:
            return _heads(q, gamma, gate, layer) @ (b + torch.bmm(h, s) if layer else b)[:, None]

        weights = _layers(step, torch.zeros_like(b), q, _last(gamma), _last(beta), gate)
        return _finish(-(z[:, n:, -1] + torch.bmm(z[:, n:, :-1], weights)[..., 0]), target)
    queries, values = _projections(q, p, z.shape[2])
    summed = not _apart(gamma, gate)

    def attend(t: Tensor, layer: int) -> Tensor:
        current = torch.bmm(torch.bmm(t.mT, g), t) if layer else g
        step = t[:, None] @ queries[layer] @ current[:, None] @ values[layer].mT
        return step.sum(1, keepdim=True) if summed else step

    start = torch.eye(z.shape[2], dtype=z.dtype, device=z.device).expand_as(g)
    last = _layers(attend, start, q, gamma, beta, gate)
    return _finish(-torch.bmm(z[:, n:], last[:, :, -1:])[..., 0], target)


def _tokens(
    attend: Callable[[Tensor, int], Tensor],
    z: Tensor,
    target: Optional,
    q: Tensor,
    gamma: Optional,
    beta: Optional,
    gate: Optional,
    n: int,
) -> Tensor:
    return _finish(-_layers(attend, z, q, gamma, beta, gate)[:, n:, -1], target)


def _layers(
    attend: Callable[[Tensor, int], Tensor],
    state: Tensor,
    q: Tensor,
    gamma: Optional,
    beta: Optional,
    gate: Optional,
) -> Tensor:
    """The recurrence in `state`, tokens or T; `attend(state, layer)` gives (B, H, rows, D)."""
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        register = attend(state, layer)
        if not _apart(gamma, gate):
            register = register.sum(1, keepdim=True)
        if beta is not None and registers:
            register = register + beta[layer] * registers[-1]
        registers.append(register)
        if gamma is None or gamma.ndim == 4:
            updates = [register if gamma is None else gamma[layer] * register]
        else:
            weights = gamma[layer % gamma.shape[0]]
            updates = [weights[j] * past for j, past in enumerate(registers)]
        update = reduce(add, updates)
        state = state + (update if gate is None else gate[:, None, None] * update).sum(1)
    return state


def _heads(q: Tensor, gamma: Optional, gate: Optional, layer: int) -> Tensor:
    """The blocks A of a layer (H, d, d), or their sum (1, d, d) where heads share a memory."""
    return q[layer] if _apart(gamma, gate) else q[layer].sum(0, keepdim=True)


def _last(coefficient: Optional) -> Optional:
    """What a memory weighs the response column with."""
    return None if coefficient is None else coefficient[..., -1:]


def _apart(gamma: Optional, gate: Optional) -> bool:
    """Whether heads keep registers of their own."""
    return gate is not None or (gamma is not None and gamma.shape[-3] > 1)


def _projections(q: Tensor, p: Optional, width: int) -> tuple[Tensor, Tensor]:
    """Q and P as (L, H, D, D)."""
    if q.shape[-1] == width and p is not None:
        return q, p
    corner = torch.zeros(width, width, dtype=q.dtype, device=q.device)
    corner[-1, -1] = 1
    values = corner.expand(*q.shape[:2], -1, -1) if p is None else pad(p, (0, 1, 0, 1)) + corner
    return pad(q, (0, 1, 0, 1)), values


def _finish(prediction: Tensor, target: Optional) -> Tensor:
    return prediction if target is None else (prediction - target).square().mean()
