"""Builds the native CPU library: finds the tools, writes build.ninja, runs ninja, puts the result in place.

The library is a plain shared object that talks to PyTorch through its stable ABI: it depends on no version of Python
and serves every torch from TARGET_TORCH on. Kernel sources are compiled once per instruction set; which one runs is
chosen when the library is used. setup.py is the only user of this file. Nothing here imports torch: its headers are
found by looking for its folder.
"""

import fcntl
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "memformer_cpu.so"
RECORD = "memformer_cpu.json"
TARGET_TORCH = (2, 10)

WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized", "-Wno-psabi")
COMMON_FLAGS = (
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=fast",
    *WARNINGS,
)
OPTIMISED = ("-O3",)
# Unoptimised: watching every access of what -O1 inlines and unrolls takes the compiler several times as long.
SANITIZED = ("-O0", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
KERNEL_STANDARD = "-std=c++17"


class CannotBuild(Exception):
    """Something that a build needs is not here, or is not wanted; the message names the mend."""


class BuildFailed(Exception):
    """The tools are here and failed."""


@dataclass(frozen=True)
class InstructionSet:
    """Kernels are compiled for it with these flags, and with MEMFORMER_ISA and MEMFORMER_VECTOR_BYTES defined."""

    name: str
    vector_bytes: int
    flags: tuple[str, ...] = ()

    def defines(self) -> tuple[str, ...]:
        return (f"-DMEMFORMER_ISA={self.name}", f"-DMEMFORMER_VECTOR_BYTES={self.vector_bytes}")


BASELINE = InstructionSet("baseline", 16)
AVX2 = InstructionSet("avx2", 32, ("-mavx2", "-mfma", "-mf16c"))
AVX512 = InstructionSet(
    "avx512",
    64,
    (
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
)


def instruction_sets(machine: str) -> tuple[InstructionSet, ...]:
    """What ships for a machine, by its `platform.machine()`."""
    return (BASELINE, AVX2, AVX512) if machine in ("x86_64", "AMD64") else (BASELINE,)


@dataclass(frozen=True)
class Toolchain:
    """The tools of a build and the torch it is built against."""

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


def wanted(name: str) -> bool:
    """Whether an environment variable is set to 1. Raises BuildFailed for anything but 0, 1 and nothing."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildFailed(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


def find_toolchain() -> Toolchain:
    """Raises CannotBuild with the mend, or BuildFailed if the native library was demanded."""
    skip, force = wanted("MEMFORMER_SKIP_NATIVE"), wanted("MEMFORMER_FORCE_NATIVE")
    if skip and force:
        raise BuildFailed("MEMFORMER_SKIP_NATIVE=1 and MEMFORMER_FORCE_NATIVE=1 contradict each other; unset one")
    if skip:
        raise CannotBuild("MEMFORMER_SKIP_NATIVE=1 was set; install again without it")
    try:
        return _find_toolchain()
    except CannotBuild as reason:
        if force:
            raise BuildFailed(f"MEMFORMER_FORCE_NATIVE=1 is set, but {reason}") from reason
        raise


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


@dataclass(frozen=True)
class Compilation:
    """One object file: its source and the flags that are its own."""

    source: Path
    output: str
    flags: tuple[str, ...]


def compilations(root: Path, toolchain: Toolchain) -> Iterator[Compilation]:
    """csrc/cpu/kernels once per instruction set, csrc/cpu and csrc/binding once; only the binding sees torch."""
    for instruction_set in instruction_sets(platform.machine()):
        flags = (KERNEL_STANDARD, *instruction_set.defines(), *instruction_set.flags)
        for source in _sources(root, "csrc/cpu/kernels"):
            yield Compilation(source, f"{instruction_set.name}/{source.stem}.o", flags)
    for source in _sources(root, "csrc/cpu"):
        yield Compilation(source, f"cpu/{source.stem}.o", (KERNEL_STANDARD,))
    abi = f"-DTORCH_TARGET_VERSION=0x{TARGET_TORCH[0]:02x}{TARGET_TORCH[1]:02x}{0:012x}"
    include = toolchain.torch / "include"
    # Its checks name the header they stand in: without the folder, which is of this machine.
    headers = ("-isystem", str(include), f"-fmacro-prefix-map={include}/=")
    for source in _sources(root, "csrc/binding"):
        yield Compilation(source, f"binding/{source.stem}.o", (toolchain.binding_standard(), abi, *headers))


def _sources(root: Path, folder: str) -> list[Path]:
    return [path.relative_to(root) for path in sorted((root / folder).glob("*.cpp"))]


def ninja_file(root: Path, folder: Path, toolchain: Toolchain, sanitize: bool) -> str:
    """The text of build.ninja. Sources are relative to the root, so that objects do not name where they were built."""
    program = Path(shutil.which(toolchain.compiler[0]) or toolchain.compiler[0]).resolve()
    mode = SANITIZED if sanitize else OPTIMISED
    common = [*toolchain.compiler, *COMMON_FLAGS, *mode, "-Icsrc"]
    # torch's libraries export pieces of the C++ library too: its own come first, so that nothing binds to torch's.
    libraries = ["-lstdc++", f"-L{toolchain.torch / 'lib'}", "-ltorch_cpu"]
    # A sanitizer's own symbols come from the process it runs in, not from a library that is linked.
    closed = [] if sanitize else ["-Wl,--no-undefined"]
    link = [*toolchain.compiler, "-shared", "-pthread", "-Wl,-z,now", *mode, *closed]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {_path(folder)}",
        "rule compile",
        # -MD also follows the headers of torch and of the compiler: a new version of either builds anew.
        f"  command = {_command(common)} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        f"  command = {_command(link)} $in {_command(libraries)} -o $out",
        "  description = link $out",
    ]
    objects = []
    for unit in compilations(root, toolchain):
        objects.append(_path(folder / unit.output))
        lines.append(f"build {objects[-1]}: compile {_path(unit.source)} | {_path(program)}")
        lines.append(f"  flags = {_command(unit.flags)}")
    if not objects:
        raise BuildFailed(f"there are no sources under {root / 'csrc'}")
    lines.append(f"build {_path(folder / LIBRARY)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _command(words: list[str] | tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")


def build(root: Path, folder: Path, destination: Path, *, sanitize: bool = False, quiet: bool = False) -> None:
    """Builds in `folder` what has changed and puts the library and a record of what it holds into `destination`.

    Raises CannotBuild, having left there a record of the reason and no library, or BuildFailed.
    """
    folder = folder.resolve()
    destination.mkdir(parents=True, exist_ok=True)
    try:
        toolchain = find_toolchain()
    except CannotBuild as reason:
        (destination / LIBRARY).unlink(missing_ok=True)
        _write(destination / RECORD, {"reason": str(reason)})
        raise
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        _write_text(folder / "build.ninja", ninja_file(root, folder, toolchain, sanitize))
        _run_ninja(root, folder, toolchain, quiet)
        _replace(folder / LIBRARY, destination / LIBRARY)
        record = {
            "instruction_sets": [instruction_set.name for instruction_set in instruction_sets(platform.machine())],
            "compiler": toolchain.compiler_version(),
            "torch": toolchain.torch_version,
            "sanitized": sanitize,
        }
        _write(destination / RECORD, record)


def _run_ninja(root: Path, folder: Path, toolchain: Toolchain, quiet: bool) -> None:
    command = [toolchain.ninja, "-f", str(folder / "build.ninja")]
    if "MAX_JOBS" in os.environ:
        command += ["-j", os.environ["MAX_JOBS"]]
    if quiet:
        command.append("--quiet")
    sys.stdout.flush()
    if subprocess.run(command, cwd=root, check=False).returncode != 0:
        raise BuildFailed(
            "compiling the native CPU library failed, the compiler's message is above; "
            "MEMFORMER_SKIP_NATIVE=1 installs without it"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time in a folder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(source: Path, target: Path) -> None:
    """A copy under the final name in one step: processes that have the old library loaded keep it whole."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    temporary.replace(target)


def _write(path: Path, record: dict[str, object]) -> None:
    _write_text(path, json.dumps(record, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
