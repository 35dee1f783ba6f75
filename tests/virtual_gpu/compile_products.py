"""Compiles products of matrices for GPUs that need not be here: `python -m tests.virtual_gpu.compile_products FILE`.

In a process that does not interpret kernels. Written to the file, as JSON: the cases, each with its PTX.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

CASES = [
    *itertools.product((80, 90), ("fp16", "bf16", "fp32"), ((16, 16, 16), (64, 32, 32), (128, 64, 64)), (False, True)),
    *itertools.product((80, 90), ("fp64",), ((16, 16, 16), (64, 32, 32)), (False, True)),
]
"""Architecture, type, rows, columns and depth, and whether the second factor lies transposed in memory."""


@triton.jit  # type: ignore[untyped-decorator]
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    """c (M, N) = a (M, K) b (K, N), of one block."""
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + i[:, None] * K + k[None, :])
    if TRANSPOSED:
        right = tl.trans(tl.load(b + j[:, None] * K + k[None, :]))
    else:
        right = tl.load(b + k[:, None] * N + j[None, :])
    made = tl.dot(left, right, input_precision="tf32" if tl.float32 == ACC else "ieee", out_dtype=ACC)
    tl.store(c + i[:, None] * N + j[None, :], made)


def compiled(architecture: int, kind: str, sizes: tuple[int, int, int], transposed: bool) -> dict[str, Any]:
    accumulator = "fp64" if kind == "fp64" else "fp32"
    constants = dict(zip("MNK", sizes, strict=True)) | {
        "TRANSPOSED": transposed,
        "ACC": tl.float64 if kind == "fp64" else tl.float32,
    }
    signature = {"a": f"*{kind}", "b": f"*{kind}", "c": f"*{accumulator}"}
    aligned = {(argument,): [["tt.divisibility", 16]] for argument in range(3)}
    source = ASTSource(product, signature | dict.fromkeys(constants, "constexpr"), constants, aligned)
    warps = 8 if sizes[0] == 128 else 4
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    return {
        "architecture": architecture,
        "kind": kind,
        "sizes": sizes,
        "transposed": transposed,
        "threads": 32 * warps,
        "shared": made.metadata.shared,
        "ptx": made.asm["ptx"],
    }


if __name__ == "__main__":
    with mock.patch.object(CUDABackend, "make_cubin", return_value=b""):
        Path(sys.argv[1]).write_text(json.dumps([compiled(*case) for case in CASES]))
