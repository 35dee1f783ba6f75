"""The optimum of response-only networks on Gaussian tasks: the best that training could find for a preconditioner.

With A_l = -a_l A every response-only network of L layers predicts by w = p(A H) A b, where p is a polynomial of degree
L - 1 that is the same for all tasks. LFOM reaches every p, and so do the cgd rule (a three-term recurrence) and the
linear rule wherever the zeros of q(x) = 1 - x p(x) are real: those are its steps' reciprocals. The mean squared error
is quadratic in p's coefficients, so its least value is one linear solve.

`exact_optimum` has it in closed form where whitening makes the features isotropic, with A = Sigma^-1: for w* ~ N(0,
Sigma^-1), or Sigma a multiple of I. No direction is special there, so traceless changes of an A_l leave the error
unchanged to first order; that no other A does better is not proved. `sampled_form` is for any other A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from scipy.optimize import minimize
from torch import Generator, Tensor

from memformer_lab.solvers.estimates import CHUNK
from memformer_lab.solvers.first_order import FirstOrderMethod
from memformer_lab.solvers.wishart import jacobi_matrix, solve_exactly, spectral_moments
from memformer_lab.tasks.covariances import CovarianceTasks
from memformer_lab.tasks.gaussian import GaussianTasks, Quadratics
from memformer_lab.tasks.seeds import generator_for

_STARTS = 4


@dataclass(frozen=True)
class Optimum:
    """A polynomial p(x) = sum_j weights_j prod_{i<j} (1 - x / nodes_i) of degree L - 1, and the method w = p(A H) A b.

    Attributes:
        error: the expected squared error of a random query: exact, or of the tasks that it was fitted to.
        preconditioner: A, (d, d) float64, symmetric positive definite where it descends.
        nodes: (L,) float64.
        weights: (L,) float64.
    """

    error: float
    preconditioner: Tensor
    nodes: Tensor
    weights: Tensor

    @property
    def log_error(self) -> float:
        """Natural logarithm of the error."""
        return math.log(self.error)

    def method(self, dtype: torch.dtype = torch.float64) -> FirstOrderMethod:
        """An LFOM of L layers that runs it: gradient steps 1 / nodes, and weights of all registers at the last layer.

        Where the weights are those of the gradient steps, gamma is None and the method has no memory.
        """
        steps = 1 / self.nodes
        a = -self.preconditioner * steps[:, None, None]
        if torch.allclose(self.weights, steps, rtol=1e-14, atol=0.0):
            return FirstOrderMethod(a.to(dtype), None, None)
        # A register is its step times prod (1 - x / nodes), and the iterate before the last layer their sum.
        size = len(steps)
        gamma = torch.eye(size, dtype=torch.float64, device="cpu")
        gamma[-1] = self.weights / steps - (torch.arange(size, device="cpu", dtype=torch.int64) < size - 1).double()
        return FirstOrderMethod(a.to(dtype), gamma[..., None].to(dtype), None)


def exact_optimum(tasks: GaussianTasks, layers: int) -> Optimum:
    """The best p for A = Sigma^-1, without sampling.

    Let mu be the mean spectral measure of the whitened H at a random direction, and s = noise^2 / n over the variance
    of the whitened weights. The best p has (x + s) p(x) = 1 - P(x) / P(-s), with P the orthogonal polynomial of degree
    L of x dmu: gradient descent on the problem with penalty s, with steps 1 / (z + s) at the zeros z of P, which are
    real. Without noise it needs no memory, and its error is the Christoffel function of mu at 0.

    Raises:
        ValueError: unless w* ~ N(0, Sigma^-1) or Sigma is a multiple of I, or if layers < 1.
    """
    variance = _whitened_variance(tasks)
    moments = spectral_moments(tasks.d, tasks.n, 2 * layers)
    nodes = torch.linalg.eigvalsh(jacobi_matrix(moments[1:], layers)).flip(0)
    # Large and small steps in turn keep the iterates small on the way.
    nodes = nodes[_spread_order(nodes)]
    penalty = Fraction(tasks.noise) ** 2 / tasks.n / variance
    shrunk = 1 + float(penalty) / nodes
    weights = 1 / nodes if not penalty else 1 / (nodes * shrunk.cumprod(0))
    gram, target = _exact_form(tasks, tasks.n, layers)
    left = _exact_error(solve_exactly(gram, target), gram, target)
    return Optimum(float(tasks.d * variance * left), torch.linalg.inv(tasks.covariance), nodes, weights)


def common_errors(tasks: GaussianTasks, lengths: Sequence[int], layers: int, places: Sequence[int]) -> list[float]:
    """Exact errors at several context lengths of the one p whose mean error over some lengths is least.

    As `exact_optimum`, for a network that is trained on contexts of many lengths, each as often.

    Args:
        tasks: the distribution; its own n is not read.
        lengths: context lengths that p is the best for, together.
        layers: L.
        places: context lengths that it is judged at, any.

    Returns:
        The expected squared error of a random query at each of `places`.

    Raises:
        ValueError: unless w* ~ N(0, Sigma^-1) or Sigma is a multiple of I, for no lengths, or if layers < 1.
    """
    variance = _whitened_variance(tasks)
    if not lengths or layers < 1:
        raise ValueError(f"expected at least one length and one layer, got {len(lengths)} lengths and {layers} layers")
    forms = {n: _exact_form(tasks, n, layers) for n in sorted({*lengths, *places})}
    one = range(layers)
    gram = [[sum((forms[n][0][j][k] for n in lengths), Fraction(0)) for k in one] for j in one]
    target = [sum((forms[n][1][j] for n in lengths), Fraction(0)) for j in one]
    solution = solve_exactly(gram, target)
    return [float(tasks.d * variance * _exact_error(solution, *forms[n])) for n in places]


def _whitened_variance(tasks: GaussianTasks) -> Fraction:
    """The variance of a whitened weight, of tasks whose whitened features are isotropic."""
    if tasks.weights != "inverse" and len(set(tasks.scales)) > 1:
        raise ValueError(f"isotropic weights need equal scales for an exact optimum, got scales {tasks.scales}")
    return Fraction(1.0 if tasks.weights == "inverse" else tasks.scales[0] ** 2)


def _exact_form(tasks: GaussianTasks, n: int, layers: int) -> tuple[list[list[Fraction]], list[Fraction]]:
    """The quadratic form of p's monomial coefficients c: the error is d times 1 - 2 target . c + c^T gram c."""
    moments = spectral_moments(tasks.d, n, 2 * layers)
    penalty = Fraction(tasks.noise) ** 2 / n / _whitened_variance(tasks)
    gram = [[moments[j + k + 2] + penalty * moments[j + k + 1] for k in range(layers)] for j in range(layers)]
    return gram, [moments[j + 1] for j in range(layers)]


def _exact_error(
    solution: Sequence[Fraction], gram: Sequence[Sequence[Fraction]], target: Sequence[Fraction]
) -> Fraction:
    """1 - 2 target . c + c^T gram c."""
    slope = [
        sum((a * c for a, c in zip(row, solution, strict=True)), Fraction(0)) - 2 * t
        for row, t in zip(gram, target, strict=True)
    ]
    return 1 + sum((c * g for c, g in zip(solution, slope, strict=True)), Fraction(0))


@dataclass(frozen=True)
class QuadraticForm:
    """The mean squared error of w = p(A H) A b over a sample of tasks, for any p of degree < L.

    p = sum_j c_j prod_{i<j} (1 - x / nodes_i) has the error constant - 2 target . c + c^T gram c.

    Attributes:
        preconditioner: A, (d, d) float64.
        nodes: (L,) float64, of the basis, which keeps `gram` well conditioned.
        gram: (L, L) float64.
        target: (L,) float64.
        constant: the error of predicting 0.
    """

    preconditioner: Tensor
    nodes: Tensor
    gram: Tensor
    target: Tensor
    constant: float

    def error(self, coefficients: Tensor) -> Tensor:
        """The error of p, () float64, differentiable."""
        return self.constant - 2 * self.target @ coefficients + coefficients @ self.gram @ coefficients

    def best(self) -> Optimum:
        """The best p: what LFOM with this preconditioner can reach."""
        # One lost direction of a nearly singular Gram matrix costs nothing in a least-squares solution.
        coefficients = torch.linalg.lstsq(self.gram, self.target[:, None], driver="gelsd").solution[:, 0]
        return self._optimum(coefficients)

    def best_descent(self, seed: int = 0) -> Optimum:
        """The best known p whose q(x) = 1 - x p(x) has real zeros: gradient steps, each of its own size, no memory.

        The least of L-BFGS from the nodes and from random steps about them; which is not proved to be the least of all.
        """
        size = len(self.nodes)
        generator = generator_for("initialisation", seed)
        starts = [1 / self.nodes]
        for _ in range(_STARTS - 1):
            noise = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
            starts.append(starts[0] * (0.5 * noise).exp())

        def fall(flat: Sequence[float]) -> tuple[float, object]:
            steps = torch.tensor(flat, dtype=torch.float64, device="cpu", requires_grad=True)
            value = self.error(self._of_steps(steps))
            (slope,) = torch.autograd.grad(value, steps)
            return float(value.detach()), slope.numpy()

        options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-12}
        runs = [minimize(fall, start.numpy(), jac=True, method="L-BFGS-B", options=options) for start in starts]
        steps = torch.tensor(min(runs, key=lambda one: float(one.fun)).x, dtype=torch.float64, device="cpu")
        error = float(self.error(self._of_steps(steps)))
        return Optimum(error, self.preconditioner, 1 / steps, steps)

    def _of_steps(self, steps: Tensor) -> Tensor:
        """Coefficients of p = sum_l steps_l prod_{i<l} (1 - steps_i x)."""
        size = len(self.nodes)
        residual = torch.eye(size, dtype=torch.float64, device="cpu")[0]
        found = torch.zeros_like(residual)
        for step in steps:
            found = found + step * residual
            # x times basis element j is nodes_j times (element j - element j + 1); the last never has another.
            image = self.nodes * residual
            residual = residual - step * (image - torch.cat([image.new_zeros(1), image[:-1]]))
        return found

    def _optimum(self, coefficients: Tensor) -> Optimum:
        return Optimum(float(self.error(coefficients)), self.preconditioner, self.nodes, coefficients)


Sample = Callable[[int, Generator], tuple[Quadratics, Tensor]]
"""(batch, generator) -> tasks in float64, and C with Sigma = C C^T, (d, d) or one for each task."""


def sampled_form(
    tasks: GaussianTasks | CovarianceTasks, preconditioner: Tensor, layers: int, count: int, seed: int
) -> QuadraticForm:
    """The quadratic form of a preconditioner, by `count` tasks in float64 that no model is judged on.

    Args:
        tasks: the distribution, of any dtype.
        preconditioner: A, (d, d) symmetric positive definite.
        layers: L.
        count: tasks, at least 1.
        seed: of the tasks.
    """
    a, sample = preconditioner.double(), _sample(replace(tasks, dtype=torch.float64))
    generator = generator_for("training", seed, 2)
    nodes = _chebyshev_nodes(sample, a, layers, seed)
    gram = torch.zeros(layers, layers, dtype=torch.float64, device="cpu")
    target, constant, left = gram.new_zeros(layers), 0.0, count
    while left:
        batch = min(left, CHUNK)
        quadratics, factor = sample(batch, generator)
        h = quadratics.h.contiguous()
        wanted = _times(factor.mT, quadratics.weights)
        column, basis = quadratics.b @ a.T, []
        for node in nodes:
            basis.append(_times(factor.mT, column))
            column = column - _times(h, column) @ a.T / node
        rows = torch.stack(basis).flatten(1)
        gram += rows @ rows.T
        target += rows @ wanted.flatten()
        constant += float(wanted.square().sum())
        left -= batch
    return QuadraticForm(a, nodes, gram / count, target / count, constant / count)


def _sample(tasks: GaussianTasks | CovarianceTasks) -> Sample:
    if isinstance(tasks, CovarianceTasks):
        return tasks.quadratics
    return lambda batch, generator: (tasks.quadratics(batch, generator), tasks.factor)


def _chebyshev_nodes(sample: Sample, preconditioner: Tensor, layers: int, seed: int) -> Tensor:
    """Chebyshev's points of the interval that holds the spectra of A H of most tasks, in a stable order."""
    h = sample(1000, generator_for("training", seed, 1))[0].h
    root = torch.linalg.cholesky(preconditioner)
    values = torch.linalg.eigvalsh(root.T @ h @ root)
    low, high = float(values[:, 0].median()), float(values[:, -1].median())
    place = torch.arange(layers, dtype=torch.float64, device="cpu")
    nodes = 0.5 * (low + high) + 0.5 * (high - low) * ((place + 0.5) * math.pi / layers).cos()
    return nodes[_spread_order(nodes)]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _spread_order(points: Tensor) -> list[int]:
    """Leja's order: each point is the one of the largest product of distances to those before it."""
    values = points.tolist()
    order = [max(range(len(values)), key=lambda i: abs(values[i]))]
    while len(order) < len(values):
        rest = (i for i in range(len(values)) if i not in order)
        order.append(max(rest, key=lambda i: sum(math.log(abs(values[i] - values[j]) + 1e-300) for j in order)))
    return order
