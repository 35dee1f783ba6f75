"""Where a training run's tasks come from: what is drawn, never how. `draws` draws, or a native kernel does.

A task is x ~ N(0, Sigma) with Sigma = C C^T, weights w* = W g with g ~ N(0, I), and responses y = x . w* with noise on
the labelled examples alone: the target of a query is x . w*. Every sampler is checked when it is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from memformer_kernels.calls.checks import check_choice, check_flag, check_floating, reject, reject_kind
from memformer_kernels.calls.limits import LARGEST_TASK
from memformer_kernels.calls.problem import check_target, check_tokens
from memformer_kernels.training.checks import check_count, check_memory, check_number, keep_number, keep_size

Query = Literal["sampled", "integrated", "prefixes"]

QUERIES: tuple[Query, ...] = get_args(Query)

GivenQuery = Literal["sampled", "prefixes"]

GIVEN_QUERIES: tuple[GivenQuery, ...] = get_args(GivenQuery)

LARGEST_BATCH = 2**32
"""Most tasks of a batch: what the stream's counter of tasks holds."""


@dataclass(frozen=True, eq=False)
class GaussianSampler:
    """What `GaussianTokens` and `GaussianStatistics` share.

    Attributes:
        d: features.
        n: labelled examples in a context.
        batch: tasks of a step, over all ranks; at most 2^32. A task has at most 2^30 numbers: (n + queries) (d + 1).
        queries: queries a task, where they are sampled.
        query: "sampled"; "integrated": the loss is the expected squared error of a random query,
            (w - w*)^T Sigma (w - w*), exactly, only where a prediction is linear in the query: response-only or block
            structure, gamma and beta without token axis; or "prefixes": a query is labelled and an example of those
            behind it, so that contexts have n, n + 1, ..., n + queries - 1 examples (`memformer_prefix_loss`), with
            gamma and beta without token axis.
        noise: standard deviation of the labelled responses' noise: a number, or a pair (low, high) between which each
            task has its own, drawn uniformly (mixed noise: Vladymyrov et al., arXiv 2402.14180).
        factor: C, (d, d), or None for the identity.
        weights: W, (d, d), or None for the identity.
        resample_every: steps that a batch is kept for.

    Raises:
        ValueError, TypeError: an attribute out of range, or of another kind.
    """

    d: int
    n: int
    batch: int
    queries: int = 1
    query: Query = "sampled"
    noise: float | tuple[float, float] = 0.0
    factor: Tensor | None = None
    weights: Tensor | None = None
    resample_every: int = 1

    def __post_init__(self) -> None:
        for name in ("d", "n", "queries"):
            keep_size(self, name, LARGEST_TASK)
        if (self.n + self.queries) * (self.d + 1) > LARGEST_TASK:
            reject("n", self.n, f"(n + queries) (d + 1) of at most {LARGEST_TASK}")
        keep_size(self, "batch", LARGEST_BATCH)
        keep_size(self, "resample_every")
        check_choice("query", self.query, QUERIES)
        if self.query == "integrated" and self.queries != 1:
            reject("queries", self.queries, 'an int of 1, since query is "integrated" and none is drawn')
        if isinstance(self.noise, tuple | list):
            object.__setattr__(self, "noise", _check_range("noise", self.noise))
        else:
            keep_number(self, "noise", 0.0)
        self.check()

    def check(self) -> None:
        """Raises for a tensor that does not fit, as one does that was changed in place since the sampler was made."""
        for name in ("factor", "weights"):
            matrix = getattr(self, name)
            if matrix is not None:
                _check_matrix(name, matrix, self.d)

    @property
    def noise_range(self) -> tuple[float, float]:
        """The smallest and the largest noise that a task may have."""
        return self.noise if isinstance(self.noise, tuple) else (self.noise, self.noise)

    @property
    def noisy(self) -> bool:
        """Whether responses have noise."""
        return self.noise_range[1] > 0

    @property
    def context(self) -> int:
        """Labelled tokens of a task."""
        return self.n

    @property
    def tokens(self) -> int:
        """N, the tokens of a task: n, and the queries where they are sampled."""
        return self.n + (0 if self.query == "integrated" else self.queries)


@dataclass(frozen=True, eq=False)
class GaussianTokens(GaussianSampler):
    """Every labelled example and every query is drawn. Attributes and errors: `GaussianSampler`.

    Example: every prompt length from 1 to 20; then every prompt with a noise of its own.
        >>> tasks = GaussianTokens(d=5, n=1, queries=20, query="prefixes", batch=256)
        >>> train_steps(TrainState.of([nn.Memformer(5, 4)]), tasks, 3, optimizer=Adam(0.01)).shape
        torch.Size([3, 1])
        >>> mixed = GaussianTokens(d=5, n=20, batch=256, noise=(0.0, 1.0))
        >>> dense = TrainState.of([nn.Memformer(5, 4, structure="dense")])
        >>> train_steps(dense, mixed, 3, optimizer=Adam(0.01)).shape
        torch.Size([3, 1])
    """


@dataclass(frozen=True, eq=False)
class GaussianStatistics(GaussianSampler):
    """H = X^T X / n and b = X^T y / n are drawn directly by the Bartlett decomposition; no example exists.

    Same distribution of H, b, predictions and gradients as `GaussianTokens`, at a cost that does not depend on n but
    for the uniforms of d chi variables. Needs n >= d, response-only or block structure, no token axis, and one context
    a task: query is "sampled" or "integrated".
    Attributes and errors: `GaussianSampler`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query == "prefixes":
            reject("query", self.query, '"sampled" or "integrated": no example is drawn; GaussianTokens draws them')
        if self.n < self.d:
            reject("n", self.n, f"an int of at least d = {self.d}: with fewer examples H has no such decomposition")


@dataclass(frozen=True, eq=False)
class FixedTasks:
    """Given tasks: the full batch every step, or epochs over them.

    Attributes:
        z: (T, N, d + 1) tasks, labelled tokens first; those between them and the queries are padding, never read.
        target: (T, queries) responses of the last `queries` tokens.
        context: labelled tokens of every task.
        batch: tasks of a step, or None for all T. An epoch has T // batch steps; the rest is left out of that epoch.
        shuffle: every epoch takes another order, drawn from the run's seed; else the given one.
        resample_every: steps that a batch is kept for.
        query: "sampled"; or "prefixes": a query has its label in z, like the context that ends before it, and is an
            example of those behind it. There is no padding then: context = N - queries.

    Raises:
        ValueError, TypeError: an attribute out of range, or of another kind.
    """

    z: Tensor
    target: Tensor
    context: int
    batch: int | None = None
    shuffle: bool = True
    resample_every: int = 1
    query: GivenQuery = "sampled"

    def __post_init__(self) -> None:
        for name in ("context", "resample_every"):
            keep_size(self, name)
        check_choice("query", self.query, GIVEN_QUERIES)
        if self.batch is not None:
            keep_size(self, "batch")
        check_flag("shuffle", self.shuffle)
        self.check()

    def check(self) -> None:
        """Raises for a tensor that does not fit, as one does that was changed in place since the sampler was made."""
        tokens = check_tokens(self.z)
        if tokens.dtype not in (torch.float32, torch.float64) or tokens.shape[0] < 1:
            reject("z", tokens, "at least one task, in float32 or float64")
        if tokens.shape[2] < 2:
            reject("z", tokens, "tasks (T, N, d + 1) with at least one feature")
        target = check_floating("target", self.target)
        if target.ndim != 2 or target.shape[1] < 1:
            reject("target", target, "a tensor (T, queries) with at least one query")
        check_target(target, tokens, target.shape[1])
        for name in ("z", "target"):
            check_memory(name, getattr(self, name))
        if self.context > tokens.shape[1] - self.target.shape[1]:
            reject("context", self.context, f"at most N - queries = {tokens.shape[1] - self.target.shape[1]}")
        if self.query == "prefixes" and self.context != tokens.shape[1] - self.target.shape[1]:
            reject("context", self.context, f"N - queries = {tokens.shape[1] - self.target.shape[1]} for prefixes")
        if self.batch is not None and self.batch > tokens.shape[0]:
            reject("batch", self.batch, f"an int of at most {tokens.shape[0]}, the number of tasks, or None")
        check_count("batch", batch_of(self), LARGEST_BATCH)

    @property
    def d(self) -> int:
        """Features."""
        return self.z.shape[2] - 1

    @property
    def draws_of_epoch(self) -> int:
        """Batches of an epoch."""
        return self.z.shape[0] // batch_of(self)

    @property
    def queries(self) -> int:
        """Queries of a task."""
        return self.target.shape[1]

    @property
    def tokens(self) -> int:
        """N, the tokens of a task."""
        return self.z.shape[1]


Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(tasks, generator) -> z (tasks, N, d + 1) and target (tasks, queries), in the models' dtype on the models' device."""


@dataclass(frozen=True, eq=False)
class DrawnTasks:
    """Tasks that a function of your own draws, a whole batch at a time.

    A function that takes all its randomness from the generator it is given makes step s the same tasks however a run is
    cut, resumed or shared by ranks, each of which draws the whole batch.

    Attributes:
        draw: the function. `draw(batch, generator)` returns z (batch, n + queries, d + 1), labelled tokens first, then
            queries with their response slot as the models are to read it (0), and target (batch, queries): dense
            tensors of the models' dtype on the models' device. The generator is on that device, seeded by a model's
            seed, its stream and the number of the batch. It may be called more than once for a batch.
        d: features.
        n: labelled examples in a context.
        batch: tasks of a step, over all ranks.
        queries: queries a task.
        resample_every: steps that a batch is kept for.
        query: "sampled"; or "prefixes": a query's response slot has its label, and it is an example of those behind it.

    Raises:
        ValueError, TypeError: an attribute out of range, or of another kind. `train_steps` raises them for what `draw`
            returned: before the first step for its batch, and at a later step, which is not taken then.

    Example:
        >>> def draw(batch, generator):
        ...     x = torch.randn(batch, 21, 5, generator=generator)
        ...     y = x.abs() @ torch.randn(batch, 5, 1, generator=generator)
        ...     z = torch.cat([x, y], -1)
        ...     z[:, -1, -1] = 0
        ...     return z, y[:, -1]
        >>> sampler = DrawnTasks(draw, d=5, n=20, batch=256)
        >>> train_steps(TrainState.of([nn.Memformer(5, 4)]), sampler, 3, optimizer=Adam(0.01)).shape
        torch.Size([3, 1])
    """

    draw: Draw
    d: int
    n: int
    batch: int
    queries: int = 1
    resample_every: int = 1
    query: GivenQuery = "sampled"

    def __post_init__(self) -> None:
        check_choice("query", self.query, GIVEN_QUERIES)
        if not callable(self.draw):
            reject_kind("draw", self.draw, "a function of a number of tasks and a generator")
        for name in ("d", "n", "queries"):
            keep_size(self, name, LARGEST_TASK)
        if self.tokens * (self.d + 1) > LARGEST_TASK:
            reject("n", self.n, f"(n + queries) (d + 1) of at most {LARGEST_TASK}")
        keep_size(self, "batch", LARGEST_BATCH)
        keep_size(self, "resample_every")

    def check(self) -> None:
        """Nothing of it can have changed since it was made; what `draw` returns is checked where it is called."""

    @property
    def context(self) -> int:
        """Labelled tokens of a task."""
        return self.n

    @property
    def tokens(self) -> int:
        """N, the tokens of a task."""
        return self.n + self.queries


Sampler = GaussianTokens | GaussianStatistics | FixedTasks | DrawnTasks
"""Any of them."""


def batch_of(sampler: Sampler) -> int:
    """Tasks of a step, over all ranks."""
    return sampler.z.shape[0] if isinstance(sampler, FixedTasks) and sampler.batch is None else sampler.batch or 0


def _check_range(name: str, value: Sequence[object]) -> tuple[float, float]:
    """Two finite numbers of at least 0, the smaller one first."""
    if len(value) != 2:
        reject(name, value, "a number, or a pair (low, high)")
    low, high = (check_number(name, one, 0.0) for one in value)
    if low > high:
        reject(name, value, "a pair (low, high) whose first number is not the larger one")
    return low, high


def _check_matrix(name: str, matrix: object, d: int) -> None:
    values = check_floating(name, matrix)
    if values.shape != (d, d):
        reject(name, matrix, f"a tensor (d, d) = ({d}, {d}), or None for the identity")
    check_memory(name, values)
    if values.is_meta or not bool(torch.isfinite(values).all()):
        reject(name, matrix, "finite entries")
