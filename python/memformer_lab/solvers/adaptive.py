"""First-order recurrences whose coefficients follow the task: Fletcher and Reeves' momentum, exact line search.

A response-only Memformer of the cgd rule (Dutta & Sra, arXiv 2410.07263, eqs. 17-18) runs

    d_l = A_l g_l + beta_l d_{l-1},    w_{l+1} = w_l + gamma_l d_l,    g_l = b - H w_l

on weights, with A_l = -(its block of Q). Conjugate gradients are this recurrence with one A for all layers and

    beta_l = rho_l / rho_{l-1},    rho_l = g_l^T A g_l    (Fletcher and Reeves 1964)
    gamma_l = g_l^T d_l / d_l^T H d_l                     (exact line search)

which differ from task to task. The network has what they need in its response column: with c_i the response slot of
example i before the layer, a_i that of its attention and r_i that of its register,

    rho_l = -mean_i c_i a_i,    g_l^T d_l = -mean_i c_i r_i,    d_l^T H d_l = mean_i r_i^2.

`adaptive_predict` is that network, on tokens; `adaptive_solve` the same recurrence on H and b; `conjugate_gamma` gives
the coefficients in the form of lfom, whose layers add weighted gradients of all layers before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from memformer_kernels import memformer_layer, register_update
from memformer_lab.tasks.gaussian import product


class AdaptiveRun(NamedTuple):
    """What a recurrence with coefficients of the task came to.

    Attributes:
        found: after each layer, predictions (L, B, queries) of `adaptive_predict`, weights (L, B, d) of
            `adaptive_solve`.
        gamma: (L, B), the steps taken.
        beta: (L, B), the momentum.
    """

    found: Tensor
    gamma: Tensor
    beta: Tensor


def adaptive_predict(
    z: Tensor,
    q: Tensor,
    *,
    context: int,
    queries: int | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> AdaptiveRun:
    """A response-only Memformer of one head and the cgd rule whose coefficients are those of each task.

    Args:
        z: tasks (B, N, d + 1), float32 or float64.
        q: (L, 1, d, d), blocks A of Q; -A positive definite.
        context: examples n of each task.
        queries: how many of the last tokens are predicted; None: N - context.
        gamma: steps that broadcast to (L, B): (L, 1) fixes them for all tasks. None: exact line search.
        beta: momentum, likewise; None: Fletcher and Reeves.

    Returns:
        Predictions (L, B, queries) after each layer, and the coefficients (L, B).

    Raises:
        ValueError: for shapes that do not fit, as `memformer_layer` does.
        TypeError: for wrong kinds, likewise.
    """
    last = z.shape[1] - context if queries is None else queries
    coefficients = _Coefficients(z, len(q), gamma, beta)
    state, register = z, torch.zeros_like(z)
    found = []
    for layer, matrix in enumerate(q):
        attention = memformer_layer(state, matrix, context=context)[1][:, 0]
        momentum = coefficients.momentum(layer, -_mean(state, attention, context))
        register = register_update(attention, [register], momentum[None, :, None, None])
        step = coefficients.step(layer, -_mean(state, register, context), _mean(register, register, context))
        state = register_update(state, [register], step[None, :, None, None])
        found.append(-state[:, z.shape[1] - last :, -1])
    return AdaptiveRun(torch.stack(found), *coefficients.kept())


def adaptive_solve(
    h: Tensor, b: Tensor, a: Tensor, *, gamma: Tensor | None = None, beta: Tensor | None = None
) -> AdaptiveRun:
    """The same recurrence on quadratics w^T h w / 2 - b^T w, from w_0 = 0.

    Args:
        h: (B, d, d) symmetric positive semi-definite, float32 or float64.
        b: (B, d) in its range.
        a: (L, d, d) as `memformer_kernels.lfom_solve` takes it, -a positive definite.
        gamma: as `adaptive_predict`.
        beta: as `adaptive_predict`.

    Returns:
        Weights (L, B, d) after each layer, and the coefficients (L, B).

    Raises:
        ValueError: for shapes that do not fit.
    """
    if b.ndim != 2 or h.shape != (*b.shape, b.shape[1]) or a.ndim != 3 or a.shape[1:] != h.shape[1:] or not len(a):
        raise ValueError(
            f"h, b and a must be (B, d, d), (B, d) and (L, d, d) with L >= 1, got {tuple(h.shape)}, {tuple(b.shape)} "
            f"and {tuple(a.shape)}"
        )
    coefficients = _Coefficients(b, len(a), gamma, beta)
    # With the batch axis last, as the classical optimisers work.
    h, gradient = h.permute(1, 2, 0).contiguous(), b.T.contiguous()
    w, direction = torch.zeros_like(gradient), torch.zeros_like(gradient)
    found = []
    for layer, matrix in enumerate(a):
        descent = -(matrix @ gradient)
        direction = descent + coefficients.momentum(layer, (gradient * descent).sum(0)) * direction
        image = product(h, direction)
        step = coefficients.step(layer, (gradient * direction).sum(0), (direction * image).sum(0))
        w, gradient = w + step * direction, gradient - step * image
        found.append(w.T)
    return AdaptiveRun(torch.stack(found), *coefficients.kept())


def conjugate_gamma(h: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """gamma of each task with which `memformer_kernels.lfom_solve(h, b, a, gamma)` is conjugate gradients.

    Unrolled, d_l is a sum over the gradients that registers hold, r_j = A g_j, so that no momentum is left:

        gamma_{l,j} = gamma_l beta_{j+1} ... beta_l    for j <= l

    Args:
        h: as `adaptive_solve`.
        b: as `adaptive_solve`.
        a: (L, d, d), of which all layers are the same -A, as conjugate gradients preconditioned by A have them.

    Returns:
        (B, L, L, 1), 0 for j > l, and in rows of steps after a task has come to its end.

    Raises:
        ValueError: for shapes that do not fit, and for layers that differ.
    """
    if not torch.equal(a, a[:1].expand_as(a)):
        raise ValueError("a: expected the same matrix in every layer, got layers that differ")
    run = adaptive_solve(h, b, a)
    own = torch.eye(len(a), dtype=b.dtype, device=b.device)
    direction = torch.zeros_like(run.gamma.T)
    rows = []
    for layer in range(len(a)):
        direction = run.beta[layer, :, None] * direction + own[layer]
        rows.append(run.gamma[layer, :, None] * direction)
    return torch.stack(rows, dim=1).unsqueeze(-1)


def adaptive_solver(preconditioner: Tensor, layers: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`adaptive_solve` with one preconditioner A (d, d) for all layers, as a solver with a row a layer."""

    def solve(h: Tensor, b: Tensor) -> Tensor:
        return adaptive_solve(h, b, -preconditioner.to(b).expand(layers, -1, -1)).found

    return solve


class _Coefficients:
    """gamma and beta of each layer: as given, or by the rules. A task at rounding level stays where it is.

    Args:
        like: of B tasks, whose dtype and device they have.
        layers: L.
        gamma: given steps, or None.
        beta: given momentum, or None.
    """

    def __init__(self, like: Tensor, layers: int, gamma: Tensor | None, beta: Tensor | None) -> None:
        shape = (layers, like.shape[0])
        self._given = [None if one is None else one.to(like).expand(shape) for one in (gamma, beta)]
        self._floor = (like.shape[-1] * torch.finfo(like.dtype).eps) ** 2
        self._first: Tensor | None = None
        self._rho: Tensor | None = None
        self._moving: Tensor | None = None
        self._steps: list[Tensor] = []
        self._momenta: list[Tensor] = []

    def momentum(self, layer: int, rho: Tensor) -> Tensor:
        """beta (B,) of a layer, 0 in the first by the rule, from rho (B,)."""
        before = self._rho
        self._rho = rho
        self._first = rho if self._first is None else self._first
        # Written so that a comparison with NaN does not stop a task: what is not finite stays so.
        self._moving = ~(rho <= self._floor * self._first)
        given = self._given[1]
        if given is not None:
            found = given[layer]
        elif before is None:
            found = torch.zeros_like(rho)
        else:
            found = torch.where(self._moving, rho / before, 0.0)
        self._momenta.append(found)
        return found

    def step(self, layer: int, slope: Tensor, curvature: Tensor) -> Tensor:
        """gamma (B,) of a layer, from g^T d and d^T H d, (B,) each."""
        given = self._given[0]
        assert self._moving is not None
        # By selection: 0 / 0 of a task that has come to its end is not read.
        stopped = ~self._moving | (curvature <= 0)
        found = given[layer] if given is not None else torch.where(stopped, 0.0, slope / curvature)
        self._steps.append(found)
        return found

    def kept(self) -> tuple[Tensor, Tensor]:
        """gamma and beta of all layers, (L, B) each."""
        return torch.stack(self._steps), torch.stack(self._momenta)


def _mean(one: Tensor, other: Tensor, context: int) -> Tensor:
    """(B,) means over the examples of products of two response columns."""
    return (one[:, :context, -1] * other[:, :context, -1]).mean(1)
