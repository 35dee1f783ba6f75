"""The tools of a build and the torch it is built against."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from native_build.errors import BuildFailed, CannotBuild, unless_skipped

TARGET_TORCH = (2, 10)
KERNEL_STANDARD = "-std=c++17"


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler, ninja, and the folder and version of torch."""

    compiler: tuple[str, ...]
    ninja: str
    torch: Path
    torch_version: str

    def compiler_version(self) -> str:
        done = subprocess.run([*self.compiler, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout.splitlines() or ["unknown"])[0]

    def binding_standard(self) -> str:
        """The C++ standard this torch compiles extensions with (the one named there most), or that of kernels."""
        named = re.findall(r"-std=c\+\+\d+", _text(self.torch / "utils" / "cpp_extension.py"))
        return Counter(named).most_common(1)[0][0] if named else KERNEL_STANDARD

    def stable_abi(self) -> str:
        """The flag that hides from the headers whatever the oldest torch that is served does not have."""
        return f"-DTORCH_TARGET_VERSION=0x{TARGET_TORCH[0]:02x}{TARGET_TORCH[1]:02x}{0:012x}"


def find_toolchain() -> Toolchain:
    """Raises CannotBuild with the fix, or BuildFailed if the native library was demanded."""
    return unless_skipped("MEMFORMER_SKIP_NATIVE", "MEMFORMER_FORCE_NATIVE", _find_toolchain)


def _find_toolchain() -> Toolchain:
    if sys.platform != "linux":
        raise CannotBuild(f"the native CPU library is built on Linux only, not on {sys.platform}")
    compiler = _find_compiler()
    torch, version = _find_torch()
    return Toolchain(compiler, _find_ninja(), torch, version)


def _find_compiler() -> tuple[str, ...]:
    if "CXX" in os.environ:
        command = tuple(shlex.split(os.environ["CXX"]))
        if not command or shutil.which(command[0]) is None:
            raise BuildFailed(f"CXX={os.environ['CXX']!r} names no program; unset it or name a C++ compiler")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    raise CannotBuild("no C++ compiler was found (c++, g++, clang++, or CXX); install one, then install again")


def _find_torch() -> tuple[Path, str]:
    again = "install it, then install this package again with pip's --no-build-isolation, which lets the build see it"
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild(f"the build did not see torch; {again}")
    folder = Path(spec.submodule_search_locations[0])
    header = folder / "include" / "torch" / "headeronly" / "version.h"
    numbers = dict(re.findall(r"#define TORCH_VERSION_(MAJOR|MINOR|PATCH) (\d+)", _text(header)))
    found = tuple(int(numbers.get(part, 0)) for part in ("MAJOR", "MINOR", "PATCH"))
    if found < TARGET_TORCH:
        need = ".".join(map(str, TARGET_TORCH))
        raise CannotBuild(f"the torch in {folder} has no headers of version {need} or newer; {again}")
    return folder, ".".join(map(str, found))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _find_ninja() -> str:
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    found = str(beside) if beside.is_file() else shutil.which("ninja")
    if found is None:
        raise CannotBuild("ninja was not found; pip install ninja, then install again")
    return found
