"""Residual polynomials: what first-order methods leave of w* along each eigenvalue of A H.

A method with fixed coefficients and one preconditioner A for all layers,

    w_{l+1} = w_l + sum_{i<=l} weights_{l,i} A g_i,    g_i = b - H w_i,    w_0 = 0,

leaves w* - w_l = q_l(A H) w* where b = H w*, with q_0 = 1 and q_{l+1}(x) = q_l(x) - x sum_i weights_{l,i} q_i(x). All
that it does is in q_L: 1 / z for its zeros z are the steps of the gradient descent that it equals; those of a pair of
complex zeros only together. Conjugate gradients have such a polynomial too, another one for each task: its zeros are
the Ritz values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor

from memformer_lab.solvers.first_order import FirstOrderMethod

_TINY = 1e-12  # of the largest coefficient: a degree below it is not there


class Recurrence(NamedTuple):
    """w_{l+1} = w_l + steps_l A g_l + momenta_l (w_l - w_{l-1}): the nearest to a method, layer by layer.

    Attributes:
        steps: (L,).
        momenta: (L,), 0 in the first layer.
        misfits: (L,) what it leaves of each layer's move, as a share of its norm over the interval: 0 where the method
            is such a recurrence.
    """

    steps: np.ndarray
    momenta: np.ndarray
    misfits: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether the method is this recurrence, to rounding."""
        return bool((self.misfits < 1e-8).all())


@dataclass(frozen=True)
class PolynomialMethod:
    """A first-order method with one preconditioner.

    Attributes:
        weights: (L, L) float64, lower triangular: layer l adds weights[l, i] A g_i.
    """

    weights: np.ndarray

    @classmethod
    def of_recurrence(cls, gamma: Sequence[float], beta: Sequence[float]) -> PolynomialMethod:
        """d_l = A g_l + beta_l d_{l-1}, w_{l+1} = w_l + gamma_l d_l: the cgd rule. Both are (L,)."""
        return cls(np.diag(np.asarray(gamma, dtype=float)) @ _kept(np.asarray(beta, dtype=float)))

    @property
    def layers(self) -> int:
        """L."""
        return len(self.weights)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """q_0, ..., q_L at x (K,): (L + 1, K)."""
        found = [np.ones_like(x, dtype=float)]
        for layer, row in enumerate(self.weights):
            found.append(found[-1] - x * (row[: layer + 1] @ np.stack(found)))
        return np.stack(found)

    def zeros(self, top: float = 2.0) -> np.ndarray:
        """The zeros of q_L, complex, by increasing real part; fewer than L where its degree is lower.

        Args:
            top: q_L is interpolated on [0, top], the interval of the eigenvalues: rounding is told from a degree there.
        """
        found = Chebyshev.interpolate(lambda x: self.residuals(x)[-1], self.layers, domain=[0.0, top])
        roots: np.ndarray = found.trim(_TINY * float(np.abs(found.coef).max())).roots().astype(complex)
        return roots[np.lexsort((roots.imag, roots.real))]

    def recurrence(self, top: float = 2.0) -> Recurrence:
        """The three-term recurrence that is nearest to each layer's move, by least squares on [0, top]."""
        place = np.cos((np.arange(8 * self.layers + 8) + 0.5) * math.pi / (8 * self.layers + 8))
        x = 0.5 * top * (1 + place)
        q = self.residuals(x)
        rows = []
        for layer in range(self.layers):
            move = q[layer + 1] - q[layer]
            columns = [-x * q[layer]] + ([q[layer] - q[layer - 1]] if layer else [])
            solution = np.linalg.lstsq(np.stack(columns, axis=1), move, rcond=None)[0]
            norm = float(np.linalg.norm(move))
            left = float(np.linalg.norm(move - solution @ np.stack(columns)))
            rows.append((solution[0], solution[1] if layer else 0.0, left / norm if norm else 0.0))
        return Recurrence(*np.array(rows).T)

    def method(self, preconditioner: Tensor) -> FirstOrderMethod:
        """The method with a preconditioner A (d, d), in its dtype and on its device."""
        weights = torch.from_numpy(self.weights).to(preconditioner)
        return FirstOrderMethod(-preconditioner.expand(self.layers, -1, -1), weights.unsqueeze(-1), None)


def gradient_descent_polynomial(layers: int, step: float) -> PolynomialMethod:
    """Gradient descent with a constant step."""
    return PolynomialMethod.of_recurrence([step] * layers, [0.0] * layers)


def heavy_ball_polynomial(layers: int, step: float, momentum: float) -> PolynomialMethod:
    """Polyak's heavy ball, w_{k+1} = w_k + step A g_k + momentum (w_k - w_{k-1}), with both constant."""
    return PolynomialMethod.of_recurrence([step] * layers, [momentum] * layers)


def chebyshev_polynomial(layers: int, low: float, high: float) -> PolynomialMethod:
    """Chebyshev's iteration: of all polynomials of this degree it has the least maximum of |q_L| on [low, high].

    q_L(x) = T_L((high + low - 2 x) / (high - low)) / T_L((high + low) / (high - low)), by Saad's recurrence.

    Raises:
        ValueError: unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"expected 0 < low < high, got low={low} and high={high}")
    centre, radius = 0.5 * (high + low), 0.5 * (high - low)
    gamma, beta = [1 / centre], [0.0]
    for layer in range(1, layers):
        beta.append((0.5 if layer == 1 else 0.25) * (radius * gamma[-1]) ** 2)
        gamma.append(1 / (centre - beta[-1] / gamma[-1]))
    return PolynomialMethod.of_recurrence(gamma, beta)


def gradient_weights(method: FirstOrderMethod) -> np.ndarray:
    """c (L, L) with w_{l+1} = w_l - sum_{i<=l} c_{l,i} a_i g_i: registers taken apart into gradients."""
    layers = len(method.a)
    gamma, beta = np.eye(layers), np.zeros(layers)
    if method.gamma is not None:
        gamma = np.tril(method.gamma.detach().double().cpu().expand(layers, layers, 1)[..., 0].numpy())
    if method.beta is not None:
        beta = method.beta.detach().double().cpu().expand(layers, 1)[:, 0].numpy()
    found: np.ndarray = gamma @ _kept(beta)
    return found


class Shared(NamedTuple):
    """The one preconditioner that a network's layers come nearest to.

    Attributes:
        preconditioner: A (d, d) float64, symmetric positive definite; the eigenvalues of A H have mean 1.
        scales: (L,) float64: -a_l is nearest to scales_l A.
        likeness: (L,) float64: cosines between the two. 1 where a layer's is a multiple of A.
    """

    preconditioner: Tensor
    scales: np.ndarray
    likeness: np.ndarray


def shared_preconditioner(a: Tensor, mean: Tensor) -> Shared:
    """The best A of a network: -a_l near scales_l A for all layers, which count alike.

    Near is what it does to H: matrices are compared in coordinates in which the mean of H is I.

    Args:
        a: (L, d, d) of a `FirstOrderMethod`.
        mean: the mean of H over tasks, (d, d) symmetric positive definite.

    Raises:
        ValueError: if what the layers share is not positive definite, so that A H has no eigenvalues to speak of.
    """
    values, vectors = torch.linalg.eigh(mean.double())
    if not float(values[0]) > 0:
        raise ValueError(f"mean must be positive definite, got one with the smallest eigenvalue {float(values[0]):.3g}")
    root, inverse = vectors * values.sqrt(), vectors / values.sqrt()
    whitened = -(root.T @ a.detach().double().cpu() @ root)
    norms = whitened.flatten(1).norm(dim=1)
    symmetric = 0.5 * (whitened + whitened.mT) / torch.where(norms == 0, 1.0, norms)[:, None, None]
    core = torch.linalg.svd(symmetric.flatten(1), full_matrices=False).Vh[0].view_as(mean)
    core = core * core.trace().sign()
    if not float(torch.linalg.eigvalsh(core)[0]) > 0:
        raise ValueError("the layers share no positive definite preconditioner: train the network first")
    core = core * (len(core) / core.trace())
    products = (whitened * core).flatten(1).sum(1)
    likeness = products.abs() / (core.norm() * torch.where(norms == 0, 1.0, norms))
    return Shared(inverse @ core @ inverse.T, (products / core.square().sum()).numpy(), likeness.numpy())


def whitened_likeness(a: Tensor, factor: Tensor) -> float:
    """The cosine between C^T A C and I, for Sigma = C C^T: 1 where A is a positive multiple of the inverse of Sigma.

    Args:
        a: A (d, d).
        factor: C (d, d).
    """
    whitened = factor.T @ a @ factor
    return float(whitened.trace() / (whitened.norm() * math.sqrt(len(whitened))))


def ritz_values(h: Tensor, b: Tensor, steps: int) -> Tensor:
    """Zeros of the residual polynomials of conjugate gradients: (B, k) ascending, k = min(steps, d).

    By Lanczos's method, every vector made orthogonal twice. Where it ends early, values that are missing are 0.

    Args:
        h: (B, d, d) symmetric positive semi-definite.
        b: (B, d).
        steps: of conjugate gradients from w = 0.
    """
    basis: list[Tensor] = []
    vector, floor = b, b.norm(dim=1) * (b.shape[1] * torch.finfo(b.dtype).eps)
    for _ in range(min(steps, b.shape[1])):
        for _ in range(2):
            for other in basis:
                vector = vector - (vector * other).sum(1, keepdim=True) * other
        norm = vector.norm(dim=1)
        kept = torch.where(norm > floor, norm.reciprocal(), 0.0)
        basis.append(vector * kept.unsqueeze(1))
        vector = (h @ basis[-1].unsqueeze(-1)).squeeze(-1)
        floor = vector.norm(dim=1) * (b.shape[1] * torch.finfo(b.dtype).eps)
    q = torch.stack(basis, dim=-1)
    values: Tensor = torch.linalg.eigvalsh(q.mT @ h @ q)
    return values


def _kept(beta: np.ndarray) -> np.ndarray:
    """(L, L): what register l holds of gradient i, prod_{i<k<=l} beta_k."""
    found = np.eye(len(beta))
    for layer in range(1, len(beta)):
        found[layer, :layer] = beta[layer] * found[layer - 1, :layer]
    return found
