"""A training run on the disk: metrics, checkpoints, and continuing where the last checkpoint was taken."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import ProcessGroup

from memformer_kernels.nn import Memformer
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.files import remove_temporaries, sole_writer, write_atomically
from memformer_lab.runs.metrics import MetricsLog
from memformer_lab.runs.parallel import is_writer
from memformer_lab.runs.steps import TrainingDiverged
from memformer_lab.runs.trainer import Record, Trainer

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainingResult:
    """What `train` or `continue_training` did.

    Attributes:
        model: the trained model.
        tasks: tasks trained on in this call.
        seconds: time that took.
    """

    model: Memformer
    tasks: int
    seconds: float


def train(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    *,
    checkpoint_every: int = 1000,
    device: torch.device | str = "cpu",
    on_record: Callable[[Record], None] | None = None,
    group: ProcessGroup | None = None,
) -> TrainingResult:
    """Train a fresh model to the last step, leaving "checkpoint.safetensors" and "metrics.jsonl" in `output`.

    Metrics are one JSON line every `config.log_every` steps and at the last step: step, mean loss since the line
    before, learning_rate of that step (with backend "torch" gradient_norm as well), and tasks_per_second.

    Args:
        config: the run.
        output: folder to write to; a run that is there is replaced.
        checkpoint_every: steps between two checkpoints; the first and the last step always have one.
        device: where to train.
        on_record: called with every line of metrics, by the process that writes.
        group: ranks that share every batch; the first of them writes. Not with backend "torch".

    Raises:
        ValueError: for an argument out of range.
        BlockingIOError: if another run is writing to the folder.
        RankLost: if another rank of the group died or does not answer.
        TrainingDiverged: for a non-finite loss, gradient or parameter; the last good checkpoint stays.
    """
    _check_interval(checkpoint_every)
    folder = Path(output)
    trainer = Trainer(config, device, group)
    if not is_writer(group):
        return _follow(trainer, checkpoint_every)
    with sole_writer(folder):
        write_atomically(folder / METRICS, b"")
        checkpoints.save(folder / CHECKPOINT, trainer.snapshot())
        return _run(trainer, folder, checkpoint_every, on_record)


def continue_training(
    output: str | os.PathLike[str],
    *,
    steps: int | None = None,
    checkpoint_every: int = 1000,
    device: torch.device | str = "cpu",
    on_record: Callable[[Record], None] | None = None,
    group: ProcessGroup | None = None,
) -> TrainingResult:
    """Go on from the checkpoint in `output`, to the same parameters as if the run had never stopped.

    Another number of `steps` extends a run, a finished one too, or ends it sooner. From there on the run is one of so
    many steps: its learning rate is what a schedule over all of them says, so that of "cosine" rises again where a
    finished run had come to 0.

    Args:
        output: folder of the run.
        steps: optimiser steps of the whole run, those done among them; None: as it was begun.
        checkpoint_every: as in `train`.
        device: as in `train`.
        on_record: as in `train`.
        group: as in `train`.

    Returns:
        As `train` does.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint or the metrics cannot be continued, naming the file, or for fewer steps than are
            done.
        BlockingIOError, RankLost, TrainingDiverged: as `train` does.
    """
    _check_interval(checkpoint_every)
    folder = Path(output)
    if not is_writer(group):
        return _follow(_resumed(folder, steps, device, group), checkpoint_every)
    if not (folder / CHECKPOINT).exists():
        raise FileNotFoundError(f"{folder / CHECKPOINT} is not there, expected a checkpoint to go on from")
    with sole_writer(folder):
        return _run(_resumed(folder, steps, device, group), folder, checkpoint_every, on_record)


def _resumed(folder: Path, steps: int | None, device: torch.device | str, group: ProcessGroup | None) -> Trainer:
    checkpoint = checkpoints.load(folder / CHECKPOINT)
    if steps is not None:
        checkpoint = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, steps=steps))
        if steps < checkpoint.step:
            raise ValueError(f"steps must be at least {checkpoint.step}, those done in {folder}, got {steps}")
    try:
        return Trainer.resume(checkpoint, device, group)
    except ValueError as error:
        raise ValueError(f"{folder / CHECKPOINT}: {error}") from error


def _check_interval(checkpoint_every: int) -> None:
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")


def _advance(trainer: Trainer, checkpoint_every: int) -> Record:
    """Take all steps before anything is to be written."""
    config = trainer.config
    stops = (trainer.step // every * every + every for every in (config.log_every, checkpoint_every))
    return trainer.advance(min(config.steps, *stops) - trainer.step)


def _follow(trainer: Trainer, checkpoint_every: int) -> TrainingResult:
    """What `_run` does, without writing."""
    first, begin = trainer.step, time.perf_counter()
    while trainer.step < trainer.config.steps:
        _advance(trainer, checkpoint_every)
    return TrainingResult(trainer.model, (trainer.step - first) * trainer.config.batch, time.perf_counter() - begin)


def _run(
    trainer: Trainer, folder: Path, checkpoint_every: int, on_record: Callable[[Record], None] | None
) -> TrainingResult:
    config, first = trainer.config, trainer.step
    for name in (CHECKPOINT, METRICS):
        remove_temporaries(folder / name)
    begin = lap = time.perf_counter()
    lap_step = first
    with MetricsLog(folder / METRICS, after=first, every=config.log_every) as log:
        while trainer.step < config.steps:
            try:
                record = _advance(trainer, checkpoint_every)
                done = trainer.step == config.steps
                if done or trainer.step % config.log_every == 0:
                    now = time.perf_counter()
                    rate = (trainer.step - lap_step) * config.batch / (now - lap)
                    loss, trainer.loss_sum = trainer.loss_sum / (trainer.step - log.last), 0.0
                    record |= {"step": trainer.step, "loss": loss, "tasks_per_second": rate}
                    lap, lap_step = now, trainer.step
                    log.write(record)
                    if on_record:
                        on_record(record)
                if done or trainer.step % checkpoint_every == 0:
                    snapshot = trainer.snapshot()
                    log.sync()
                    checkpoints.save(folder / CHECKPOINT, snapshot)
            except TrainingDiverged as error:
                kept = checkpoints.load(folder / CHECKPOINT).step
                raise TrainingDiverged(f"{error}; {folder / CHECKPOINT} keeps step {kept}") from error
    seconds = time.perf_counter() - begin
    return TrainingResult(trainer.model, (trainer.step - first) * config.batch, seconds)
