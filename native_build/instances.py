"""The instances of CUDA kernels: one list, csrc/cuda/kernels/instances.txt, from which the build writes their sources.

Each object of the list is a source of explicit instantiations. Whoever launches them includes "instances/NAME.h", NAME
that of the header they come from, which declares them `extern`: nothing is compiled twice.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from native_build.errors import BuildFailed

LIST = "csrc/cuda/kernels/instances.txt"
FOLDER = "instances"
"""Of what is written, in the build's folder, which is an include folder."""


@dataclass(frozen=True)
class Instance:
    """A function template's instance, the object it is compiled in, and the header under csrc that defines it."""

    name: str
    header: str
    function: str


def read(root: Path) -> list[Instance]:
    """The list of a tree. Raises BuildFailed for a line that is no header, no instance and no comment."""
    found, header = [], None
    for number, line in enumerate((root / LIST).read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].strip()
        if heading := re.fullmatch(r"\[(\S+)\]", text):
            header = heading[1]
        elif header is not None and (parts := re.fullmatch(r"(\w+)\s+(\w+<.+>)", text)):
            found.append(Instance(parts[1], header, parts[2]))
        elif text:
            raise BuildFailed(f"{LIST}:{number}: expected '[header]' or 'object function<...>', got {line!r}")
    return found


def source(folder: Path, name: str) -> Path:
    """Where the source of an object is written."""
    return folder / FOLDER / f"{name}.cu"


def write(root: Path, folder: Path) -> None:
    """Writes into the build's folder what has changed, and removes what the list no longer has."""
    texts = _texts(read(root))
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in (folder / FOLDER).iterdir():
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _texts(instances: list[Instance]) -> dict[str, str]:
    texts = {}
    for header in {instance.header for instance in instances}:
        declared = [f"extern {_instantiation(one)}" for one in instances if one.header == header]
        texts[f"{Path(header).stem}.h"] = _text(["#pragma once"], declared)
    for name in {instance.name for instance in instances}:
        own = [instance for instance in instances if instance.name == name]
        headers = dict.fromkeys(("cuda/machine/grid.cuh", *(one.header for one in own)))
        texts[f"{name}.cu"] = _text([f'#include "{header}"' for header in headers], [*map(_instantiation, own)])
    return texts


def _instantiation(instance: Instance) -> str:
    """Of a function by its own type, which spares the list the arguments."""
    return f"template decltype({instance.function}) {instance.function};"


def _text(first: list[str], declarations: list[str]) -> str:
    lines = [f"// Written by the build from {LIST}.", "", *first, "", "namespace memformer::cuda {", ""]
    return "\n".join([*lines, *declarations, "", "}  // namespace memformer::cuda"]) + "\n"
