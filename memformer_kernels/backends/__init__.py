"""The backends by name, behind two small interfaces: `base.Backend` for networks, `base.Blocks` for other models."""

from memformer_kernels.backends.base import Backend, Blocks
from memformer_kernels.backends.blocks import NativeBlocks, TorchBlocks, TritonBlocks
from memformer_kernels.backends.native import NativeBackend
from memformer_kernels.backends.torch import TorchBackend
from memformer_kernels.backends.triton import TritonBackend

BACKENDS: dict[str, Backend] = {
    "torch": TorchBackend(),
    "cpu": NativeBackend("cpu"),
    "cuda": NativeBackend("cuda"),
    "triton": TritonBackend(),
}

BLOCKS: dict[str, Blocks] = {"torch": TorchBlocks(), "cpu": NativeBlocks(), "triton": TritonBlocks()}
