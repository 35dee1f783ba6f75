"""Networks whose features move, with multiples of Sigma^-1 and I for matrices: how good a few numbers can be.

Whitening makes tasks with w* ~ N(0, Sigma^-1) isotropic. There every layer of a network with A = Sigma^-1 and Bm = I
keeps features and responses functions of the whitened H: with eigenvalue s, features X p(s) and residuals X r(s) w*,
p = r = 1 at first. Register j holds the features p^3 s and the responses p^2 s r, and layer l adds weighted registers.
So the expected squared error is E sum_i r(s_i)^2, over the eigenvalues of a Wishart matrix.

That is the integral of a polynomial, which Gauss's quadrature has exactly, where a sample of any size that can be drawn
misses the rare spectra that decide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.wishart import jacobi_matrix, spectral_moments
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for, seed_for

_GROWTHS = (1.0, 1.5, 2.0, 3.0, 4.0)

_HUGE = 1e100
"""Beyond this a residual is as good as infinite; its square is finite still."""


@dataclass(frozen=True)
class Spectrum:
    """A measure on eigenvalues: the expectation of sum_i f(s_i) is sum_k weights_k f(values_k)."""

    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class SpectralNetwork:
    """Weights of registers in every layer.

    Attributes:
        features: (L, L), lower triangular; the last row is never read and 0.
        responses: (L, L), lower triangular. Both diagonal: no memory, which is GD++.
    """

    features: np.ndarray
    responses: np.ndarray

    def residual(self, values: np.ndarray) -> np.ndarray:
        """r at each eigenvalue: what is left of w* along its direction."""
        return _run(self.features, self.responses, values, [])[0]

    def error(self, spectrum: Spectrum) -> float:
        """The expected squared error under a measure."""
        return float(spectrum.weights @ self.residual(spectrum.values) ** 2)

    def network(self, tasks: GaussianTasks, dtype: torch.dtype = torch.float32) -> Memformer:
        """The Memformer that it is on the tasks' own features."""
        layers = len(self.features)
        model = Memformer(tasks.d, layers, rule="lfom", structure="block", device="cpu", dtype=dtype)
        assert model.p is not None
        assert model.gamma is not None
        with torch.no_grad():
            model.q.copy_(torch.linalg.inv(tasks.covariance))
            model.p.copy_(torch.eye(tasks.d, dtype=dtype, device="cpu"))
            model.gamma[..., :-1] = torch.from_numpy(self.features)[:, :, None, None, None]
            model.gamma[..., -1] = torch.from_numpy(self.responses)[:, :, None, None]
        return model


def folded(model: Memformer) -> Memformer:
    """GD++ without memory that is the same function as an lfom network whose layers weight their own register alone.

    A' = gamma_y A and Bm' = diag(gamma_x) Bm / gamma_y, so scales of a layer's step are no more than another
    parametrisation of its matrices.

    Raises:
        ValueError: if the model is not such a network, or a layer's gamma_y is 0 and its gamma_x is not.
    """
    gamma = model.stack_arguments()["gamma"]
    if model.p is None or model.heads != 1 or gamma is None or gamma.ndim != 5 or gamma.shape[3] != 1:
        raise ValueError("expected a network of one head with Bm free and weights of registers by feature")
    gamma = gamma[:, :, 0, 0].expand(-1, -1, model.d + 1)
    own = gamma.diagonal().mT
    earlier = torch.ones(model.layers, model.layers, dtype=torch.bool, device=gamma.device).tril(-1)
    if bool((gamma[earlier] != 0).any()) or bool((own[:-1, -1] == 0).any()):
        raise ValueError("expected layers that weight their own register alone, and its responses with no 0")
    plain = Memformer(
        model.d, model.layers, rule="linear", structure="block", device=model.q.device, dtype=model.q.dtype
    )
    assert plain.p is not None
    with torch.no_grad():
        plain.q.copy_(own[:, -1, None, None, None] * model.q)
        # The last layer's features are never read.
        scale = own[:, :-1] / torch.where(own[:, -1:] == 0, 1.0, own[:, -1:])
        plain.p.copy_(scale[:, None, :, None] * model.p)
    return plain


def exact_spectrum(d: int, n: int, layers: int) -> Spectrum:
    """Gauss's quadrature for the eigenvalues of H = X^T X / n: exact for the squared residual of so many layers."""
    degree = 2 * sum(3**layer for layer in range(layers))
    size = degree // 2 + 1
    values, vectors = torch.linalg.eigh(jacobi_matrix(spectral_moments(d, n, 2 * size - 1), size))
    return Spectrum(values.numpy(), (d * vectors[0].square()).numpy())


def sampled_spectrum(d: int, n: int, count: int, seed: int) -> Spectrum:
    """The eigenvalues of `count` tasks that no model is judged on."""
    drawn = GaussianTasks.isotropic(d, n, dtype=torch.float64).quadratics(count, generator_for("training", seed, 3))
    values = torch.linalg.eigvalsh(drawn.h.contiguous()).flatten().numpy()
    return Spectrum(values, np.full(len(values), 1 / count))


def best_network(
    spectrum: Spectrum, layers: int, *, memory: bool, starts: Sequence[SpectralNetwork] = (), random: int = 40
) -> SpectralNetwork:
    """The weights of the least expected squared error that Levenberg and Marquardt's method finds.

    Args:
        spectrum: the measure.
        layers: L.
        memory: whether layers weight earlier registers too.
        starts: where to begin; none: from layers whose weights grow geometrically, and from `random` starts near those.
        random: how many.
    """
    free = np.tri(layers, dtype=bool) if memory else np.eye(layers, dtype=bool)
    places = [(kind, int(i), int(j)) for kind in (0, 1) for i, j in np.argwhere(free[: layers - 1 + kind])]
    scale = np.sqrt(spectrum.weights)

    def parts(flat: np.ndarray) -> np.ndarray:
        filled = np.zeros((2, layers, layers))
        for value, place in zip(flat, places, strict=True):
            filled[place] = value
        return filled

    def run(flat: np.ndarray, order: int) -> np.ndarray:
        """Weighted residuals, or with order 1 their derivatives; what overflows is huge."""
        features, responses = parts(flat)
        with np.errstate(over="ignore", invalid="ignore"):
            found = scale * _run(features, responses, spectrum.values, places if order else [])[order]
        finite: np.ndarray = np.nan_to_num(np.clip(found, -_HUGE, _HUGE), nan=_HUGE).T
        return finite

    begin = [np.array([(one.features, one.responses)[kind][i, j] for kind, i, j in places]) for one in starts]
    if not starts:
        begin = [np.array([-0.3 * growth**i * (i == j) for _, i, j in places]) for growth in _GROWTHS]
        generator = np.random.default_rng(seed_for("initialisation", 0))
        near = [begin[k % len(begin)] for k in range(random)]
        begin += [start * np.exp(0.4 * generator.standard_normal(len(start))) for start in near]
    tolerances = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-14}
    fits = [
        least_squares(
            lambda flat: run(flat, 0),
            start,
            jac=lambda flat: run(flat, 1),
            method="lm",
            x_scale="jac",
            max_nfev=400,
            **tolerances,
        )
        for start in begin
    ]
    features, responses = parts(min(fits, key=lambda one: float(one.cost)).x)
    return SpectralNetwork(features, responses)


def _run(
    features: np.ndarray, responses: np.ndarray, s: np.ndarray, places: Sequence[tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """r at each eigenvalue (K,), and its derivatives by the weights at `places` (P, K).

    Args:
        features: (L, L).
        responses: (L, L).
        s: (K,).
        places: of weights: 0 for features or 1 for responses, layer, register.
    """
    index = {place: k for k, place in enumerate(places)}
    state = np.ones((2, len(s)))
    slope = np.zeros((2, len(places), len(s)))
    registers, changes = [], []
    for layer in range(len(features)):
        (p, r), (dp, dr) = state, slope
        registers.append((p**3 * s, p * p * s * r))
        changes.append((3 * p * p * s * dp, 2 * p * s * r * dp + p * p * s * dr))
        state, slope = state.copy(), slope.copy()
        for kind, weights in enumerate((features, responses)):
            for j in range(layer + 1):
                if weights[layer, j] != 0:
                    state[kind] += weights[layer, j] * registers[j][kind]
                    slope[kind] += weights[layer, j] * changes[j][kind]
                if (kind, layer, j) in index:
                    slope[kind, index[kind, layer, j]] += registers[j][kind]
    return state[1], slope[1]
