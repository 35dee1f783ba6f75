"""The backends behind one small interface (`base.Backend`), by name."""

from memformer_kernels.backends.base import Backend
from memformer_kernels.backends.native import NativeBackend
from memformer_kernels.backends.torch import TorchBackend
from memformer_kernels.backends.triton import TritonBackend

BACKENDS: dict[str, Backend] = {
    "torch": TorchBackend(),
    "cpu": NativeBackend("cpu"),
    "cuda": NativeBackend("cuda"),
    "triton": TritonBackend(),
}
