"""What is built, for which architectures, and why something is missing."""

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass

import torch
from torch.torch_version import TorchVersion

from memformer_kernels import library
from memformer_kernels.version import __version__

_MISSING = {"cuda": "this version has no CUDA library; the triton and torch backends serve CUDA tensors"}

_OLDEST_TRITON = "3.5"


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
    for name, reason in _MISSING.items():
        backends[name] = BackendInfo(name, False, (), reason)
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
    "triton": _triton_fault() is None and (INTERPRETS or torch.version.cuda is not None),
}


def available(backend: str) -> bool:
    """Whether a backend is built and can run on tensors of a device that it serves."""
    return _AVAILABLE.get(backend, False)


def _triton_status() -> tuple[bool, str]:
    fault = _triton_fault()
    if fault is not None:
        return False, fault
    if INTERPRETS:
        return True, "Triton's interpreter, slow and exact, on CPU tensors (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return False, "no NVIDIA GPU that torch can use; TRITON_INTERPRET=1 runs the kernels in Triton's interpreter"
    return True, "fused kernels, compiled at their first call"


def require(backend: str, device: str) -> None:
    """Raises RuntimeError, with the mend, for a backend that cannot run here, or not on tensors of this device."""
    if not available(backend):
        reason = build_info().backends[backend].reason
        raise RuntimeError(f"backend={backend!r} is not available: {reason}. See memformer_kernels.build_info().")
    if backend == "cpu" and device != "cpu":
        raise RuntimeError(
            f"backend='cpu' serves tensors on the CPU, got tensors on {device}: backend='auto' serves both"
        )
    if backend == "triton" and device != "cuda" and not INTERPRETS:
        raise RuntimeError(
            f"backend='triton' serves tensors on CUDA GPUs, got tensors on {device}: backend='auto' serves both, and "
            "TRITON_INTERPRET=1, set before this package is first imported, runs the kernels in Triton's interpreter"
        )
