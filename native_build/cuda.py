"""The CUDA library: kernels for every architecture at once, decided by the compiler that is here and never by a GPU.

It is loaded only where torch has CUDA, so what it needs of such a torch is no part of the torch it is built against: a
stub with that library's name stands in when linking.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from native_build import instances, ninja
from native_build.errors import BuildFailed, CannotBuild, unless_skipped
from native_build.tools import KERNEL_STANDARD, Toolchain

LIBRARY = "memformer_cuda.so"
RECORD = "memformer_cuda.json"
STUB = "stubs/libtorch_cuda.so"
OLDEST_NVCC = (12, 0)
"""The first with bulk asynchronous copies."""

OLDEST_GENERATION = 8
"""The first with asynchronous copies to shared memory."""

NEWER_GENERATION = 9
"""The first with bulk asynchronous copies and clusters: from here on sources read in another way."""

KERNELS = "csrc/cuda/kernels"
DEVICE_FLAGS = (KERNEL_STANDARD, "-O3", "-Icsrc")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


@dataclass(frozen=True)
class Architecture:
    """A compute capability such as "90" or "90a": machine code for it and, if `portable`, what newer GPUs compile.

    Machine code comes from the oldest PTX that reads the sources in the same way, whatever else is built: one PTX, most
    of the compiler's work, serves a family, and a GPU gets the same code from every build that is for it.
    """

    capability: str
    portable: bool = False

    @property
    def number(self) -> int:
        return int(self.capability.rstrip("af"))

    @property
    def ptx(self) -> str:
        """The capability that its PTX is for: its own where it names a variant, whose PTX no other takes."""
        if not self.capability.isdigit():
            return self.capability
        return f"{NEWER_GENERATION if self.number >= 10 * NEWER_GENERATION else OLDEST_GENERATION}0"

    def names(self) -> list[str]:
        return [f"sm_{self.capability}", *([f"compute_{self.ptx}"] if self.portable else [])]


@dataclass(frozen=True)
class Cuda:
    """nvcc, its version, the host compiler it is told to use, and what it compiles for."""

    nvcc: str
    version: tuple[int, int]
    host: tuple[str, ...]
    architectures: tuple[Architecture, ...]

    def flags(self) -> tuple[str, ...]:
        """What nvcc is told to compile for: a family of architectures at a time."""
        families: dict[str, list[str]] = {}
        for architecture in self.architectures:
            families.setdefault(architecture.ptx, []).extend(architecture.names())
        return tuple(
            f"-gencode=arch=compute_{ptx},code=[{','.join(dict.fromkeys(names))}]" for ptx, names in families.items()
        )

    @property
    def driver(self) -> int:
        """The oldest driver that serves, as the driver numbers versions: any of the same major version of CUDA."""
        return 1000 * self.version[0]

    def targets(self) -> list[str]:
        return list(dict.fromkeys(name for architecture in self.architectures for name in architecture.names()))


def find_cuda() -> Cuda:
    """Raises CannotBuild with the fix, or BuildFailed if the CUDA library was demanded."""
    return unless_skipped("MEMFORMER_SKIP_CUDA", "MEMFORMER_FORCE_CUDA", _find_cuda)


def _find_cuda() -> Cuda:
    nvcc = _find_nvcc()
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST_NVCC:
        need = ".".join(map(str, OLDEST_NVCC))
        raise CannotBuild(f"{nvcc} is not of CUDA {need} or newer; install a newer one and build again")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed.stdout)}
    return Cuda(nvcc, version, _host_compiler(), architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known))


def _find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = Path(home, "bin", "nvcc")
        if not nvcc.is_file():
            raise BuildFailed(f"CUDA_HOME={home!r} holds no bin/nvcc; unset it or name a CUDA toolkit's folder")
        return str(nvcc)
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise CannotBuild(
            "no nvcc was found (CUDA_HOME, PATH, /usr/local/cuda); install a CUDA toolkit, then build again"
        )
    return found


def _host_compiler() -> tuple[str, ...]:
    """nvcc takes a program and no words beside it: CXX where it is one, else nvcc's own choice."""
    named = os.environ.get("CUDAHOSTCXX") or os.environ.get("CXX", "")
    words = shlex.split(named)
    return (f"-ccbin={words[0]}",) if len(words) == 1 else ()


def architectures(listed: str, known: set[int]) -> tuple[Architecture, ...]:
    """What TORCH_CUDA_ARCH_LIST lists, such as "8.0;9.0a 10.0+PTX"; empty: 8.0, 9.0 and 10.0, where nvcc knows them.

    Machine code serves its own generation and PTX every later one. Entries before 8.0, which images list for others,
    are left out.

    Raises:
        BuildFailed: an entry that is not such a number, or none from 8.0 on.
    """
    if not listed.strip():
        chosen = [number for number in (80, 90, 100) if number in known]
        if not chosen:
            raise BuildFailed("nvcc knows none of 8.0, 9.0 and 10.0; set TORCH_CUDA_ARCH_LIST to what it knows")
        return tuple(Architecture(str(number), number == chosen[-1]) for number in chosen)
    made = []
    expected = "TORCH_CUDA_ARCH_LIST: expected compute capabilities from 8.0 on, such as '8.0;9.0;10.0+PTX'"
    for entry in re.split(r"[;,\s]+", listed.strip("; ,")):
        parts = re.fullmatch(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", entry)
        if parts is None:
            raise BuildFailed(f"{expected}, got {entry!r}")
        if int(parts[1]) >= OLDEST_GENERATION:
            made.append(Architecture(parts[1] + parts[2] + parts[3], parts[4] is not None))
    if not made:
        raise BuildFailed(f"{expected}, got {listed!r}")
    return tuple(made)


def kernels(root: Path, folder: Path) -> list[Path]:
    """The sources of kernels, relative to the root: those of csrc and those that the build writes into its folder."""
    written = dict.fromkeys(instance.name for instance in instances.read(root))
    found = [*ninja.sources(root, KERNELS, "*.cu"), *(instances.source(_place(root, folder), name) for name in written)]
    if len({source.stem for source in found}) < len(found):
        raise BuildFailed(f"a source in {KERNELS} has the name of an object in {instances.LIST}")
    return found


def kernel_object(source: Path) -> str:
    """The place of a kernel's object in the build's folder."""
    return f"cuda/kernels/{source.stem}.o"


def device_flags(root: Path, folder: Path) -> tuple[str, ...]:
    """How kernels are compiled, for whatever they are compiled for."""
    return (*DEVICE_FLAGS, f"-I{_place(root, folder)}")


def _place(root: Path, folder: Path) -> Path:
    """A build's folder as seen from the root, where compilers run: objects do not name where they were built."""
    return Path(os.path.relpath(folder, root))


def objects(root: Path, folder: Path, toolchain: Toolchain, cuda: Cuda) -> Iterator[ninja.Object]:
    """csrc/cuda/kernels and the instances of their list, and csrc/binding/cuda; only the binding sees torch."""
    for source in kernels(root, folder):
        flags = (*cuda.flags(), *device_flags(root, folder))
        yield ninja.Object(source, kernel_object(source), flags)
    include = toolchain.torch / "include"
    headers = ("-isystem", str(include), "-Xcompiler", f"-fmacro-prefix-map={include}/=")
    for source in ninja.sources(root, "csrc/binding/cuda"):
        # USE_CUDA declares the calls that a torch with CUDA has, in the headers of any.
        flags = (toolchain.binding_standard(), "-O2", "-Icsrc", "-DUSE_CUDA", toolchain.stable_abi(), *headers)
        yield ninja.Object(source, f"cuda-binding/{source.stem}.o", flags)


def ninja_lines(root: Path, folder: Path, toolchain: Toolchain, cuda: Cuda) -> list[str]:
    """The rules of the library and everything it is made of, having written the sources of instances."""
    instances.write(root, folder)
    nvcc = [cuda.nvcc, *cuda.host]
    compile_device = [*nvcc, f"-Xcompiler={','.join(HOST_FLAGS)}"]
    # What the CUDA runtime defines stays inside: torch brings its own.
    closed = "-Xlinker=-z,now,--no-undefined,--exclude-libs,ALL"
    link = [*nvcc, "-shared", "-nodlink", "-cudart=static", "-Xcompiler=-pthread", closed]
    # The stub's folder first: a torch with CUDA must not make another library than one without.
    folders = [f"-L{folder / Path(STUB).parent}", f"-L{toolchain.torch / 'lib'}"]
    libraries = ["-lstdc++", *folders, "-ltorch_cpu", "-ltorch_cuda"]
    stub = [*toolchain.compiler, "-shared", "-nostdlib", "-Wl,-soname,libtorch_cuda.so"]
    program = Path(shutil.which(cuda.nvcc) or cuda.nvcc).resolve()
    lines = [
        *ninja.compile_rule("compile_cuda", compile_device),
        *ninja.link_rule("link_stub", stub, []),
        *ninja.link_rule("link_cuda", link, libraries),
        *ninja.made("link_stub", folder / STUB, ninja.sources(root, "csrc/binding/cuda/stubs")),
    ]
    made = []
    for unit in objects(root, folder, toolchain, cuda):
        made.append(folder / unit.output)
        lines += ninja.made("compile_cuda", made[-1], [unit.source], [program], unit.flags)
    return [*lines, *ninja.made("link_cuda", folder / LIBRARY, made, [folder / STUB])]
