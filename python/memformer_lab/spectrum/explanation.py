"""A trained response-only network compared with classical methods on the same tasks, as residual polynomials."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.estimates import BLOCKS, Estimate, Tally
from memformer_lab.solvers.first_order import FirstOrderMethod, Tasks, drawer, first_order_method
from memformer_lab.solvers.judging import preconditioned_steps, quadratics_of, query_errors
from memformer_lab.solvers.residual import (
    PolynomialMethod,
    chebyshev_polynomial,
    gradient_descent_polynomial,
    gradient_weights,
    heavy_ball_polynomial,
    ritz_values,
    shared_preconditioner,
)
from memformer_lab.tasks.families import FamilyTasks
from memformer_lab.tasks.seeds import generator_for

NETWORK, ONE, CGD = "the network", "the network, one polynomial", "CGD"
BEST, CHEBYSHEV = "best polynomial", "Chebyshev"
HEAVY_BALL, DESCENT = "heavy ball", "gradient descent"

_SHOWN = 200
"""Tasks whose eigenvalues and eigenvectors are looked at one by one."""

_HUGE = 1e300
"""Stands for the error of what diverges or does not exist: a search for the least one goes away from it."""


@dataclass(frozen=True)
class Explanation:
    """What a network of L layers does, all in float64.

    Attributes:
        method: the network itself, each layer with its own preconditioner.
        preconditioner: A (d, d), the one that its layers come nearest to; the eigenvalues of A H have mean 1.
        likeness: (L,) cosines between the layers' preconditioners and A.
        learned: the network with multiples of A for preconditioners. It is `method` where all of `likeness` is 1.
        rivals: classical methods of L steps with preconditioner A by name, each with the constants that are best on
            tasks of the same kind; and the best polynomial of all.
        constants: the constants of the rivals that have any, by their names.
        errors: ln of the mean squared error on the same fresh tasks, by method; CGD is preconditioned by A too.
        eigenvalues: (tasks, d) of A H, of some of those tasks.
        measured: (tasks, d) what the network leaves along each of their eigenvectors, without `learned`.
        mixed: root of the mean share of its residual that is not along them: 0 for a polynomial in A H.
        cgd_zeros: (tasks, min(L, d)) zeros of the polynomials of CGD on those tasks.
    """

    method: FirstOrderMethod
    preconditioner: Tensor
    likeness: np.ndarray
    learned: PolynomialMethod
    rivals: Mapping[str, PolynomialMethod]
    constants: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, Estimate]
    eigenvalues: np.ndarray
    measured: np.ndarray
    mixed: float
    cgd_zeros: np.ndarray

    @property
    def top(self) -> float:
        """The end of the interval [0, top] that has 99% of the eigenvalues in it."""
        return float(np.quantile(self.eigenvalues, 0.99))

    def cgd_residuals(self, x: np.ndarray) -> np.ndarray:
        """Residual polynomials of CGD at x (K,), one for each task: (tasks, K)."""
        zeros = self.cgd_zeros[:, :, None]
        factors = np.where(zeros > 0, 1 - x / np.where(zeros > 0, zeros, 1.0), 1.0)
        found: np.ndarray = factors.prod(axis=1)
        return found


class _Sample(NamedTuple):
    """Tasks in float64: h (B, d, d), b (B, d), and queries with their answers."""

    h: Tensor
    b: Tensor
    z: Tensor
    target: Tensor
    scale: float

    def errors(self, weights: Tensor) -> Tensor:
        """(B,) expected squared errors of weights (B, d)."""
        return query_errors(weights, self.z, self.target) * self.scale

    def mean_error(self, method: FirstOrderMethod) -> float:
        """Mean squared error of a method; huge where it diverges."""
        value = float(self.errors(method.solver(layers=False)(self.h, self.b)[0]).mean())
        return value if math.isfinite(value) else _HUGE


def explain(model: Memformer, tasks: Tasks, *, count: int = 4000, seed: int = 0) -> Explanation:
    """The residual polynomial of a trained response-only network, and the classical methods' on the same tasks.

    Args:
        model: response-only, heads of shared coefficients, gamma and beta without token axis.
        tasks: what it was trained on.
        count: tasks that methods are judged on; as many more choose the constants of the classical ones.
        seed: of both.

    Raises:
        ValueError: for a model that is no such network, saying why; for layers that share no positive definite
            preconditioner; if count < 1.
    """
    with torch.no_grad():
        method = _method(model)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        fitted = _drawn(model, tasks, count, generator_for("training", seed, 4))
        judged = _drawn(model, tasks, count, generator_for("evaluation", seed))
        shared = shared_preconditioner(method.a, fitted.h.mean(0))
        a = shared.preconditioner
        learned = PolynomialMethod(gradient_weights(method) * shared.scales)
        rivals, constants = _rivals(fitted, a, learned.layers)
        named = {NETWORK: method, ONE: learned.method(a)} | {name: one.method(a) for name, one in rivals.items()}
        rows = [one.solver(layers=False)(judged.h, judged.b)[0] for one in named.values()]
        rows.append(preconditioned_steps("conjugate_gradient", a, learned.layers)(judged.h, judged.b)[-1])
        errors = torch.stack([judged.errors(weights) for weights in rows])
        estimates = Tally.of(errors, max(1, count // BLOCKS)).estimates(seed)
        h, b = judged.h[:_SHOWN], judged.b[:_SHOWN]
        root = torch.linalg.cholesky(a)
        eigenvalues, along, mixed = _measured(method, h, root)
        zeros = ritz_values(root.T @ h @ root, b @ root, learned.layers)
    return Explanation(
        method,
        a,
        shared.likeness,
        learned,
        rivals,
        constants,
        dict(zip([*named, CGD], estimates, strict=True)),
        eigenvalues.numpy(),
        along.numpy(),
        mixed,
        zeros.numpy(),
    )


def _method(model: Memformer) -> FirstOrderMethod:
    """The model's method in float64 on the CPU, or why there is none."""
    # In float64 from the start: products of coefficients, such as those with gates, are not rounded to float32.
    found = first_order_method(copy.deepcopy(model).double().cpu())
    if found is None:
        if model.structure != "response-only":
            reason = f"structure 'response-only', where features stay as they are, got {model.structure!r}"
        elif model.heads > 1:
            reason = f"heads that share their coefficients, got {model.heads} of rule {model.rule!r}"
        else:
            reason = f"coefficients that are the same for all tokens, got granularity {model.granularity!r}"
        raise ValueError(f"model: only a network with a residual polynomial can be explained: expected {reason}")
    return found


def _drawn(model: Memformer, tasks: Tasks, count: int, generator: torch.Generator) -> _Sample:
    if not isinstance(tasks, FamilyTasks):  # which draws float32 alone
        tasks = dataclasses.replace(tasks, dtype=torch.float64)
    batch = drawer([model], tasks)(count, generator)
    z = batch.z.double()
    h, b = quadratics_of(z, batch.context)
    return _Sample(h.contiguous(), b.contiguous(), z, batch.target.double(), batch.query_scale)


def _rivals(sample: _Sample, a: Tensor, layers: int) -> tuple[dict[str, PolynomialMethod], dict[str, dict[str, float]]]:
    """Classical methods with the constants of the least mean error on a sample, and the best polynomial there."""
    root = torch.linalg.cholesky(a)
    values = torch.linalg.eigvalsh(root.T @ sample.h @ root)
    floor = 1e-3 * float(values.mean())
    low, high = (max(float(values[:, place].median()), floor) for place in (0, -1))
    high = max(high, 1.01 * low)
    ratio = math.sqrt(high / low)

    def best(build: Callable[..., PolynomialMethod], *start: float) -> tuple[float, ...]:
        """Positive constants, from a start, by Nelder and Mead's method on their logarithms."""

        def error(flat: np.ndarray) -> float:
            try:
                return math.log(sample.mean_error(build(*np.exp(flat)).method(a)))
            except ValueError:
                return math.log(_HUGE)

        options = {"maxiter": 150, "xatol": 1e-3, "fatol": 1e-5}
        found = minimize(error, np.log(start), method="Nelder-Mead", options=options).x
        return tuple(float(one) for one in np.exp(found))

    (step,) = best(lambda step: gradient_descent_polynomial(layers, step), 2 / (low + high))
    momentum = max(((ratio - 1) / (ratio + 1)) ** 2, 1e-3)
    ball = best(lambda *two: heavy_ball_polynomial(layers, *two), (2 / (low**0.5 + high**0.5)) ** 2, momentum)
    interval = best(lambda *two: chebyshev_polynomial(layers, *two), low, high)
    chebyshev = chebyshev_polynomial(layers, *interval)
    rivals = {
        BEST: _best_polynomial(sample, a, chebyshev),
        CHEBYSHEV: chebyshev,
        HEAVY_BALL: heavy_ball_polynomial(layers, *ball),
        DESCENT: gradient_descent_polynomial(layers, step),
    }
    constants = {
        CHEBYSHEV: dict(zip(("low", "high"), interval, strict=True)),
        HEAVY_BALL: dict(zip(("step", "momentum"), ball, strict=True)),
        DESCENT: {"step": step},
    }
    return rivals, constants


def _best_polynomial(sample: _Sample, a: Tensor, basis: PolynomialMethod) -> PolynomialMethod:
    """The polynomial of the least mean error on a sample: iterates of another method, weighted by least squares."""
    iterates = basis.method(a).solver(layers=True)(sample.h, sample.b)
    x = sample.z[:, -sample.target.shape[1] :, :-1]
    predicted = (x @ iterates.unsqueeze(-1)).flatten(1)
    solution = torch.linalg.lstsq(predicted.T, sample.target.reshape(-1, 1), driver="gelsd").solution[:, 0].numpy()
    weights = basis.weights.copy()
    # The last layer takes back what the layers before it added, and adds all moves by the solution.
    weights[-1] = solution[::-1].cumsum()[::-1] @ basis.weights - basis.weights[:-1].sum(0)
    return PolynomialMethod(weights)


def _measured(method: FirstOrderMethod, h: Tensor, root: Tensor) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues of A H (B, d), what the network leaves along each eigenvector (B, d), and what it mixes.

    Args:
        method: the network.
        h: (B, d, d).
        root: C (d, d) with A = C C^T.
    """
    values, turned = torch.linalg.eigh(root.T @ h @ root)
    vectors = root @ turned
    batch, d = values.shape
    # The method on w* = every eigenvector: their error is linear in w*.
    wide = h.repeat_interleave(d, dim=0)
    starts = vectors.mT.reshape(batch * d, d)
    found = method.solver(layers=False)(wide, (wide @ starts.unsqueeze(-1)).squeeze(-1))[0]
    left = (starts - found).view(batch, d, d).mT
    inside = turned.mT @ torch.linalg.solve_triangular(root, left, upper=False)
    along = inside.diagonal(dim1=1, dim2=2)
    whole = inside.square().sum((1, 2))
    share = 1 - along.square().sum(1) / torch.where(whole == 0, 1.0, whole)
    return values, along, math.sqrt(max(0.0, float(share.mean())))
