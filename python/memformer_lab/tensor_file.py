"""Files of tensors with a checked header: one safetensors file, whole or not at all.

The safetensors metadata hold one entry, "memformer_lab": a JSON header with the format's name and version, whatever the
format adds, and a CRC-32 of the tensors. Nothing in such a file is ever executed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from memformer_lab.files import write_atomically

_ENTRY = "memformer_lab"


def write_tensors(
    path: str | os.PathLike[str], form: str, version: int, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors, from any device, and a header of JSON values; a failure leaves the file that was there.

    Raises:
        OSError: if the file cannot be written.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    whole = {"format": form, "version": version, **header, "crc32": _checksum(held)}
    write_atomically(path, serialise(held, {_ENTRY: json.dumps(whole)}))


def read_tensors(
    path: str | os.PathLike[str], form: str, version: int, kinds: Mapping[str, type]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors, on the CPU, of a file of this format and version.

    Args:
        path: the file.
        form: the format's name.
        version: the version that is understood.
        kinds: what the header must hold, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, foreign or of another version, naming the path, what came and
            what was expected.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a {form} file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}), expected a {form} file") from error
    header = _read_header(path, metadata, form, version, {**kinds, "crc32": int})
    if (found := _checksum(tensors)) != header["crc32"]:
        raise ValueError(f"{path} is corrupt: its tensors have CRC-32 {found}, expected {header['crc32']}")
    return header, tensors


def _read_header(
    path: Path, metadata: Mapping[str, str], form: str, version: int, kinds: Mapping[str, type]
) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get(_ENTRY, "null"))
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != form:
        came = sorted(metadata) if not isinstance(header, dict) else header.get("format")
        raise ValueError(f"{path} is not a checkpoint: its safetensors metadata are {came!r}, expected format {form!r}")
    if header.get("version") != version:
        raise ValueError(f"{path} has format version {header.get('version')!r}, expected {version}")
    for name, kind in kinds.items():
        if not isinstance(header.get(name), kind):
            raise ValueError(f"{path} has {name} = {header.get(name)!r} in its header, expected {kind.__name__}")
    return header


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
