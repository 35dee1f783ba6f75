"""Builds the native libraries: finds the tools, writes build.ninja, runs ninja, puts the results in place.

`memformer_cpu.so` from csrc/cpu, and where there is an nvcc `memformer_cuda.so` from csrc/cuda. Both are plain shared
objects that talk to PyTorch through its stable ABI: they depend on no version of Python and serve every torch from
`tools.TARGET_TORCH` on. setup.py builds with this package; who links the objects again asks it for their names. Nothing
here imports torch: its headers are found by looking for its folder.
"""

from native_build.build import build
from native_build.errors import BuildFailed, CannotBuild
from native_build.tools import find_toolchain

__all__ = ["BuildFailed", "CannotBuild", "build", "find_toolchain"]
