"""The backends by name, behind one interface, `base.Backend`."""

from memformer_kernels.backends.base import Backend
from memformer_kernels.backends.native import NativeBackend
from memformer_kernels.backends.pytorch.backend import TorchBackend
from memformer_kernels.backends.triton.backend import TritonBackend

BACKENDS: dict[str, Backend] = {
    "torch": TorchBackend(),
    "cpu": NativeBackend("cpu"),
    "cuda": NativeBackend("cuda"),
    "triton": TritonBackend(),
}
