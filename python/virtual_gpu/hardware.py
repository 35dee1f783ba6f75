"""What GPUs do in a cycle, how long it takes, and how many blocks of a kernel they hold: numbers and their sources."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCHEDULERS = 4
"""Of a multiprocessor, each with its own units."""

WARP = 32
SECTOR = 32
"""Bytes."""


@dataclass(frozen=True)
class Gpu:
    """A GPU. `results`: of a unit, a cycle and multiprocessor; `latency` in cycles."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes/s of device memory, nominal
    copied: float  # bytes/s that a copy is expected to reach of it, read and write counted
    shared_bytes: int  # of a multiprocessor
    results: dict[str, float]
    latency: dict[str, float]
    threads: int = 2048  # of a multiprocessor, as are the next three
    blocks: int = 32
    registers: int = 65536
    fabric: float = 64.0  # bytes a cycle from the second-level cache


# Arithmetic: Abdelkhalik et al., "Demystifying the Nvidia Ampere Architecture through Microbenchmarking" (2022), and
# Hopper taken to be like it. Memory, rounded: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture" (2024).
_LATENCY = {"float": 4, "integer": 4, "double": 8, "special": 23, "convert": 8, "tensor": 33, "shuffle": 23}
_LATENCY |= {"control": 4, "barrier": 24, "shared": 29, "cached": 40}
_RESULTS = {"integer": 64, "special": 16, "convert": 64, "shuffle": 32}

# Sizes, clocks and bandwidths: NVIDIA's data sheets of the SXM modules; a copy: nine tenths of the bandwidth. Results:
# the CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions". Tensor cores: multiply-adds of
# float16, by the data sheets' rates.
H200 = Gpu(
    name="H200",
    multiprocessors=132,
    clock=1.98e9,
    bandwidth=4.8e12,
    copied=4.3e12,
    shared_bytes=228 * 1024,
    results={**_RESULTS, "float": 128, "double": 64, "control": 128, "tensor": 2048},
    latency={**_LATENCY, "device": 480},
)
A100 = Gpu(
    name="A100",
    multiprocessors=108,
    clock=1.41e9,
    bandwidth=2.04e12,
    copied=1.83e12,
    shared_bytes=164 * 1024,
    results={**_RESULTS, "float": 64, "double": 32, "control": 64, "tensor": 1024},
    latency={**_LATENCY, "device": 470},
)

CLASSES: tuple[tuple[str, str, int], ...] = (
    (r"(mov|pack|unpack|cvta|nop|clock)\b.*", "none", 0),
    (r"(div|rem)\.[us]64", "integer", 80),
    (r"(div|rem)\.[us]\d+", "integer", 24),
    (r"(div|rcp|sqrt)\.f64", "double", 12),
    (r"div\.approx\.f32", "float", 4),
    (r".*\.approx\..*", "special", 1),
    (r"(div|rcp|sqrt)\.(full\.)?f32", "float", 8),
    (r"cvt\..*64.*|(popc|clz|brev|bfind)\..*", "special", 1),
    (r"cvt\..*", "convert", 1),
    (r".*\.f64", "double", 1),
    (r"(shfl|redux|match|vote|elect)\b.*", "shuffle", 1),
    (r"(add|sub|mul|fma|neg|abs)\.(f32|b?f16)(x2)?", "float", 1),
    (r"(mul|mad)\..*64", "integer", 4),
    (r"(add|sub|and|or|xor|not|shl|shr|selp|min|max|neg|abs|setp\.\w+)\..64", "integer", 2),
    (r"(bra|exit|bar|cp|mbarrier|fence|membar|wgmma\.(fence|commit|wait))\b.*", "control", 1),
    (r".*", "integer", 1),
)
"""Operations by the first pattern that fits: the unit, and how many instructions ptxas 13.0 makes of one for sm_90."""

PRODUCT = re.compile(r"(?:wgmma|mma\.m\d+n\d+k\d+)\.\w+\.(f16|bf16|tf32|f64)\b.*")
PRODUCT_COST = {"f16": 1, "bf16": 1, "tf32": 2, "f64": 16}
"""A tensor core's multiply-adds of float16 in the time of one of another type."""


@cache
def classified(operation: str) -> tuple[str, float]:
    """The unit that runs an operation, and how many instructions it is; of tensor cores, the cost of a multiply-add."""
    product = PRODUCT.fullmatch(operation)
    if product is not None:
        return "tensor", PRODUCT_COST[product[1]]
    return next((unit, count) for pattern, unit, count in CLASSES if re.fullmatch(pattern, operation))


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor holds: `registers` of a thread, `shared` bytes of a block; 0 where none fits.

    Registers are allocated to warps by 256, of each scheduler's quarter; shared memory by 128 bytes, with 1 KiB of the
    system's for each block.
    """
    warps = -(-threads // WARP)
    of_warp = -(-max(registers, 1) * WARP // 256) * 256
    by_registers = gpu.registers // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = gpu.shared_bytes // (-(-(shared + 1024) // 128) * 128)
    return min(gpu.blocks, gpu.threads // (warps * WARP), by_registers, by_shared)


def registers_of(ptx: str, *kernels: str) -> dict[str, int]:
    """Registers of a thread of each kernel, or of those named, as ptxas allocates them for the text's target.

    Raises:
        RuntimeError: there is no ptxas, or it refuses the text.
    """
    compiler, target = find_ptxas(), re.search(r"^\.target\s+(sm_\w+)", ptx, re.MULTILINE)
    if compiler is None or target is None:
        raise RuntimeError("no ptxas, which allocates registers" if compiler is None else "the text names no target")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernels.ptx")
        source.write_text(ptx)
        command = [compiler, "-v", f"-arch={target[1]}", str(source), "-o", str(Path(folder, "kernels.cubin"))]
        command += [f"--entry={name}" for name in kernels]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    found = re.findall(r"entry function '([\w$]+)'.*?Used (\d+) registers", finished.stderr, re.DOTALL)
    return {name: int(count) for name, count in found}


def find_ptxas() -> str | None:
    """The newer of the CUDA toolkit's and the one that comes with Triton, whose text an older one would refuse.

    Of equals the toolkit's.
    """
    spec = importlib.util.find_spec("triton")
    folders = (Path(folder, "backends", "nvidia", "bin") for folder in (spec and spec.submodule_search_locations) or ())
    found = [shutil.which("ptxas"), *(shutil.which("ptxas", path=str(folder)) for folder in folders)]
    return max((path for path in found if path is not None), key=_version, default=None)


@cache
def _version(compiler: str) -> tuple[int, ...]:
    """Of a ptxas; lower than any where it does not run or says none."""
    try:
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    found = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    return () if found is None else tuple(map(int, found[1].split(".")))
