"""Compiles the stand-in for the CUDA runtime, and links host code against it.

Host code is compiled as ever, by nvcc; only the link is another one. What is there and newer than its sources is kept.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtual_gpu.locks import locked

_HERE = Path(__file__).parent
_SOURCES = ("runtime.cpp", "graphs.cpp")
_TORCH_SOURCE = "torch_device.cpp"
_FLAGS = ("-std=c++20", "-O2", "-Xcompiler=-fPIC,-Wall,-Wextra")

WRAPPED = (
    "aoti_torch_get_device_index",
    "aoti_torch_create_device_guard",
    "aoti_torch_delete_device_guard",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_aten_fill__Scalar",
    "torch_call_dispatcher",
)
"""Names of PyTorch's stable ABI whose calls torch_device.cpp takes."""


@dataclass(frozen=True)
class StandIn:
    """The compiled stand-in, and PyTorch's folder if it knows of tensors."""

    library: Path
    compiler: str
    torch: Path | None

    def link(self, objects: Sequence[Path], output: Path) -> Path:
        """A shared library of objects made by nvcc, whose CUDA calls and calls of PyTorch for a device come here."""
        wrapped = [f"-Wl,--wrap={name}" for name in WRAPPED] if self.torch else []
        command = [self.compiler, "-shared", "-Wl,-z,now,--no-undefined", *wrapped, *map(str, objects)]
        command += [str(self.library), *_torch_libraries(self.torch), "-o"]
        with locked(output.with_suffix(".lock")):
            _make(output, [self.library, *objects], command)
        return output


def stand_in(folder: Path, *, nvcc: str = "nvcc", torch: Path | None = None) -> StandIn:
    """Compiles the stand-in into `folder`, with the headers of nvcc's toolkit.

    torch: PyTorch's folder, for host code that is called through its stable ABI. Raises subprocess.CalledProcessError
    where a compiler fails, FileNotFoundError where there is none.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler was found (c++, g++)")
    folder.mkdir(parents=True, exist_ok=True)
    compile_one = [nvcc, *_FLAGS, *(["-DUSE_CUDA", "-isystem", str(torch / "include")] if torch else [])]
    # A process that has several finds each by its name.
    library = folder / f"libvirtual_cuda_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}.so"
    with locked(folder / "lock"):
        objects = []
        for name in (*_SOURCES, *([_TORCH_SOURCE] if torch else [])):
            objects.append(folder / f"{Path(name).stem}.o")
            source = _HERE / name
            _make(objects[-1], [source, _HERE / "runtime.h"], [*compile_one, "-c", str(source), "-o"])
        link = [compiler, "-shared", f"-Wl,-soname,{library.name},--no-undefined", *map(str, objects)]
        _make(library, objects, [*link, *_torch_libraries(torch), "-o"])
    return StandIn(library, compiler, torch)


def _torch_libraries(torch: Path | None) -> list[str]:
    return [f"-L{torch / 'lib'}", "-ltorch_cpu"] if torch else []


def _make(output: Path, sources: Sequence[Path], command: Sequence[str]) -> None:
    """Runs `command` with the output as its last word, if a source is newer than the output or that is not there."""
    if output.is_file() and all(source.stat().st_mtime <= output.stat().st_mtime for source in sources):
        return
    unfinished = output.with_name(f".{output.name}")
    subprocess.run([*command, str(unfinished)], check=True)
    unfinished.replace(output)
