"""Draws the tasks of a step: the definition of every sampler's random stream, in plain PyTorch.

Normals are taken in this order from a task's words (`philox`), from block 0 on.

    tokens       g (d) with w* = W g; token by token x (d), with factor C; then, with noise, one a labelled token, which
                 queries are too where they are prefixes
    statistics   g (d); K below the diagonal, row by row (d(d-1)/2); with noise, e (d); one for every i = 0, ..., d-1
                 with n - i odd; then, where queries are sampled, query by query x (d)

With statistics the uniforms of the chi variables begin at the next fresh block: for i = 0, ..., d-1 there are
floor((n - i)/2) of them, and K_ii^2 = chi^2(n - i) = -2 sum ln u, plus the square of its normal where n - i is odd. No
draw is ever rejected, since rounding would flip acceptances. Then n H = C K (C K)^T is a Wishart matrix (Bartlett 1933)
and b = H w* + noise C K e / n.

Where each task has a noise of its own, that is low + (high - low) u with the uniform u of the first word of block
2^31 - 1, whatever else the task takes: two noisy samplers that differ in their noise alone draw the same x,
w* and e.

Statistics come as the d tokens sqrt(d/n) [(C K)^T, (C K)^T w* + noise e], whose Gram matrix divided by d has them: a
network with response-only or block structure reads nothing else of a context. An integrated query comes as d queries,
the columns of C, whose squared errors sum to the expectation.
"""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from memformer_kernels.training import orders, own
from memformer_kernels.training.philox import NOISE_BLOCK, normals, task_words, uniforms
from memformer_kernels.training.samplers import (
    DrawnTasks,
    FixedTasks,
    GaussianSampler,
    GaussianStatistics,
    GaussianTokens,
    Sampler,
)

_UNIFORMS = 2**22
"""Uniforms of all tasks together that exist at once."""


@dataclass(frozen=True)
class Tasks:
    """Tasks as a network reads them: z (B, N, D), target (B, queries); the first `context` tokens are labelled."""

    z: Tensor
    target: Tensor
    context: int


@dataclass(frozen=True)
class Stream:
    """One model's stream of tasks, in one dtype on one device."""

    seed: int
    stream: int
    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def words(self, draw: int, tasks: range, first: int, count: int) -> Tensor:
        """`count` words a task from block `first` on."""
        blocks = task_words(self.seed, self.stream, draw, tasks, first, -(-count // 4), self.device)
        return blocks[:, :count]

    def normals(self, draw: int, tasks: range, count: int) -> Tensor:
        """The first `count` normals of every task, (len(tasks), count)."""
        even = count + count % 2
        return normals(self.words(draw, tasks, 0, even), self.dtype)[:, :count]


def draw_noise(sampler: GaussianSampler, stream: Stream, draw: int, tasks: range) -> float | Tensor:
    """The noise's standard deviation: one number, or each task's own (len(tasks), 1)."""
    low, high = sampler.noise_range
    if low == high:
        return low
    return low + (high - low) * uniforms(stream.words(draw, tasks, NOISE_BLOCK, 1), stream.dtype)


def draw_tasks(sampler: Sampler, stream: Stream, draw: int, tasks: range) -> Tasks:
    """The tasks with these indices in the global batch number `draw`."""
    if isinstance(sampler, FixedTasks):
        chosen = order(sampler, stream, draw)
        rows = slice(tasks.start, tasks.stop) if chosen is None else chosen[tasks.start : tasks.stop]
        return Tasks(sampler.z[rows], sampler.target[rows], sampler.context)
    if isinstance(sampler, DrawnTasks):
        z, target = own.batch(sampler, stream.seed, stream.stream, draw, stream.dtype, stream.device)
        return Tasks(z[tasks.start : tasks.stop], target[tasks.start : tasks.stop], sampler.context)
    if isinstance(sampler, GaussianStatistics):
        return _draw_statistics(sampler, stream, draw, tasks)
    return _draw_tokens(sampler, stream, draw, tasks)


def order(sampler: FixedTasks, stream: Stream, draw: int) -> Tensor | None:
    """Indices (B,) of the given tasks in batch number `draw`, or None for all of them in order."""
    if sampler.batch is None:
        return None
    return orders.batches(sampler, [(stream.seed, stream.stream)], range(draw, draw + 1), stream.device)[0, 0]


def normal_count(sampler: GaussianSampler) -> int:
    """Normals that a task takes."""
    d, n = sampler.d, sampler.n
    if isinstance(sampler, GaussianTokens):
        return d + sampler.tokens * d + (_labels(sampler) if sampler.noisy else 0)
    odd = sum((n - i) % 2 for i in range(d))
    queries = sampler.queries * d if sampler.query == "sampled" else 0
    return d + d * (d - 1) // 2 + (d if sampler.noisy else 0) + odd + queries


def _labels(sampler: GaussianTokens) -> int:
    """Labelled tokens of a task."""
    return sampler.tokens if sampler.query == "prefixes" else sampler.n


def _draw_tokens(sampler: GaussianTokens, stream: Stream, draw: int, tasks: range) -> Tasks:
    d, n, total, labelled = sampler.d, sampler.n, sampler.tokens, _labels(sampler)
    taken = torch.split(
        stream.normals(draw, tasks, normal_count(sampler)), [d, total * d, labelled if sampler.noisy else 0], dim=1
    )
    weights = _mixed(taken[0], sampler.weights)
    x = _mixed(taken[1].reshape(len(tasks), total, d), sampler.factor)
    y = (x @ weights[:, :, None])[..., 0]
    target = y[:, n:]
    labels = y[:, :labelled]
    if sampler.noisy:
        labels = labels + draw_noise(sampler, stream, draw, tasks) * taken[2]
    if sampler.query == "prefixes":
        return Tasks(torch.cat([x, labels[..., None]], -1), target, n)
    return _finish(sampler, torch.cat([x[:, :n], labels[..., None]], -1), x[:, n:], target, weights)


def _draw_statistics(sampler: GaussianStatistics, stream: Stream, draw: int, tasks: range) -> Tasks:
    d, n = sampler.d, sampler.n
    odd = [i for i in range(d) if (n - i) % 2]
    queries = sampler.queries * d if sampler.query == "sampled" else 0
    taken = torch.split(
        stream.normals(draw, tasks, normal_count(sampler)),
        [d, d * (d - 1) // 2, d if sampler.noisy else 0, len(odd), queries],
        dim=1,
    )
    weights = _mixed(taken[0], sampler.weights)
    squares = _chi_uniforms(sampler, stream, draw, tasks)
    squares[:, odd] += taken[3].square()
    k = torch.diag_embed(squares.sqrt())
    rows, columns = torch.tril_indices(d, d, -1, device=stream.device, dtype=torch.int64)
    k[:, rows, columns] = taken[1]
    x = _mixed(k.transpose(-1, -2), sampler.factor)
    y = (x @ weights[:, :, None])[..., 0]
    if sampler.noisy:
        y = y + draw_noise(sampler, stream, draw, tasks) * taken[2]
    compressed = math.sqrt(d / n) * torch.cat([x, y[..., None]], -1)
    asked = _mixed(taken[4].reshape(len(tasks), queries // d, d), sampler.factor)
    return _finish(sampler, compressed, asked, (asked @ weights[:, :, None])[..., 0], weights)


def _chi_uniforms(sampler: GaussianStatistics, stream: Stream, draw: int, tasks: range) -> Tensor:
    """-2 sum ln u over floor((n - i)/2) uniforms for i = 0, ..., d-1: (len(tasks), d).

    Uniforms exist piece by piece, and the sums of pieces add up in float64: memory and error do not grow with n.
    """
    ends = list(accumulate((sampler.n - i) // 2 for i in range(sampler.d)))
    normal_words = normal_count(sampler) + normal_count(sampler) % 2
    first, piece = -(-normal_words // 4), 4 * max(1, _UNIFORMS // (4 * max(1, len(tasks))))
    sums = torch.zeros(len(tasks), sampler.d, dtype=torch.float64, device=stream.device)
    for start in range(0, ends[-1], piece):
        stop = min(start + piece, ends[-1])
        logs = uniforms(stream.words(draw, tasks, first + start // 4, stop - start), stream.dtype).log()
        for place, (begin, end) in enumerate(pairwise([0, *ends])):
            if max(begin, start) < min(end, stop):
                sums[:, place] += logs[:, max(begin, start) - start : min(end, stop) - start].sum(1)
    return (-2.0 * sums).to(stream.dtype)


def _finish(sampler: GaussianSampler, labelled: Tensor, queries: Tensor, target: Tensor, weights: Tensor) -> Tasks:
    """Labelled tokens and queries as one z; an integrated query becomes the columns of C."""
    if sampler.query == "integrated":
        columns = torch.eye(sampler.d, dtype=labelled.dtype, device=labelled.device)
        queries = _mixed(columns, sampler.factor).expand(labelled.shape[0], -1, -1)
        target = _mixed_queries(weights, sampler.factor)
    z = torch.cat([labelled, torch.nn.functional.pad(queries, (0, 1))], 1)
    return Tasks(z, target, labelled.shape[1])


def _mixed(rows: Tensor, factor: Tensor | None) -> Tensor:
    """C g for every row g."""
    return rows if factor is None else rows @ factor.to(rows).T


def _mixed_queries(weights: Tensor, factor: Tensor | None) -> Tensor:
    """C^T w: the responses of the columns of C."""
    return weights if factor is None else weights @ factor.to(weights)
