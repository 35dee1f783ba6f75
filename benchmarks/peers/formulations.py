"""The peers: one loss in plain PyTorch, written five ways, each the fastest version of itself that we know.

All compute the mean squared query error of a response-only LFOM Memformer (Bm = 0, no beta, gamma shared by heads), or,
where the target is None, the predictions yhat (B, N - n):

    att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P^T,   Q_h = [[A_h, 0], [0, 0]],   P = [[0, 0], [0, 1]]
    Z_{l+1} = Z_l + sum_{j<=l} gamma[l, j] * sum_h att_h(Z_j),   yhat = -[Z_L]_{query, D-1}

from z (B, N, D), target (B, N - n), q (L, H, d, d), gamma (L, L, 1, 1 or N, 1 or D) and n, the context's length.
Only the response column moves, and sum_h A_h acts as one head; every form but the published one uses both.
Where a line asks whether it is being compiled, the two ways were measured and each is the faster in its place.
"""

from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor, int], Tensor]

# Longer contexts are summed by a library product: a compiled loop over examples grows the generated code with n.
UNROLLED_CONTEXT = 64


def published(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """The field's code: per head the (N, N) attention matrix Z Q Z^T, masked to the context, times Z P^T.

    As in Ahn et al., arXiv 2306.00297, and Dutta & Sra, arXiv 2410.07263.
    """
    tokens, width = z.shape[1:]
    mask = torch.zeros(tokens, dtype=z.dtype, device=z.device)
    mask[:n] = 1
    p = torch.zeros(width, width, dtype=z.dtype, device=z.device)
    p[-1, -1] = 1
    blocks = torch.nn.functional.pad(q, (0, 1, 0, 1))
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        values = z @ p.T
        heads = [((z @ block) @ z.transpose(1, 2) * mask) @ values for block in blocks[layer]]
        registers.append(reduce(add, heads) / n)
        z = z + reduce(add, [gamma[layer, j, 0] * register for j, register in enumerate(registers)])
    return _finish(-z[:, n:, -1], target)


def reassociated(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """Z (Q G P^T): features stay, the column y moves by X (A (X^T y / n)), in the last layer for queries only."""
    x, y = z[..., :-1], z[..., -1]
    context = x[:, :n]
    a = q.sum(1).transpose(1, 2)
    layers = q.shape[0]
    weights = gamma[..., -1].expand(-1, -1, -1, z.shape[1])
    registers: list[Tensor] = []
    for layer in range(layers):
        response = y[:, None, :n]
        if torch.compiler.is_compiling():
            # A second copy keeps this a library product: Inductor's own matrix-vector sum over so short a row opens
            # one parallel region per task.
            response = response.expand(-1, 2, -1).contiguous()
        step = (torch.bmm(response, context) / n) @ a[layer]
        moved = slice(n, None) if layer == layers - 1 else slice(None)
        registers = [register[:, moved] for register in registers]
        registers.append(torch.bmm(x[:, moved], step.transpose(1, 2))[..., 0])
        y = y[:, moved]
        for j, register in enumerate(registers):
            y = y + weights[layer, j, 0, moved] * register
    return _finish(-y, target)


def gram(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """Gram space, batch first: H = X^T X / n (B, d, d) and b = X^T y / n once, then L steps on w (B, d).

    r_l = -A_l (b - H w_l), w_{l+1} = w_l + sum_{j<=l} gamma_lj r_j, w_0 = 0, yhat = x_query . w_L.
    Needs gamma without a token axis.
    """
    context = z[:, :n]
    if torch.compiler.is_compiling() and n <= UNROLLED_CONTEXT:
        g = reduce(add, [context[:, i, :, None] * context[:, i, None, :] for i in range(n)]) / n
    else:
        g = torch.bmm(context.transpose(1, 2), context) / n
    return from_gram(g, z, target, q, gamma, n)


def from_gram(g: Tensor, z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """The steps of `gram` from the mean context Gram matrices g (B, D, D)."""
    h, b = g[:, :-1, :-1], g[:, :-1, -1]
    a = q.sum(1).transpose(1, 2)
    weights = gamma[:, :, 0, 0, -1]
    w = torch.zeros_like(b)
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        residual = b - torch.bmm(h, w[..., None])[..., 0] if layer else b
        registers.append(residual @ a[layer])
        w = w - torch.tensordot(weights[layer, : layer + 1], torch.stack(registers), 1)
    query = z[:, n:]
    prediction = torch.bmm(query[..., :-1], w[..., None])[..., 0] - query[..., -1]
    return _finish(prediction, target)


def batch_last_gram(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """Gram space with the batch axis last: elementwise multiply-adds over (d, d, B), one task per vector lane."""
    context = z[:, :n]
    if torch.compiler.is_compiling() and n <= UNROLLED_CONTEXT:
        rows = context.permute(1, 2, 0).contiguous()
        g = reduce(add, [row[:, None] * row for row in rows]) / n
    else:
        g = torch.bmm(context.transpose(1, 2), context).permute(1, 2, 0).contiguous() / n
    h, b = g[:-1, :-1], g[:-1, -1]
    a = q.sum(1)
    weights = gamma[:, :, 0, 0, -1]
    w = torch.zeros_like(b)
    registers: list[Tensor] = []
    for layer in range(q.shape[0]):
        residual = b - (h * w).sum(1) if layer else b
        # The products with parameters stay matrix products: their gradients are sums over the batch, which the library
        # does several times faster than a compiled reduction.
        registers.append(a[layer] @ residual)
        w = w - torch.tensordot(weights[layer, : layer + 1], torch.stack(registers), 1)
    query = z[:, n:].permute(1, 2, 0)
    prediction = (query[:, :-1] * w).sum(1) - query[:, -1]
    return _finish(prediction.T, target)


def batch_last_tokens(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
    """Token space with the batch axis last, for gamma with a token axis: X (d, N, B) and the responses y (N, B)."""
    tokens = z.permute(2, 1, 0).contiguous()
    x, y = tokens[:-1], tokens[-1]
    a = q.sum(1)
    layers = q.shape[0]
    weights = gamma[..., -1].expand(-1, -1, -1, z.shape[1])
    registers: list[Tensor] = []
    for layer in range(layers):
        step = a[layer] @ ((x[:, :n] * y[:n]).sum(1) / n)
        moved = slice(n, None) if layer == layers - 1 else slice(None)
        registers = [register[moved] for register in registers]
        registers.append(reduce(add, [feature[moved] * k for feature, k in zip(x, step, strict=True)]))
        update = torch.einsum("jn,jnb->nb", weights[layer, : layer + 1, 0, moved], torch.stack(registers))
        y = y[moved] + update
    return _finish(-y.T, target)


def _finish(prediction: Tensor, target: Tensor | None) -> Tensor:
    return prediction if target is None else (prediction - target).square().mean()
