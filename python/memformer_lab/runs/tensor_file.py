"""Files of tensors with a checked header: one safetensors file, whole or not at all.

The safetensors metadata hold two entries: "memformer_lab", a JSON header with the format's name and version and
whatever the format adds, and "sha256", of the whole file as it is with zeros in the digest's own place: no bit of it
can change unnoticed. Nothing in such a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from memformer_lab.runs.files import write_atomically

_ENTRY = "memformer_lab"
_DIGEST = "sha256"
_BLANK = "0" * 64


def write_tensors(
    path: str | os.PathLike[str], form: str, version: int, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors, from any device, and a header of JSON values; a failure leaves the file that was there.

    Args:
        path: the file.
        form: the format's name.
        version: of the format.
        header: what the format adds to its name and version.
        tensors: by name.

    Raises:
        OSError: if the file cannot be written.
        TypeError, ValueError: if the header holds what is no JSON value, or one that is nested too deep.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        entry = json.dumps({"format": form, "version": version, **header})
    except RecursionError as error:
        raise ValueError(f"a header of {form} is nested too deep, expected JSON values") from error
    blank = serialise(held, {_ENTRY: entry, _DIGEST: _BLANK})
    write_atomically(path, _with_digest(blank, _BLANK, hashlib.sha256(blank).hexdigest()))


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
        OSError: if it cannot be read.
        ValueError: if the file is no regular one, truncated, corrupt, foreign or of another version, naming the path,
            what came and what was expected.
    """
    path = Path(path)
    data = _read(path, form)
    try:
        tensors = parse(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}), expected a {form} file") from error
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    header = _read_header(path, metadata, form, version)
    digest = metadata.get(_DIGEST, "")
    found = hashlib.sha256(_with_digest(data, digest, _BLANK)).hexdigest()
    if found != digest:
        raise ValueError(f"{path} is corrupt: its SHA-256 is {found}, expected {digest or 'one in its metadata'}")
    for name, kind in kinds.items():
        if type(header.get(name)) is not kind:
            raise ValueError(f"{path} has {name} = {header.get(name)!r} in its header, expected {kind.__name__}")
    return header, tensors


def _read(path: Path, form: str) -> bytes:
    """A regular file's bytes; what is none may have no end, or wait for somebody to write."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is a folder, a device or a FIFO, expected a {form} file")
    with open(descriptor, "rb") as file:
        return file.read()


def _with_digest(data: bytes, old: str, new: str) -> bytes:
    """The file with another digest: a string of its header, which comes before anything else that reads like it."""
    return data.replace(f'"{old}"'.encode(), f'"{new}"'.encode(), 1)


def _read_header(path: Path, metadata: Mapping[str, str], form: str, version: int) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get(_ENTRY, "null"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != form:
        came = sorted(metadata) if not isinstance(header, dict) else header.get("format")
        raise ValueError(f"{path} is not a checkpoint: its safetensors metadata are {came!r}, expected format {form!r}")
    if header.get("version") != version:
        raise ValueError(f"{path} has format version {header.get('version')!r}, expected {version}")
    return header
