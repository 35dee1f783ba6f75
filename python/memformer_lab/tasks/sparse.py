"""Recovery of sparse codes from few measurements by one dictionary, and least squares with non-negative weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from memformer_lab.tasks.gaussian import Quadratics, check_batch, check_sizes


@dataclass(frozen=True)
class SparseTasks:
    """y = D w* + noise with one dictionary D for all tasks and w* Bernoulli-Gaussian; sizes as published.

    D has entries N(0, 1 / n) before each column is scaled to norm 1; an entry of w* is N(0, 1) with probability
    `density` and 0 else (Chen et al., arXiv 1808.10038; Liu et al., ICLR 2019: 500 entries, 250 measurements).

    Attributes:
        d: entries of a code.
        n: measurements, usually fewer.
        density: of entries that are not 0, in (0, 1].
        snr: of measurements, 10 log10(E ||D w*||^2 / E ||noise||^2) in decibels; infinite without noise.
        dictionary_seed: seed of D.
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int = 500
    n: int = 250
    density: float = 0.1
    snr: float = math.inf
    dictionary_seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, self.dtype)
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density}")
        if not -math.inf < self.snr <= math.inf:
            raise ValueError(f"snr must be a number of decibels or infinite, got {self.snr}")

    @cached_property
    def dictionary(self) -> Tensor:
        """D with columns of norm 1, (n, d) float64 on the CPU."""
        generator = Generator("cpu").manual_seed(self.dictionary_seed)
        drawn = torch.randn(self.n, self.d, generator=generator, dtype=torch.float64, device=generator.device)
        scaled: Tensor = drawn / drawn.norm(dim=0)
        return scaled

    @property
    def factor(self) -> Tensor:
        """The identity, (d, d) float64: the error is the squared distance from w*."""
        return torch.eye(self.d, dtype=torch.float64, device="cpu")

    def measurements(self, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """y (batch, n) and w* (batch, d).

        Raises:
            ValueError: if batch < 0.
        """
        check_batch(batch)
        dictionary = self.dictionary.to(device=generator.device, dtype=self.dtype)
        weights = _normal(generator, self.dtype, batch, self.d)
        chance = torch.rand(weights.shape, generator=generator, dtype=self.dtype, device=generator.device)
        weights *= chance < self.density
        y = weights @ dictionary.T
        if self.snr < math.inf:
            # E ||D w*||^2 = d density, since columns have norm 1 and entries are independent.
            deviation = math.sqrt(self.d * self.density / self.n) * 10 ** (-self.snr / 20)
            y += deviation * _normal(generator, self.dtype, *y.shape)
        return y, weights

    def quadratics(self, batch: int, generator: Generator) -> Quadratics:
        """h = D^T D, one matrix in memory for all tasks, b = D^T y and w*: ||y - D w||^2 / 2 without its constant.

        Raises:
            ValueError: if batch < 0.
        """
        y, weights = self.measurements(batch, generator)
        dictionary = self.dictionary.to(y)
        h = (dictionary.T @ dictionary).expand(batch, self.d, self.d)
        return Quadratics(h=h, b=y @ dictionary, weights=weights)


@dataclass(frozen=True)
class NonNegativeTasks:
    """x ~ N(0, I), y = x . w* + noise * N(0, 1) and w* = max(N(0, I), 0): half of it is 0.

    Attributes:
        d: features.
        n: examples.
        noise: standard deviation of the response noise, >= 0.
        dtype: torch.float32 or torch.float64.

    Raises:
        TypeError: for a dtype other than float32 and float64.
        ValueError: for any other argument outside its range.
    """

    d: int
    n: int
    noise: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, self.dtype)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and >= 0, got {self.noise}")

    @property
    def factor(self) -> Tensor:
        """The identity, (d, d) float64."""
        return torch.eye(self.d, dtype=torch.float64, device="cpu")

    def quadratics(self, batch: int, generator: Generator) -> Quadratics:
        """h = X^T X / n (batch, d, d), b = X^T y / n and w* (batch, d).

        Raises:
            ValueError: if batch < 0.
        """
        check_batch(batch)
        x = _normal(generator, self.dtype, batch, self.n, self.d)
        weights = _normal(generator, self.dtype, batch, self.d).relu()
        y = (x @ weights.unsqueeze(-1)).squeeze(-1) + self.noise * _normal(generator, self.dtype, batch, self.n)
        b = (y.unsqueeze(1) @ x).squeeze(1) / self.n
        return Quadratics(h=x.mT @ x / self.n, b=b, weights=weights)


def _normal(generator: Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
