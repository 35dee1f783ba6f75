"""What is built, for which architectures, and why something is missing."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.torch_version import TorchVersion

from memformer_kernels import library
from memformer_kernels.version import __version__

_OLDEST_TRITON = "3.5"

OLDEST_GENERATION = 8
"""Major compute capability of the oldest GPUs that the CUDA library can be built for (native_build/cuda.py)."""


@dataclass(frozen=True)
class BackendInfo:
    """One backend: whether it can run here, for which architectures it is built, and if not, why and the mend."""

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


def build_info() -> BuildInfo:
    """Which backends are built, for which architectures, and why one is missing. Runs nothing on a GPU."""
    architectures = (
        (platform.machine(), *torch.cuda.get_arch_list()) if torch.cuda.is_available() else (platform.machine(),)
    )
    backends = {"torch": BackendInfo("torch", True, architectures, "plain PyTorch, every device torch supports")}
    native = library.status("cpu")
    backends["cpu"] = BackendInfo("cpu", native.path is not None, native.instruction_sets, native.reason)
    backends["cuda"] = _cuda_info()
    runs, reason = _triton_status()
    backends["triton"] = BackendInfo("triton", runs, ("sm_80", "sm_90", "sm_100"), reason)
    return BuildInfo(
        version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=_triton_version(),
        backends=backends,
    )


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "of another distribution"


def _triton_fault() -> str | None:
    """Why the Triton kernels cannot run anywhere in this process, with the mend."""
    version = _triton_version()
    if version is None:
        return "triton is not installed: pip install 'memformer_kernels[triton]'"
    if version[0].isdigit() and TorchVersion(version) < _OLDEST_TRITON:
        return f"triton {version} is too old: pip install 'triton>={_OLDEST_TRITON}'"
    return None


# Looked up once, at import: a compiler that traces a call meets constants. None of it touches a GPU.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
_AVAILABLE = {
    "torch": True,
    "cpu": library.status("cpu").path is not None,
    "cuda": library.status("cuda").path is not None and torch.version.cuda is not None,
    "triton": _triton_fault() is None and (INTERPRETS or torch.version.cuda is not None),
}


VIRTUAL = False
"""Whether the CUDA library runs on a virtual GPU, as tests and benchmarks let it: tensors of the host then count as a
GPU's."""


def place(device: str) -> str:
    """What plans take a kind of device for."""
    return "cuda" if VIRTUAL else device


def present() -> tuple[bool, ...]:
    """All that plans know of the build: for every backend whether it is available."""
    return (*_AVAILABLE.values(), VIRTUAL)


def available(backend: str) -> bool:
    """Whether a backend is built for this torch: what a tensor on a device that it serves needs to run there."""
    return _AVAILABLE.get(backend, False)


def _cuda_info() -> BackendInfo:
    found = library.status("cuda")
    if found.path is None:
        return BackendInfo("cuda", False, (), found.reason)
    if torch.version.cuda is None:
        return BackendInfo("cuda", False, (), f"{found.reason}, but torch {torch.__version__} is one without CUDA")
    fault = _driver_fault(found.driver)
    if fault is None and not torch.cuda.is_available():
        fault = "no NVIDIA GPU that torch can use"
    if fault is not None:
        return BackendInfo("cuda", False, (), f"{found.reason}, but {fault}")
    return BackendInfo("cuda", True, found.instruction_sets, found.reason)


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
    fault = _driver_fault(found.driver)
    if fault is not None:
        return fault
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


def cuda_fault(index: int = 0) -> str | None:
    """Why the CUDA library cannot run on a GPU of this process, with the mend. Asked when a tensor lies on it."""
    return _look_for_cuda_fault(index)


# As torch.compiler.assume_constant_result does, without importing the compiler: one that traces a call takes the
# answer as a constant.
cuda_fault._dynamo_marked_constant = True  # type: ignore[attr-defined]


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


def _triton_status() -> tuple[bool, str]:
    fault = _triton_fault()
    if fault is not None:
        return False, fault
    if INTERPRETS:
        return True, "Triton's interpreter, slow and exact, on CPU tensors (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return False, "no NVIDIA GPU that torch can use; TRITON_INTERPRET=1 runs the kernels in Triton's interpreter"
    return True, "fused kernels, compiled at their first call"


def _triton_serves_host() -> bool:
    """Whether Triton's kernels run on CPU tensors in this process, in its interpreter or through its active driver."""
    if INTERPRETS or _triton_fault() is not None:
        return INTERPRETS and available("triton")
    from memformer_kernels.kernels.launch import serves_host

    return serves_host()


def require(backend: str, device: str, index: int = 0) -> None:
    """Raises RuntimeError, with the mend, for a backend that cannot run here, or not on tensors of this device.

    device: what `place` says; index: which one of that kind.
    """
    if backend == "triton" and device == "cpu" and _triton_serves_host():
        return
    if not available(backend):
        reason = build_info().backends[backend].reason
        raise RuntimeError(f"backend={backend!r} is not available: {reason}. See memformer_kernels.build_info().")
    if backend == "cpu" and device != "cpu":
        raise RuntimeError(
            f"backend='cpu' serves tensors on the CPU, got tensors on {device}: backend='auto' serves both"
        )
    if backend == "cuda":
        if device != "cuda":
            raise RuntimeError(
                f"backend='cuda' serves tensors on CUDA GPUs, got tensors on {device}: backend='auto' serves both"
            )
        fault = cuda_fault(index)
        if fault is not None:
            raise RuntimeError(f"backend='cuda' is not available: {fault}")
    if backend == "triton" and device != "cuda":
        raise RuntimeError(
            f"backend='triton' serves tensors on CUDA GPUs, got tensors on {device}: backend='auto' serves both, and "
            "TRITON_INTERPRET=1, set before this package is first imported, runs the kernels in Triton's interpreter"
        )
