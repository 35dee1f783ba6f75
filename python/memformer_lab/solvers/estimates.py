"""Means of heavy-tailed errors over millions of tasks, with bootstrap intervals, in one pass and little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from memformer_lab.tasks.seeds import generator_for, seed_for

ErrorSampler = Callable[[int, torch.Generator], Tensor]
"""(batch, generator) -> (rows, batch): squared errors of `rows` predictors on the same freshly drawn tasks."""

BLOCKS = 1000
"""Tasks are resampled in about this many blocks."""

RESAMPLES = 2000
"""Bootstrap resamples."""

LEVEL = 0.95
"""Probability of the intervals."""

CHUNK = 20_000
"""Most tasks that are drawn at once."""

_BITS_DROPPED = 16  # of a float32: leaves 128 bins an octave, at most 0.008 wide in the natural logarithm


@dataclass(frozen=True)
class Estimate:
    """The natural logarithm of a mean squared error, as judged on `tasks` tasks.

    Attributes:
        tasks: number of tasks.
        log_mean: logarithm of the mean; infinite if any task's error is not finite.
        low: lower end of the bootstrap interval of log_mean.
        high: upper end.
        log_median: logarithm of the median, to 0.01.
    """

    tasks: int
    log_mean: float
    low: float
    high: float
    log_median: float


@dataclass(frozen=True)
class Chunks:
    """How `tasks` tasks are drawn: chunk by chunk, each from its own generator and cut into blocks.

    Chunks depend on nothing but `tasks` and the seed, so any of them may be drawn anywhere, in any order.
    """

    tasks: int
    seed: int

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"tasks must be at least 1, got {self.tasks}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def block(self) -> int:
        """Tasks in a block."""
        return min(CHUNK, max(1, self.tasks // BLOCKS))

    @property
    def size(self) -> int:
        """Tasks in a chunk, a multiple of `block`; the last chunk may have fewer."""
        return CHUNK // self.block * self.block

    def __len__(self) -> int:
        return -(-self.tasks // self.size)

    def draw(self, index: int, sampler: ErrorSampler) -> Tensor:
        """(rows, batch) errors of chunk `index`."""
        with torch.no_grad():
            batch = min(self.size, self.tasks - index * self.size)
            return sampler(batch, generator_for("evaluation", self.seed, index))


@dataclass(frozen=True)
class Tally:
    """What is kept of the tasks seen: sums by block, and how many errors fell in which bin.

    Attributes:
        sums: (rows, blocks) float64 sums of squared errors.
        sizes: (blocks,) tasks in each block.
        bins: (rows, 2^15) counts of errors by the leading bits of their float32 form, which are logarithmic bins.
    """

    sums: np.ndarray
    sizes: np.ndarray
    bins: np.ndarray

    @classmethod
    def of(cls, errors: Tensor, block: int) -> Tally:
        """The tally of errors (rows, batch)."""
        parts = torch.split(errors, block, dim=1)
        sums = torch.stack([part.sum(1, dtype=torch.float64) for part in parts], dim=1)
        leading = errors.float().contiguous().view(torch.int32).bitwise_and(0x7FFFFFFF) >> _BITS_DROPPED
        bins = [np.bincount(row, minlength=2 ** (31 - _BITS_DROPPED)) for row in leading.numpy()]
        return cls(sums.numpy(), np.array([part.shape[1] for part in parts]), np.stack(bins))

    def __add__(self, other: Tally) -> Tally:
        """The tally of both, this one's blocks first."""
        return Tally(
            np.concatenate([self.sums, other.sums], axis=1),
            np.concatenate([self.sizes, other.sizes]),
            self.bins + other.bins,
        )

    def estimates(self, seed: int) -> list[Estimate]:
        """One estimate a row.

        The interval is the percentile interval of a bootstrap of blocks. Tasks are independent, so a resample of block
        means has the variance of a resample of tasks, and the mean of 10^4 heavy-tailed errors is far closer to normal
        than one of them.
        """
        blocks = len(self.sizes)
        draws = np.random.default_rng(seed_for("bootstrap", seed)).multinomial(
            blocks, np.full(blocks, 1 / blocks), size=RESAMPLES
        )
        tasks = int(self.sizes.sum())
        estimates = []
        for sums, bins in zip(self.sums, self.bins, strict=True):
            tail = (1 - LEVEL) / 2
            if np.isfinite(sums).all():
                low, high = np.quantile((draws @ sums) / (draws @ self.sizes), [tail, 1 - tail])
                mean = sums.sum() / tasks
            else:
                low = high = mean = math.inf
            estimates.append(Estimate(tasks, log_of(mean), log_of(low), log_of(high), log_of(_median(bins))))
        return estimates


def tally(sampler: ErrorSampler, chunks: Chunks, indices: Iterable[int]) -> Tally:
    """The tally of the chunks with the given indices, drawn one after another."""
    return reduce(Tally.__add__, (Tally.of(chunks.draw(index, sampler), chunks.block) for index in indices))


def estimate(sampler: ErrorSampler, tasks: int, seed: int) -> list[Estimate]:
    """Log mean squared errors over `tasks` fresh tasks, one estimate for each row of the sampler's errors.

    Raises:
        ValueError: if tasks < 1.
    """
    chunks = Chunks(tasks, seed)
    return tally(sampler, chunks, range(len(chunks))).estimates(seed)


def log_of(value: float) -> float:
    """The natural logarithm, -inf of 0, NaN of NaN."""
    return -math.inf if value <= 0 else math.log(value)


def _median(bins: np.ndarray) -> float:
    """The middle of the bin that holds the median; infinite where half of the errors are, or are no numbers."""
    cumulative = np.cumsum(bins)
    index = np.searchsorted(cumulative, (cumulative[-1] + 1) // 2)
    edges = (np.array([index, index + 1], dtype=np.int32) << _BITS_DROPPED).view(np.float32)
    return float(edges.astype(np.float64).mean()) if np.isfinite(edges).all() else math.inf
