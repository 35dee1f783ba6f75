"""Proximal methods on w^T h w / 2 - b^T w + penalty ||w||_1, with w >= 0 on demand, and matrices of learned ones.

Methods are functions as those of `memformer_lab.solvers.optimizers`: iterates (steps, B, d) from w_0 = 0, with the step
1 / L of each task's own largest eigenvalue L.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from memformer_lab.solvers.optimizers import check_quadratics


def ista(h: Tensor, b: Tensor, steps: int, penalty: float = 0.0, *, nonnegative: bool = False) -> Tensor:
    """Proximal gradient descent (Daubechies, Defrise and De Mol, 2004); projected gradients where there is no penalty.

    Args:
        h: (B, d, d) symmetric positive semi-definite, not 0; one matrix expanded to all tasks is multiplied as one.
        b: (B, d).
        steps: at least 1.
        penalty: at least 0.
        nonnegative: whether weights are at least 0.

    Raises:
        TypeError: for dtypes other than float32 and float64.
        ValueError: for shapes that do not fit, steps < 1 or a penalty that is negative or not finite.
    """
    return _descend(h, b, steps, penalty, nonnegative, ahead=False)


def fista(h: Tensor, b: Tensor, steps: int, penalty: float = 0.0, *, nonnegative: bool = False) -> Tensor:
    """The same from a point ahead, w_k + (t_{k-1} - 1) / t_k (w_k - w_{k-1}) (Beck and Teboulle, 2009).

    t_0 = 1 and t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2; arguments and errors are those of `ista`.
    """
    return _descend(h, b, steps, penalty, nonnegative, ahead=True)


PROXIMAL: dict[str, Callable[..., Tensor]] = {"ISTA": ista, "FISTA": fista}
"""The methods by name."""


def decibels(weights: Tensor, truth: Tensor) -> Tensor:
    """Normalised mean squared error of recovery, 10 log10(sum ||w - w*||^2 / sum ||w*||^2) over tasks.

    Args:
        weights: (..., B, d), float32 or float64.
        truth: (B, d), not all 0.

    Returns:
        (...) float64.
    """
    truth = truth.double()
    made: Tensor = 10 * ((weights.double() - truth).square().sum((-2, -1)) / truth.square().sum()).log10()
    return made


def analytic_weights(dictionary: Tensor) -> Tensor:
    """W (n, d) of least ||W^T D||_F with w_i . d_i = 1 for each column: the analytic weights of ALISTA (ICLR 2019).

    In closed form w_i = G^{-1} d_i / (d_i^T G^{-1} d_i) with G = D D^T.

    Args:
        dictionary: D (n, d) of rank n.
    """
    solved: Tensor = torch.linalg.solve(dictionary @ dictionary.mT, dictionary)
    return solved / (dictionary * solved).sum(0)


def coupled_preconditioner(dictionary: Tensor, analysis: Tensor) -> Tensor:
    """A with A D^T = W^T, so that w + W^T (y - D w) = w + A (b - h w): `lfom_solve` with a = -A runs LISTA.

    Args:
        dictionary: D (n, d) of rank n.
        analysis: W (..., n, d).

    Returns:
        (..., d, d).
    """
    solved: Tensor = torch.linalg.solve(dictionary @ dictionary.mT, dictionary)
    return analysis.mT @ solved


def _descend(h: Tensor, b: Tensor, steps: int, penalty: float, nonnegative: bool, *, ahead: bool) -> Tensor:
    _check(h, b, steps, penalty)
    shared = h.stride(0) == 0 and len(h) > 0
    matrices = h[:1] if shared else h
    step = 1 / torch.linalg.eigvalsh(matrices)[:, -1:]
    level, w, before, t = penalty * step, torch.zeros_like(b), torch.zeros_like(b), 1.0
    iterates = []
    for _ in range(steps):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        start = w + (t - 1) / following * (w - before) if ahead else w
        image = start @ matrices[0] if shared else (matrices @ start.unsqueeze(-1)).squeeze(-1)
        point = start + step * (b - image)
        shrunk = point - level if nonnegative else point.abs() - level
        w, before, t = shrunk.relu() * (1 if nonnegative else point.sign()), w, following
        iterates.append(w)
    return torch.stack(iterates)


def _check(h: Tensor, b: Tensor, steps: int, penalty: float) -> None:
    check_quadratics(h, b, steps)
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be finite and at least 0, got {penalty}")
