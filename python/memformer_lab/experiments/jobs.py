"""What worker processes are asked to do: train a run, tally errors, judge a data set. Plain data in and out."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from memformer_lab.reports.report import RunSummary, SetResult
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import load_model
from memformer_lab.runs.parallel import Report
from memformer_lab.runs.training import CHECKPOINT, train
from memformer_lab.solvers.estimates import Chunks, ErrorSampler, Tally, tally
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.held_out import best_penalty, judge_set
from memformer_lab.solvers.judging import Solver, model_errors, solver_errors, steps_of
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.real import RegressionSet

_PENALTY_TASKS = 20_000


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

    Rows: each optimiser after 1..`steps` steps, then the last layer of the model in each of `folders`.
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
    """Every method on one measured set, with the model in `folder`."""
    model, config = load_model(folder / CHECKPOINT)
    penalty = best_penalty(config.d, config.n, _PENALTY_TASKS, seed)
    estimates = judge_set(model, dataset, config.n, contexts, penalty, seed)
    report(contexts, dataset.name)
    return SetResult(dataset.name, len(dataset.y), config.d, config.n, contexts, penalty, estimates)


def _reporting(sampler: ErrorSampler, report: Report) -> ErrorSampler:
    def sample(batch: int, generator: torch.Generator) -> Tensor:
        errors = sampler(batch, generator)
        report(batch, "")
        return errors

    return sample
