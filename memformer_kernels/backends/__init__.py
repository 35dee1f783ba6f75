"""The backends by name, behind one interface, `base.Backend`."""

from memformer_kernels.backends.base import Backend, PrefixBackend, ProximalBackend
from memformer_kernels.backends.native import NativeBackend
from memformer_kernels.backends.pytorch.backend import TorchBackend
from memformer_kernels.backends.triton.backend import TritonBackend

_TORCH, _CPU = TorchBackend(), NativeBackend("cpu")

BACKENDS: dict[str, Backend] = {
    "torch": _TORCH,
    "cpu": _CPU,
    "cuda": NativeBackend("cuda"),
    "triton": TritonBackend(),
}

PREFIX_BACKENDS: dict[str, PrefixBackend] = {"torch": _TORCH, "cpu": _CPU}
"""Those that have every prefix in one pass."""

PROXIMAL_BACKENDS: dict[str, ProximalBackend] = {"torch": _TORCH, "cpu": _CPU}
"""Those that have steps which end in a prox."""
