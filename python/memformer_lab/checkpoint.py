"""Checkpoints: everything a run needs to continue exactly, in one safetensors file.

The tensors are the model's parameters ("model.q", ...), Adam's moments ("first.q", "second.q", ...) and the state of
the tasks' generator ("generator", uint8). The safetensors metadata hold one entry, "memformer_lab": a JSON header with
the format's name and version, the run's configuration and progress, and a CRC-32 of the tensors.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from memformer_lab.config import TrainingConfig
from memformer_lab.files import write_atomically

FORMAT = "memformer_lab.checkpoint"
VERSION = 1

_ENTRY = "memformer_lab"
_GROUPS = ("model", "first", "second")


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after `step` optimiser steps.

    Attributes:
        config: the run.
        step: optimiser steps done.
        loss_sum: sum of the losses since the last line of metrics.
        device: kind of device the generator draws on ("cpu", "cuda").
        generator: (bytes,) uint8, state from which the tasks of the current or next batch are drawn.
        model: the model's parameters by name.
        first: Adam's first moments by parameter name; empty before the first step.
        second: Adam's second moments, likewise.
    """

    config: TrainingConfig
    step: int
    loss_sum: float
    device: str
    generator: Tensor
    model: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all: a failure leaves the file that was there.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {"generator": checkpoint.generator}
    for group in _GROUPS:
        tensors |= {f"{group}.{name}": value for name, value in getattr(checkpoint, group).items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_dict(),
        "step": checkpoint.step,
        "loss_sum": checkpoint.loss_sum,
        "device": checkpoint.device,
        "crc32": _checksum(tensors),
    }
    write_atomically(path, serialise(tensors, {_ENTRY: json.dumps(header)}))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, foreign or of another version, naming the path, what came and
            what was expected.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a {FORMAT} file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}), expected a {FORMAT} file") from error
    header = _read_header(path, metadata)
    if (found := _checksum(tensors)) != header["crc32"]:
        raise ValueError(f"{path} is corrupt: its tensors have CRC-32 {found}, expected {header['crc32']}")
    if "generator" not in tensors:
        raise ValueError(f"{path} has tensors {sorted(tensors)}, expected 'generator' among them")
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
    return Checkpoint(config, header["step"], header["loss_sum"], header["device"], tensors["generator"], **groups)


_HEADER = {"config": dict, "step": int, "loss_sum": float, "device": str, "crc32": int}


def _read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get(_ENTRY, "null"))
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        came = sorted(metadata) if not isinstance(header, dict) else header.get("format")
        raise ValueError(
            f"{path} is not a checkpoint: its safetensors metadata are {came!r}, expected format {FORMAT!r}"
        )
    if header.get("version") != VERSION:
        raise ValueError(f"{path} has format version {header.get('version')!r}, expected {VERSION}")
    for name, kind in _HEADER.items():
        if not isinstance(header.get(name), kind):
            raise ValueError(f"{path} has {name} = {header.get(name)!r} in its header, expected {kind.__name__}")
    if header["step"] < 0 or not math.isfinite(header["loss_sum"]):
        raise ValueError(f"{path} has step = {header['step']} and loss_sum = {header['loss_sum']}, expected progress")
    return header


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
