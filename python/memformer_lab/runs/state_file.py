"""Files of training states: everything that `train_steps` needs to go on exactly, for one model or an ensemble.

The tensors are "parameters.q", ..., "first.q", ..., "second.q", ..., "masks.q", ... where there are masks, "seeds",
"streams", "skipped", and "tied" where models tie layers; the header holds the step and whatever the caller adds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import TrainState
from memformer_lab.runs.tensor_file import read_tensors, write_tensors

FORMAT = "memformer_lab.state"
VERSION = 2

_GROUPS = ("parameters", "first", "second", "masks")
_COUNTERS = ("seeds", "streams", "skipped")
_TIED = "tied"


def save_state(path: str | os.PathLike[str], state: TrainState, extra: Mapping[str, Any] | None = None) -> None:
    """Write a state, whole or not at all: a failure leaves the file that was there.

    Args:
        path: the file.
        state: what is saved.
        extra: JSON values that go with it.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors: dict[str, Tensor] = {name: getattr(state, name) for name in _COUNTERS}
    if state.tied is not None:
        tensors[_TIED] = state.tied
    for group in _GROUPS:
        tensors |= {f"{group}.{name}": value for name, value in getattr(state, group).items()}
    write_tensors(path, FORMAT, VERSION, {"step": state.step, "extra": dict(extra or {})}, tensors)


def load_state(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[TrainState, dict[str, Any]]:
    """The state in a file, with its models on `device`, and what the caller added.

    Args:
        path: the file.
        device: where the models go; the counters stay on the CPU.

    Returns:
        The state, and the header's extra entries.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, foreign or of another version, or holds no whole state, naming
            the path, what came and what was expected.
    """
    header, tensors = read_tensors(path, FORMAT, VERSION, {"step": int, "extra": dict})
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    counters: dict[str, Tensor] = {}
    for name, value in tensors.items():
        group, _, parameter = name.partition(".")
        if name in (*_COUNTERS, _TIED):
            counters[name] = value
        elif group in groups and parameter:
            groups[group][parameter] = value.to(device)
        else:
            raise ValueError(f"{path} has a tensor {name!r}, expected the tensors of a training state")
    if missing := sorted(set(_COUNTERS) - counters.keys()):
        raise ValueError(f"{path} has no tensors {missing}, expected them in a training state")
    try:
        parameters, first, second, masks = (groups[group] for group in _GROUPS)
        seeds, streams, skipped = (counters[name] for name in _COUNTERS)
        state = TrainState(
            parameters, first, second, seeds, streams, skipped, header["step"], masks, counters.get(_TIED)
        )
        return state, header["extra"]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no training state: {error}") from error
