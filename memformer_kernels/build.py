"""What is built, for which architectures, and why something is missing."""

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

import torch

from memformer_kernels import library
from memformer_kernels.version import __version__

_MISSING = {
    "cuda": "this version has no CUDA library; the torch backend serves CUDA tensors",
    "triton": "this version has no Triton kernels; the torch backend serves every device",
}


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


# Looked up once: a compiler that traces a call meets a constant.
_HAS_LIBRARY = library.status("cpu").path is not None


def available(backend: str) -> bool:
    """Whether a backend can run here."""
    return backend == "torch" or (backend == "cpu" and _HAS_LIBRARY)


def require(backend: str, device: str) -> None:
    """Raises RuntimeError, with the mend, for a backend that cannot run here, or not on tensors of this device."""
    if not available(backend):
        reason = _MISSING.get(backend) or library.status(backend).reason
        raise RuntimeError(f"backend={backend!r} is not available: {reason}. See memformer_kernels.build_info().")
    if backend == "cpu" and device != "cpu":
        raise RuntimeError(
            f"backend='cpu' serves tensors on the CPU, got tensors on {device}: backend='auto' serves both"
        )
