"""What can run here, and why something cannot: one answer for plans, `build_info` and errors.

`fault` says why a backend cannot run in this process, whatever the tensors; it is found when it is first asked for and
stays. A native library counts once it has been loaded, so that one that is there but broken is no different from one
that is missing.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memformer_kernels import library, torch_internals, triton_support
from memformer_kernels.version import __version__

OLDEST_GENERATION = 8
"""Major compute capability of the oldest GPUs that the CUDA library can be built for (native_build/cuda.py)."""


@dataclass(frozen=True)
class BackendInfo:
    """One backend: whether it can run here, for which architectures it is built, and if not, why, and how to fix it."""

    name: str
    available: bool
    architectures: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class BuildInfo:
    """The package, what it runs on, and its backends by name."""

    version: str
    python: str
    torch: str
    cuda: str | None
    triton: str | None
    backends: dict[str, BackendInfo]

    def __str__(self) -> str:
        lines = [
            f"memformer_kernels {self.version} on Python {self.python}, torch {self.torch}, "
            f"CUDA {self.cuda or 'absent'}, triton {self.triton or 'absent'}"
        ]
        for info in self.backends.values():
            state = "available" if info.available else "missing"
            built = f" for {', '.join(info.architectures)}" if info.architectures else ""
            lines.append(f"  {info.name:<7} {state}{built}: {info.reason}")
        return "\n".join(lines)


# Set at import: a compiler that traces a call meets a constant.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"

VIRTUAL = False
"""Whether the CUDA library runs on a virtual GPU, as tests and benchmarks let it: tensors of the host then count as a
GPU's."""

_faults: dict[str, str | None] = {"torch": None}
_told: set[str] = set()


@torch_internals.constant_under_compilers
def fault(backend: str) -> str | None:
    """Why a backend cannot run in this process, and how to fix it; None where it can. Runs nothing on a GPU."""
    if backend not in _faults:
        _faults[backend] = _LOOKS[backend]()
    return _faults[backend]


def available(backend: str) -> bool:
    """Whether a backend can run in this process on tensors of a device that it serves."""
    return fault(backend) is None


@torch_internals.constant_under_compilers
def tell_of_fallback(backend: str) -> None:
    """Warns, once a process, that calls which a backend would serve go to plain PyTorch, why, and how to fix it."""
    why_not = fault(backend)
    if why_not is not None and backend not in _told:
        _told.add(backend)
        message = (
            f"memformer_kernels: backend {backend!r} is not available, so that its calls run in plain PyTorch, slower: "
            f"{why_not}. This is said once; build_info() has it too."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def known() -> tuple[object, ...]:
    """All that plans have been told so far: what they remember holds as long as this stays the same."""
    return (*_faults.values(), VIRTUAL)


def place(device: str) -> str:
    """What plans take a kind of device for."""
    return "cuda" if VIRTUAL else device


def build_info() -> BuildInfo:
    """Which backends can run here, for which architectures they are built, and why one cannot.

    Loads the native libraries, as a first call does; runs nothing on a GPU.

    Returns:
        Versions and backends, which `print` shows as a table.
    """
    machine = (platform.machine(), *torch.cuda.get_arch_list()) if torch.cuda.is_available() else (platform.machine(),)
    generations = tuple(f"sm_{major}x" for major in triton_support.GENERATIONS)
    kernels = "Triton's interpreter, slow, on CPU tensors but bfloat16 (TRITON_INTERPRET=1)"
    can = {
        "torch": (machine, "plain PyTorch, every device torch supports"),
        "cpu": (library.status("cpu").instruction_sets, library.status("cpu").reason),
        "cuda": (library.status("cuda").instruction_sets, library.status("cuda").reason),
        "triton": (generations, kernels if INTERPRETS else "fused kernels, compiled at first call"),
    }
    backends = {}
    for name, (architectures, how) in can.items():
        why_not = fault(name)
        built = architectures if why_not is None else ()
        backends[name] = BackendInfo(name, why_not is None, built, how if why_not is None else why_not)
    return BuildInfo(
        version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=_triton_version(),
        backends=backends,
    )


def _cuda_library_fault() -> str | None:
    found = library.status("cuda")
    if found.path is None:
        return found.reason
    if torch.version.cuda is None:
        return f"{found.reason}, but torch {torch.__version__} is one without CUDA"
    why_not = _driver_fault(found.driver)
    if why_not is None and not torch.cuda.is_available():
        why_not = "no NVIDIA GPU that torch can use"
    return library.fault("cuda") if why_not is None else f"{found.reason}, but {why_not}"


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "of another distribution"


def _triton_fault() -> str | None:
    version = _triton_version()
    if version is None:
        return "triton is not installed: pip install 'memformer_kernels[triton]'"
    why_not = triton_support.release_fault(version)
    if why_not is not None:
        return why_not
    if INTERPRETS or (torch.version.cuda is not None and torch.cuda.is_available()):
        return None
    if torch.version.hip is not None:
        return f"the kernels have been checked on NVIDIA GPUs alone, and torch {torch.__version__} is one for ROCm"
    return "no NVIDIA GPU that torch can use; TRITON_INTERPRET=1 runs the kernels in Triton's interpreter"


_LOOKS: dict[str, Callable[[], str | None]] = {
    "cpu": lambda: library.fault("cpu"),
    "cuda": _cuda_library_fault,
    "triton": _triton_fault,
}


def triton_on_host() -> Any | None:
    """Triton's active driver where its tensors lie on the CPU, as a virtual GPU's do; None where there is none such."""
    if _triton_version() is None:
        return None
    import triton

    try:
        driver = triton.runtime.driver.active
    except RuntimeError:  # neither a GPU nor a driver that somebody chose
        return None
    return driver if driver.get_active_torch_device().type == "cpu" else None


def _driver_fault(needed: int) -> str | None:
    driver = _driver_version()
    if driver == 0:
        return "there is no NVIDIA driver here: install one"
    if driver < needed:
        return (
            f"the CUDA library needs a driver for CUDA {needed // 1000}, the one here is for "
            f"{driver // 1000}.{driver % 1000 // 10}: update the driver, or build with an nvcc of CUDA {driver // 1000}"
        )
    return None


@functools.cache
def _look_for_cuda_fault(index: int) -> str | None:
    found = library.status("cuda")
    why_not = _driver_fault(found.driver)
    if why_not is not None:
        return why_not
    major, minor = torch.cuda.get_device_capability(index)
    if serves(found.instruction_sets, major, minor):
        return None
    if major < OLDEST_GENERATION:
        return (
            f"the CUDA library serves GPUs from compute capability {OLDEST_GENERATION}.0 on, GPU {index} is of "
            f"{major}.{minor}: backend='auto' serves it too"
        )
    return (
        f"the CUDA library holds {', '.join(found.instruction_sets)}, and GPU {index} is of capability "
        f"{major}.{minor}: build with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


@torch_internals.constant_under_compilers
def cuda_fault(index: int = 0) -> str | None:
    """Why the CUDA library cannot run on a GPU of this process, and how to fix it. Asked when a tensor lies on it."""
    return _look_for_cuda_fault(index)


@functools.cache
def _look_for_triton_fault(index: int) -> str | None:
    why_not = triton_support.gpu_fault(*torch.cuda.get_device_capability(index))
    return None if why_not is None else f"GPU {index} is {why_not}"


@torch_internals.constant_under_compilers
def triton_fault(index: int = 0) -> str | None:
    """Why the Triton kernels cannot run on a GPU of this process. Asked when a tensor lies on it."""
    return _look_for_triton_fault(index)


def serves(instruction_sets: Sequence[str], major: int, minor: int) -> bool:
    """Whether code for these ("sm_80", "sm_90a", "compute_100") runs on a GPU of this compute capability.

    Machine code runs on its own and on later minor versions of its generation, PTX on everything later; what ends in a
    letter runs on its own version alone.
    """
    for name in instruction_sets:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if parts is None:
            continue
        built = (int(parts[2]), int(parts[3]))
        same = built == (major, minor)
        later = built <= (major, minor) and (parts[1] == "compute" or built[0] == major)
        if same or (later and not parts[4]):
            return True
    return False


def _driver_version() -> int:
    """As the driver numbers it (13000 for CUDA 13.0), without touching a GPU; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value


def require(backend: str, device: str, index: int = 0) -> None:
    """Raises RuntimeError, with what to do, for a backend that cannot run here or not on tensors of this device.

    device: what `place` says; index: which one of that kind.
    """
    if backend == "triton" and device == "cpu" and (INTERPRETS or triton_on_host() is not None):
        return
    why_not = fault(backend)
    if why_not is not None:
        raise RuntimeError(f"backend={backend!r} is not available: {why_not}. See memformer_kernels.build_info().")
    if backend == "cpu" and device != "cpu":
        raise RuntimeError(
            f"backend='cpu' serves tensors on the CPU, got tensors on {device}: backend='auto' serves both"
        )
    if backend == "cuda":
        if device != "cuda":
            raise RuntimeError(
                f"backend='cuda' serves tensors on CUDA GPUs, got tensors on {device}: backend='auto' serves both"
            )
        why_not = cuda_fault(index)
        if why_not is not None:
            raise RuntimeError(f"backend='cuda' is not available: {why_not}")
    if backend == "triton" and device != "cuda":
        raise RuntimeError(
            f"backend='triton' serves tensors on CUDA GPUs, got tensors on {device}: backend='auto' serves both, and "
            "TRITON_INTERPRET=1, set before this package is first imported, runs the kernels in Triton's interpreter"
        )
    if backend == "triton" and not INTERPRETS:
        why_not = triton_fault(index)
        if why_not is not None:
            raise RuntimeError(f"backend='triton' is not available: {why_not}")
