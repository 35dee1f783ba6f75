"""The backends behind one small interface (`base.Backend`), by name."""

from memformer_kernels.backends.base import Backend
from memformer_kernels.backends.native import NativeBackend
from memformer_kernels.backends.torch import TorchBackend

BACKENDS: dict[str, Backend] = {"torch": TorchBackend(), "cpu": NativeBackend()}
