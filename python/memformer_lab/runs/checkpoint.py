"""Checkpoints: everything a run needs to continue exactly, in one safetensors file.

The tensors are the model's parameters ("model.q", ...), Adam's moments ("first.q", "second.q", ...) and, where tasks
are drawn by a generator of torch, its state ("generator", uint8). The header holds the run's configuration and its
progress.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.tensor_file import read_tensors, write_tensors

FORMAT = "memformer_lab.checkpoint"
VERSION = 3

_GROUPS = ("model", "first", "second")


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after `step` optimiser steps.

    Attributes:
        config: the run.
        step: optimiser steps done.
        loss_sum: sum of the losses since the last line of metrics.
        device: kind of device the tasks are drawn on ("cpu", "cuda").
        generator: (bytes,) uint8, state from which the tasks of the current or next batch are drawn; None where they
            are a function of the seed and the step.
        model: the model's parameters by name.
        first: Adam's first moments by parameter name; empty before the first step.
        second: Adam's second moments, likewise.
    """

    config: TrainingConfig
    step: int
    loss_sum: float
    device: str
    generator: Tensor | None
    model: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all: a failure leaves the file that was there.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {} if checkpoint.generator is None else {"generator": checkpoint.generator}
    for group in _GROUPS:
        tensors |= {f"{group}.{name}": value for name, value in getattr(checkpoint, group).items()}
    header = {
        "config": checkpoint.config.to_dict(),
        "step": checkpoint.step,
        "loss_sum": checkpoint.loss_sum,
        "device": checkpoint.device,
    }
    write_tensors(path, FORMAT, VERSION, header, tensors)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, foreign or of another version, naming the path, what came and
            what was expected.
    """
    path = Path(path)
    header, tensors = read_tensors(
        path, FORMAT, VERSION, {"config": dict, "step": int, "loss_sum": float, "device": str}
    )
    if header["step"] < 0 or not math.isfinite(header["loss_sum"]):
        raise ValueError(f"{path} has step = {header['step']} and loss_sum = {header['loss_sum']}, expected progress")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for name, value in tensors.items():
        group, _, parameter = name.partition(".")
        if name != "generator":
            if group not in groups:
                raise ValueError(f"{path} has a tensor {name!r}, expected names that begin with {', '.join(_GROUPS)}")
            groups[group][parameter] = value
    try:
        config = TrainingConfig.from_dict(header["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no usable configuration: {error}") from error
    generator = tensors.get("generator")
    if (generator is None) == (config.backend == "torch"):
        raise ValueError(
            f"{path} has tensors {sorted(tensors)}, expected 'generator' among them for backend 'torch' alone"
        )
    return Checkpoint(config, header["step"], header["loss_sum"], header["device"], generator, **groups)
