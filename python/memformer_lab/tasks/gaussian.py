"""Random linear regression tasks: as tokens, as quadratics, and as the fewest tokens that carry the same statistics.

A task is x ~ N(0, Sigma), y = x . w* + sigma * noise. Everything is drawn from an explicit `torch.Generator`, on the
generator's device. Nothing here depends on the global random state, except that a draw of another batch size is another
draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Generator, Tensor

from memformer_kernels import GaussianStatistics, GaussianTokens

# Uniforms of float32 are multiples of 2^-24, so a product of five in (0, 1] is at least 2^-120 and stays normal.
_UNIFORMS_PER_LOG = 5

_MOST_UNIFORMS = 256  # degrees of freedom from which rejection is quicker


@dataclass(frozen=True)
class TaskBatch:
    """A batch of in-context regression tasks.

    Attributes:
        z: (B, N, d+1) tokens as rows: context rows (features, response) first, then query rows with response 0.
        target: (B, queries) responses of the query rows without response noise.
        weights: (B, d) the true weights w*.
        context: number of labelled examples n.
        query_scale: the mean squared error over the query rows times this is an unbiased estimate of the expected
            squared error of one random query. 1 for random queries; d where the queries are integrated out.
    """

    z: Tensor
    target: Tensor
    weights: Tensor
    context: int
    query_scale: float = 1.0


@dataclass(frozen=True)
class Quadratics:
    """A batch of least-squares problems w^T h w / 2 - b^T w, without their examples.

    Attributes:
        h: (B, d, d) X^T X / n.
        b: (B, d) X^T y / n.
        weights: (B, d) the true weights w*.

    The sampler stores them with the batch axis last (these are transposed views), which the batched optimisers read
    without a copy; call `.contiguous()` for the usual layout.
    """

    h: Tensor
    b: Tensor
    weights: Tensor


@dataclass(frozen=True)
class GaussianTasks:
    """Tasks with Gaussian features x ~ N(0, Sigma), Sigma = U diag(scales)^2 U^T, and y = x . w* + noise * N(0, 1).

    Attributes:
        d: number of features.
        n: number of labelled examples in a context.
        scales: d positive standard deviations along the axes of the rotation U.
        rotation_seed: seed of the one Haar-distributed rotation U; None is U = I.
        weights: "isotropic", w* ~ N(0, I), or "inverse", w* ~ N(0, Sigma^-1).
        noise: standard deviation of the response noise, >= 0. Queries carry none.
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int
    n: int
    scales: tuple[float, ...]
    rotation_seed: int | None = None
    weights: Literal["inverse", "isotropic"] = "isotropic"
    noise: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, self.dtype)
        if len(self.scales) != self.d or not all(0 < s < math.inf for s in self.scales):
            raise ValueError(f"scales must be d={self.d} positive finite numbers, got {self.scales}")
        if self.weights not in ("inverse", "isotropic"):
            raise ValueError(f"weights must be 'inverse' or 'isotropic', got {self.weights!r}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and >= 0, got {self.noise}")

    @classmethod
    def nonisotropic(cls, n: int = 20, *, rotation_seed: int = 0, dtype: torch.dtype = torch.float32) -> GaussianTasks:
        """The non-isotropic tasks of arXiv 2410.07263: d = 5, scales (1, 1, 1/2, 1/4, 1), w* ~ N(0, Sigma^-1)."""
        return cls(5, n, (1.0, 1.0, 0.5, 0.25, 1.0), rotation_seed, "inverse", dtype=dtype)

    @classmethod
    def isotropic(cls, d: int = 5, n: int = 20, *, dtype: torch.dtype = torch.float32) -> GaussianTasks:
        """x ~ N(0, I) and w* ~ N(0, I)."""
        return cls(d, n, (1.0,) * d, dtype=dtype)

    @cached_property
    def rotation(self) -> Tensor:
        """The orthogonal U, (d, d) float64 on the CPU."""
        if self.rotation_seed is None:
            return torch.eye(self.d, dtype=torch.float64, device="cpu")
        generator = torch.Generator().manual_seed(self.rotation_seed)
        q, r = torch.linalg.qr(
            torch.randn(self.d, self.d, generator=generator, dtype=torch.float64, device=generator.device)
        )
        # Without the signs of R's diagonal, Q is not Haar distributed (Mezzadri, math-ph/0609050).
        rotation: Tensor = q * r.diagonal().sign()
        return rotation

    @cached_property
    def factor(self) -> Tensor:
        """C = U diag(scales) with Sigma = C C^T, (d, d) float64 on the CPU."""
        return self.rotation * torch.tensor(self.scales, dtype=torch.float64, device="cpu")

    @cached_property
    def covariance(self) -> Tensor:
        """Sigma, (d, d) float64 on the CPU."""
        covariance: Tensor = self.factor @ self.factor.T
        return covariance

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """Draw every example and every query: z (batch, n + queries, d + 1).

        Raises:
            ValueError: if batch < 0 or queries < 0.
        """
        check_batch(batch, queries)
        weights = self._draw_weights(batch, generator).T.contiguous()
        x = self._normal(generator, batch, self.n + queries, self.d) @ self._on(generator, self.factor).T
        z = torch.cat([x, x @ weights.unsqueeze(-1)], dim=-1)
        target = z[:, self.n :, -1].clone()
        z[:, self.n :, -1] = 0
        if self.noise:
            z[:, : self.n, -1] += self.noise * self._normal(generator, batch, self.n)
        return TaskBatch(z=z, target=target, weights=weights, context=self.n)

    def quadratics(self, batch: int, generator: Generator) -> Quadratics:
        """Draw H, b and w* directly by the Bartlett decomposition; no example exists.

        n H ~ Wishart_n(Sigma): H = C K K^T C^T / n with K lower triangular, K_ii ~ chi(n - i) and K_ij ~ N(0, 1) below
        the diagonal, all independent. Given X, b - H w* is Gaussian with covariance sigma^2 H / n, hence
        b = H w* + sigma C K e / n with e ~ N(0, I). Same distribution as `tokens`, from about d n / 2 uniforms instead
        of d n normals. On a CPU it is fastest in batches of about 2^13, whose temporaries stay in cache.

        Raises:
            ValueError: if n < d (H is singular and has no such decomposition) or batch < 0.
        """
        check_batch(batch)
        k = self._bartlett(batch, generator)
        weights = self._draw_weights(batch, generator)
        factor = self._on(generator, self.factor)
        root = (factor @ k.flatten(1)).view_as(k)
        h = torch.empty_like(root)
        for i in range(self.d):
            row = product(root[: i + 1], root[i])
            h[i, : i + 1] = row
            h[:i, i] = row[:i]
        h /= self.n
        b = product(h, weights)
        if self.noise:
            b += (self.noise / self.n) * product(root, self._normal(generator, self.d, batch))
        return Quadratics(h=h.permute(2, 0, 1), b=b.T, weights=weights.T)

    def compressed(self, batch: int, generator: Generator) -> TaskBatch:
        """Draw d context tokens that carry the statistics of n examples, and d queries that stand for all queries.

        The context rows are sqrt(d/n) [(C K)^T, K^T C^T w* + sigma e], with K as in `quadratics`: their Gram matrix
        divided by d has the joint distribution of (H, b) over n examples. A model that reads a context through H and b
        alone, as response-only and block structure with no token axis do, cannot tell the two apart. A model that uses
        y^T y / n can, when there is noise: the d rows carry only the part of y inside the span of X. The same
        generator state gives the same H, b and w* here and in `quadratics`.

        Query k is column k of C with target C[:, k] . w*. For a prediction linear in the query, w . x, the squared
        errors sum to (w - w*)^T Sigma (w - w*), the expected squared error of a random query; so d (`query_scale`)
        times their mean is that expectation. The loss over tasks has the same expectation as with random queries, and
        a lower variance.

        Raises:
            ValueError: if n < d or batch < 0.
        """
        check_batch(batch)
        d = self.d
        k = self._bartlett(batch, generator)
        weights = self._draw_weights(batch, generator).T.contiguous()
        factor = self._on(generator, self.factor)
        x = k.permute(2, 1, 0) @ factor.T
        y = x @ weights.unsqueeze(-1)
        if self.noise:
            y += self.noise * self._normal(generator, d, batch).T.unsqueeze(-1)
        z = torch.zeros(batch, 2 * d, d + 1, dtype=self.dtype, device=generator.device)
        z[:, :d, :d] = x
        z[:, :d, d:] = y
        z[:, :d] *= math.sqrt(d / self.n)
        z[:, d:, :d] = factor.T
        return TaskBatch(z=z, target=weights @ factor, weights=weights, context=d, query_scale=float(d))

    def _on(self, generator: Generator, matrix: Tensor) -> Tensor:
        return matrix.to(device=generator.device, dtype=self.dtype)

    def _normal(self, generator: Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=generator.device)

    def _draw_weights(self, batch: int, generator: Generator) -> Tensor:
        """w* with the batch axis last: (d, batch)."""
        normal = self._normal(generator, self.d, batch)
        if self.weights == "isotropic":
            return normal
        # C^-T = U diag(1/scales), and C^-T C^-1 = Sigma^-1.
        return (
            self._on(generator, self.rotation / torch.tensor(self.scales, dtype=torch.float64, device="cpu")) @ normal
        )

    def _bartlett(self, batch: int, generator: Generator) -> Tensor:
        """K of the Bartlett decomposition with the batch axis last: (d, d, batch), zero above the diagonal."""
        d, n = self.d, self.n
        if n < d:
            raise ValueError(f"n must be at least d={d} to sample statistics directly, got n={n}; use tokens()")
        k = torch.zeros(d, d, batch, dtype=self.dtype, device=generator.device)
        for i in range(d):
            if i:
                k[i, :i] = self._normal(generator, i, batch)
            k[i, i] = chi(n - i, batch, generator, self.dtype)
        return k


def step_sampler(
    tasks: GaussianTasks, batch: int, *, statistics: bool, queries: int = 1, resample: int = 1
) -> GaussianStatistics | GaussianTokens:
    """The sampler of these tasks.

    Args:
        tasks: what is drawn.
        batch: tasks a step.
        statistics: draw H and b with the query integrated out, in place of tokens. Needs n >= d.
        queries: queries a task, where tokens are drawn.
        resample: steps that a batch is kept for.
    """
    scales = torch.tensor(tasks.scales, dtype=torch.float64, device="cpu")
    common = {
        "noise": tasks.noise,
        "factor": tasks.factor,
        "weights": tasks.rotation / scales if tasks.weights == "inverse" else None,
        "resample_every": resample,
    }
    if statistics:
        return GaussianStatistics(tasks.d, tasks.n, batch, query="integrated", **common)  # type: ignore[arg-type]
    return GaussianTokens(tasks.d, tasks.n, batch, queries=queries, **common)  # type: ignore[arg-type]


def product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrix-vector products of a batch with its axis last, where they run at memory speed for any d.

    Args:
        matrices: (r, d, B).
        vectors: (d, B).

    Returns:
        (r, B).
    """
    result = matrices[:, 0] * vectors[0]
    for j in range(1, len(vectors)):
        result.addcmul_(matrices[:, j], vectors[j])
    return result


def chi(freedom: int, batch: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    """(batch,) exact draws of chi(freedom), freedom >= 1.

    chi^2(2m) is -2 times the sum of the logs of m uniforms; one squared normal more if odd.
    """
    if freedom > _MOST_UNIFORMS:
        return chi_by_rejection(freedom, batch, generator, dtype)
    uniforms = torch.rand(freedom // 2, batch, generator=generator, dtype=dtype, device=generator.device)
    uniforms = 1 - uniforms  # (0, 1]: a zero has no logarithm
    square = torch.zeros(batch, dtype=dtype, device=generator.device)
    for group in torch.split(uniforms, _UNIFORMS_PER_LOG):
        square -= group.prod(dim=0).log_()
    square *= 2
    if freedom % 2:
        square += torch.randn((batch,), generator=generator, dtype=dtype, device=generator.device).square_()
    return square.sqrt_()


def chi_by_rejection(freedom: float, batch: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    """(batch,) exact draws of chi(freedom), freedom >= 2, by the method of Marsaglia and Tsang (2000).

    chi^2(k) is twice Gamma(k/2). For k of a hundred and more nearly every proposal is accepted, so a few rounds of
    vectorised proposals for what is left suffice.
    """
    shape = freedom / 2 - 1 / 3
    scale = 1 / math.sqrt(9 * shape)
    gamma = torch.empty(batch, dtype=dtype, device=generator.device)
    left = torch.arange(batch, device=generator.device, dtype=torch.int64)
    while len(left):
        normal = torch.randn(len(left), generator=generator, dtype=dtype, device=generator.device)
        uniform = 1 - torch.rand(len(left), generator=generator, dtype=dtype, device=generator.device)
        cube = (1 + scale * normal) ** 3
        bound = 0.5 * normal.square() + shape * (1 - cube + cube.log())
        # A negative cube has no logarithm: the comparison with NaN refuses it.
        accepted = uniform.log() < bound
        gamma[left[accepted]] = shape * cube[accepted]
        left = left[~accepted]
    return (2 * gamma).sqrt()


def check_sizes(d: int, n: int, dtype: torch.dtype) -> None:
    """Refuse sizes below 1 and dtypes that no tasks are drawn in."""
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def check_batch(batch: int, queries: int = 0) -> None:
    """Refuse negative numbers of tasks and queries."""
    if batch < 0:
        raise ValueError(f"batch must be at least 0, got {batch}")
    if queries < 0:
        raise ValueError(f"queries must be at least 0, got {queries}")
