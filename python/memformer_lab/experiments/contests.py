"""The methods of the main job on the random tasks: which are judged together, on how many tasks, in which pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from memformer_lab.experiments.budget import DEPTHS, Budget, Run
from memformer_lab.experiments.jobs import tally_model, tally_solvers
from memformer_lab.runs.parallel import Job
from memformer_lab.solvers.estimates import Chunks, Estimate, Tally
from memformer_lab.tasks.gaussian import GaussianTasks

_WITH_EIGENVALUES = ("gradient_descent", "momentum", "nesterov")

METHODS = (*_WITH_EIGENVALUES, "conjugate_gradient", "response-only", "block")
"""All methods, in the order of tables and figures."""

_PIECES = 8  # more pieces share out better; each loads its models and brings back a tally


@dataclass(frozen=True)
class Contest:
    """Rows of errors that one sampler gives.

    Attributes:
        rows: method and depth of each row.
        function: of `experiments.jobs`, called with `arguments`, the chunks, their indices and a `Report`.
        arguments: its first arguments.
        chunks: the tasks.
    """

    rows: tuple[tuple[str, int], ...]
    function: Callable[..., Tally]
    arguments: tuple[Any, ...]
    chunks: Chunks

    def jobs(self) -> list[Job]:
        """The contest in pieces, which depend on nothing but its chunks."""
        count = len(self.chunks)
        ends = [count * piece // _PIECES for piece in range(_PIECES + 1)]
        indices = [range(start, stop) for start, stop in pairwise(ends) if start < stop]
        return [Job(self.function, (*self.arguments, self.chunks, some)) for some in indices]


def depth_contests(runs: dict[str, list[Run]], folder: Path, budget: Budget, seed: int) -> list[Contest]:
    """Contests over every method at every depth, on tasks that no training run drew; the longest come first."""
    tasks, steps = GaussianTasks.nonisotropic(rotation_seed=seed), len(DEPTHS)
    response = tuple(folder / run.name for run in runs["response-only"])
    contests = [
        Contest(
            tuple(product(("conjugate_gradient", "response-only"), DEPTHS)),
            tally_solvers,
            (tasks, ("conjugate_gradient",), steps, response),
            Chunks(budget.tasks, seed),
        ),
        Contest(
            tuple(product(_WITH_EIGENVALUES, DEPTHS)),
            tally_solvers,
            (tasks, _WITH_EIGENVALUES, steps, ()),
            Chunks(budget.classical_tasks, seed),
        ),
    ]
    for run in runs["block"]:
        row = ("block", run.config.layers)
        contests.append(Contest((row,), tally_model, (folder / run.name,), Chunks(budget.block_tasks, seed)))
    return contests


def judge(
    contests: Sequence[Contest], run_jobs: Callable[[list[Job], int], list[Tally]], seed: int
) -> dict[tuple[str, int], Estimate]:
    """Estimates by method and depth.

    Args:
        contests: what to judge.
        run_jobs: runs all jobs, which draw so many tasks together, and gives their results in order.
        seed: of the bootstrap.
    """
    pieces = [contest.jobs() for contest in contests]
    jobs = [job for piece in pieces for job in piece]
    tallies = iter(run_jobs(jobs, sum(contest.chunks.tasks for contest in contests)))
    found: dict[tuple[str, int], Estimate] = {}
    for contest, piece in zip(contests, pieces, strict=True):
        total = reduce(Tally.__add__, (next(tallies) for _ in piece))
        found.update(zip(contest.rows, total.estimates(seed), strict=True))
    return found
