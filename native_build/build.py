"""One build from tools to libraries in place, each beside a record of what it holds, or of why it is not there."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from native_build import cpu, cuda, ninja
from native_build.errors import BuildFailed, CannotBuild
from native_build.tools import Toolchain, find_toolchain


def build(
    root: Path,
    folder: Path,
    destination: Path,
    *,
    sanitizer: str | None = None,
    here: bool = False,
    quiet: bool = False,
) -> None:
    """Builds in `folder` what has changed and puts the libraries and records of what they hold into `destination`.

    A sanitizer, one of `cpu.SANITIZERS`, watches the CPU library, which is then built alone. `here`: what is in
    `destination` is brought up to date, and where nothing is, the CPU library is built for this processor alone. Raises
    CannotBuild, having left there a record of the reason and no library, or BuildFailed.
    """
    folder = folder.resolve()
    destination.mkdir(parents=True, exist_ok=True)
    try:
        toolchain = find_toolchain()
    except CannotBuild as reason:
        _leave_out(destination / cpu.LIBRARY, destination / cpu.RECORD, reason)
        _leave_out(destination / cuda.LIBRARY, destination / cuda.RECORD, reason)
        raise
    sets = cpu.instruction_sets(platform.machine())
    if here:
        sets = tuple(each for each in sets if each.name in _held(destination)) or (
            cpu.widest(platform.machine(), cpu.features_here()),
        )
    device = None
    if here and not (destination / cuda.LIBRARY).is_file():
        why_not = "the CPU library alone was built, for this processor: make native"
        _leave_out(destination / cuda.LIBRARY, destination / cuda.RECORD, why_not)
    elif sanitizer is None:
        device = _device(destination)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        lines = [*ninja.header(folder), *cpu.ninja_lines(root, folder, toolchain, sanitizer, sets)]
        if device is not None:
            lines += cuda.ninja_lines(root, folder, toolchain, device)
        _write_text(folder / "build.ninja", "\n".join(lines) + "\n")
        _run_ninja(root, folder, toolchain, quiet)
        _replace(folder / cpu.LIBRARY, destination / cpu.LIBRARY)
        record: dict[str, object] = {
            "instruction_sets": [each.name for each in sets],
            "compiler": toolchain.compiler_version(),
            "torch": toolchain.torch_version,
            "sanitizer": sanitizer,
        }
        _write(destination / cpu.RECORD, record)
        if device is not None:
            _replace(folder / cuda.LIBRARY, destination / cuda.LIBRARY)
            _write(destination / cuda.RECORD, _cuda_record(device, toolchain))


def _cuda_record(device: "cuda.Cuda", toolchain: Toolchain) -> dict[str, object]:
    return {
        "instruction_sets": device.targets(),
        "driver": device.driver,
        "compiler": f"nvcc {device.version[0]}.{device.version[1]}",
        "torch": toolchain.torch_version,
    }


def _device(destination: Path) -> "cuda.Cuda | None":
    """The CUDA compiler, or None, having left the reason."""
    try:
        return cuda.find_cuda()
    except CannotBuild as reason:
        _leave_out(destination / cuda.LIBRARY, destination / cuda.RECORD, reason)
        return None


def _held(destination: Path) -> list[str]:
    """The instruction sets of the CPU library that is there; none where either file is missing."""
    if not ((destination / cpu.LIBRARY).is_file() and (destination / cpu.RECORD).is_file()):
        return []
    record = json.loads((destination / cpu.RECORD).read_text(encoding="utf-8"))
    return list(record.get("instruction_sets", []))


def _leave_out(library: Path, record: Path, reason: Exception | str) -> None:
    library.unlink(missing_ok=True)
    _write(record, {"reason": str(reason)})


def _run_ninja(root: Path, folder: Path, toolchain: Toolchain, quiet: bool) -> None:
    command = [toolchain.ninja, "-f", str(folder / "build.ninja")]
    if "MAX_JOBS" in os.environ:
        command += ["-j", os.environ["MAX_JOBS"]]
    if quiet:
        command.append("--quiet")
    sys.stdout.flush()
    if subprocess.run(command, cwd=root, check=False).returncode != 0:
        raise BuildFailed(
            "compiling the native libraries failed, the compiler's message is above; MEMFORMER_SKIP_CUDA=1 installs "
            "without the CUDA library, MEMFORMER_SKIP_NATIVE=1 without any"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time in a folder. Only where something is built, which is on Linux, is there such a lock."""
    import fcntl

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
