"""The main job in parts: how much is done, the training runs, the workers' jobs, who is judged together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memformer_lab.experiments.common import DEPTHS
from memformer_lab.reports.results import RunSummary, SetResult
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import load_model
from memformer_lab.runs.parallel import Job, Report
from memformer_lab.runs.training import CHECKPOINT, train
from memformer_lab.solvers.estimates import Chunks, ErrorSampler, Estimate, Tally, tally
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.held_out import QUERIES, best_penalty, context_length, judge_set
from memformer_lab.solvers.judging import Solver, model_errors, solver_errors, steps_of
from memformer_lab.tasks import real
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.real import RegressionSet

REAL_LAYERS = 4
"""Layers of the Memformers for measured data, and steps of the optimisers that they are compared with."""

# Rare tasks with a nearly singular context dominate the gradients of deep models with Bm free, so these clip harder.
_BLOCK_CLIP = {1: 1.0, 2: 1.0, 3: 0.03, 4: 0.01}
_BLOCK_BATCH = {1: 256, 2: 256, 3: 128, 4: 128}

_PENALTY_TASKS = 20_000

_WITH_EIGENVALUES = ("gradient_descent", "momentum", "nesterov")

METHODS = (*_WITH_EIGENVALUES, "conjugate_gradient", "response-only", "block")
"""All methods, in the order of tables and figures."""

_PIECES = 8  # more pieces share out better; each loads its models and brings back a tally


@dataclass(frozen=True)
class Budget:
    """How much the main job does.

    Attributes:
        response_steps: optimiser steps of a response-only model.
        block_steps: optimiser steps of the deepest model with Bm free; shallower ones need fewer.
        real_steps: optimiser steps of a model for measured data.
        tasks: fresh tasks that response-only models and conjugate gradient are judged on.
        block_tasks: fresh tasks that models with Bm free are judged on.
        classical_tasks: fresh tasks that gradient descent, momentum and Nesterov are judged on; their step sizes need
            every task's eigenvalues, which take longest.
        sets: the measured sets.
        contexts: contexts drawn from each measured set.
    """

    response_steps: int = 1500
    block_steps: int = 10_000
    real_steps: int = 600
    tasks: int = 10_000_000
    block_tasks: int = 400_000
    classical_tasks: int = 500_000
    sets: tuple[str, ...] = real.names()
    contexts: int = 2000

    @classmethod
    def quick(cls) -> Budget:
        """Seconds of work, to see that everything runs; its figures mean nothing."""
        return cls(20, 20, 20, 40_000, 2_000, 2_000, ("linnerud", "longley"), 50)


@dataclass(frozen=True)
class Run:
    """A training run of the main job: its name, which is its folder's too, and its configuration."""

    name: str
    config: TrainingConfig

    @property
    def tasks(self) -> int:
        """Tasks trained on."""
        return self.config.steps * self.config.batch


def depth_runs(budget: Budget, seed: int) -> dict[str, list[Run]]:
    """LFOM Memformers of every depth on the non-isotropic tasks: "response-only", and "block" with Bm free."""
    response, block = [], []
    for depth in DEPTHS:
        config = TrainingConfig(
            layers=depth, steps=budget.response_steps, seed=seed, rotation_seed=seed, backend="auto"
        )
        response.append(Run(f"response-only-{depth}", config))
        config = replace(
            config,
            structure="block",
            batch=_BLOCK_BATCH[depth],
            steps=budget.block_steps * (depth + 1) // (DEPTHS[-1] + 1),
            learning_rate=0.06,
            clip=_BLOCK_CLIP[depth],
            warmup=100,
        )
        block.append(Run(f"block-{depth}", config))
    return {"response-only": response, "block": block}


def real_runs(sets: Sequence[RegressionSet], budget: Budget, seed: int) -> dict[int, Run]:
    """One LFOM Memformer with Bm free for each d among the measured sets, by d."""
    runs = {}
    for d in sorted({dataset.x.shape[1] for dataset in sets}):
        config = TrainingConfig(
            d=d,
            n=context_length([dataset for dataset in sets if dataset.x.shape[1] == d]),
            layers=REAL_LAYERS,
            structure="block",
            tasks="standardised",
            queries=QUERIES,
            batch=64,
            steps=budget.real_steps,
            learning_rate=0.03,
            clip=0.1,
            warmup=50,
            seed=seed,
            backend="auto",
        )
        runs[d] = Run(f"measured-d{d}", config)
    return runs


def train_run(name: str, config: TrainingConfig, folder: Path, report: Report) -> RunSummary:
    """Train a run into `folder`, reporting tasks."""
    last = {"step": 0.0, "loss": math.nan}

    def show(record: dict[str, float]) -> None:
        tasks = int(record["step"] - last["step"]) * config.batch
        last.update(record)
        report(tasks, f"{name}: loss {record['loss']:.3g}")

    result = train(config, folder, on_record=show)
    return RunSummary(name, config.to_dict(), result.tasks, result.seconds, last["loss"])


def tally_solvers(
    tasks: GaussianTasks,
    optimizers: tuple[str, ...],
    steps: int,
    folders: tuple[Path, ...],
    chunks: Chunks,
    indices: range,
    report: Report,
) -> Tally:
    """Errors on the same sampled quadratics of classical optimisers and of response-only models.

    Args:
        tasks: the distribution.
        optimizers: names, each with rows for 1..`steps` steps.
        steps: of the optimisers.
        folders: runs, each with a row for its model's last layer.
        chunks: how tasks are drawn.
        indices: which of the chunks.
        report: told of the tasks that are done.
    """
    solvers: list[Solver] = [steps_of(name, steps) for name in optimizers]
    for folder in folders:
        method = first_order_method(load_model(folder / CHECKPOINT)[0])
        if method is None:
            raise ValueError(f"{folder / CHECKPOINT} holds no first-order method, expected a response-only model")
        solvers.append(method.solver(layers=False))
    return tally(_reporting(solver_errors(tasks, solvers), report), chunks, indices)


def tally_model(folder: Path, chunks: Chunks, indices: range, report: Report) -> Tally:
    """Errors of a model's last layer, one row."""
    model, config = load_model(folder / CHECKPOINT)
    return tally(_reporting(model_errors([model], config.sampler(), config.queries), report), chunks, indices)


def judge_real_set(dataset: RegressionSet, folder: Path, contexts: int, seed: int, report: Report) -> SetResult:
    """Every method on one measured set.

    Args:
        dataset: the set.
        folder: a run, whose model is judged.
        contexts: contexts drawn from the set.
        seed: of the contexts.
        report: told of the contexts that are done.
    """
    model, config = load_model(folder / CHECKPOINT)
    penalty = best_penalty(config.d, config.n, _PENALTY_TASKS, seed)
    estimates = judge_set(model, dataset, config.n, contexts, penalty, seed)
    report(contexts, dataset.name)
    return SetResult(dataset.name, len(dataset.y), config.d, config.n, contexts, penalty, estimates)


@dataclass(frozen=True)
class Contest:
    """Rows of errors that one sampler gives.

    Attributes:
        rows: method and depth of each row.
        function: `tally_solvers` or `tally_model`, called with `arguments`, the chunks, their indices and a `Report`.
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


def _reporting(sampler: ErrorSampler, report: Report) -> ErrorSampler:
    def sample(batch: int, generator: torch.Generator) -> Tensor:
        errors = sampler(batch, generator)
        report(batch, "")
        return errors

    return sample
