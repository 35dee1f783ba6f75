"""CUDA host code on virtual devices: a stand-in for the CUDA runtime, under objects that nvcc has compiled as ever.

    standing = build.stand_in(folder)
    runtime = Runtime(standing.library, [Device(90)])
    library = ctypes.CDLL(str(standing.link(objects, folder / "library.so")))
    with runtime.calls():
        library.function(...)

Kernels come from the PTX in the objects, which is there if nvcc was told so ("compute_90" among the codes). Pointers
that kernels are given point to the host's memory, which `runtime.devices[k].memory` must know.
"""

from virtual_gpu.cuda import build, fatbinary
from virtual_gpu.cuda.fatbinary import Ptx
from virtual_gpu.cuda.runtime import Binary, Launched, Runtime

__all__ = ["Binary", "Launched", "Ptx", "Runtime", "build", "fatbinary"]
