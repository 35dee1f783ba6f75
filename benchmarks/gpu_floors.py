"""The floors of the CUDA kernels on an H200, worked out and not measured: bytes, multiply-adds, and what the code adds.

Bytes of a task are what must cross memory once; multiply-adds are the cheapest method's. The compiled code says what
else is issued: for every multiply-add so many instructions and so many bytes of shared memory, by the mix of the whole
kernel. A loop's body counts once and so does what a block does once, such as fetching the parameters: the mix
overstates what a run issues, and the predicted time is on the high side.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT
from benchmarks.sass import Code, find_cuobjdump, read_code
from benchmarks.table import figure
from benchmarks.workloads import W_FULL, W

FORMAT = 1
ARCHITECTURE = "sm_90"
OBJECTS = ROOT / "build" / "native" / "cuda" / "kernels"
BATCH = 4_000_000
NUMBER = 4
"""Bytes of a float."""

SHARED_BYTES = {"LDS": 4, "STS": 4, "LDS.64": 8, "STS.64": 8, "LDS.128": 16, "STS.128": 16}


@dataclass(frozen=True)
class Gpu:
    """A data sheet. memory_gb_s: nominal; copy_gb_s: what a copy is expected to reach of it, read and write counted;
    fp32_gflop_s: at the boost clock; processors: multiprocessors, each of which issues 4 warps' instructions and moves
    128 bytes of shared memory a clock."""

    name: str
    memory_gb_s: float
    copy_gb_s: float
    fp32_gflop_s: float
    processors: int

    @property
    def clock_ghz(self) -> float:
        """128 multiply-adds of two operations a clock and multiprocessor."""
        return self.fp32_gflop_s / (self.processors * 256)


H200 = Gpu("NVIDIA H200 SXM", 4800.0, 4300.0, 67_000.0, 132)


@dataclass(frozen=True)
class Kernel:
    """One kernel at one size. source: the file of its instance; bytes and multiply_adds: of one task.

    issued: instructions that a warp runs for its 32 tasks, where the mix of the whole code would say little.
    """

    name: str
    source: str
    bytes: int
    multiply_adds: int
    issued: int | None = None


TRAINER_ISSUED = 4150
"""Of a tile of the trainer's hot instance on 9.0, counted from its code by hand: what is skipped left out (factors,
noise, queries), loops as often as they run. Normals 780, chi variables 1750, the rest for the method and its sums."""


def _pairs(layers: int) -> int:
    return layers * (layers + 1) // 2


def _triangle(width: int) -> int:
    return width * (width + 1) // 2


def general_gram(width: int, n: int, layers: int) -> int:
    """Multiply-adds of a general network in Gram space, one head, D-by-D matrices: forward, and twice that backward."""
    layer = width**3 + width * _triangle(width) + 3 * width**3
    return n * _triangle(width) + 3 * (layers * layer + _pairs(layers) * width**2)


def general_tokens(width: int, n: int, layers: int) -> int:
    """The same in token space."""
    rows = n + 1
    layer = n * _triangle(width) + 2 * width**3 + rows * width**2
    return 3 * (layers * layer + _pairs(layers) * rows * width)


def kernels() -> tuple[Kernel, ...]:
    """d = 5, n = 20, L = 4, float32: fused loss and gradients of networks, one call of the others."""
    d, n, layers = W.d, W.n, W.layers
    width, rows = W.width, W.tokens
    tokens = rows * width * NUMBER
    method = layers * 2 * d * d + _pairs(layers) * d
    one_layer = n * _triangle(width) + 2 * width**3 + rows * width**2 + 2 * rows * width
    return (
        Kernel("response-only, Gram", "response_gram_5", W.bytes_per_task, W.operations.total),
        Kernel("response-only, tokens", "response_tokens_float_5", W_FULL.bytes_per_task, W_FULL.operations.total),
        Kernel("general, Gram", "thread_gram_6", W.bytes_per_task, general_gram(width, n, layers)),
        Kernel("general, tokens", "general_tokens_float_3x2", W.bytes_per_task, general_tokens(width, n, layers)),
        Kernel("one layer", "layer_float_3x2", 4 * tokens, one_layer),
        Kernel("lfom_solve", "quadratics_5", (d * d + 2 * d) * NUMBER, method),
        Kernel("trainer, statistics", "train_statistics_5", 4, 3 * method + d * _triangle(d), TRAINER_ISSUED),
        Kernel("context_gram", "context_gram_float_3x2", tokens + width**2 * NUMBER, n * _triangle(width)),
    )


@dataclass(frozen=True)
class Row:
    """A kernel's floors in milliseconds for a batch, and what its code says; None where it is not compiled here.

    issue_ms, shared_ms: the multiply-adds with everything that the code issues and moves beside them
    """

    kernel: Kernel
    memory_ms: float
    arithmetic_ms: float
    registers: int | None = None
    fma: int | None = None
    instructions: int | None = None
    issue_ms: float | None = None
    shared_ms: float | None = None

    @property
    def predicted_ms(self) -> float:
        """The highest of the four: what the call takes if everything else hides behind it."""
        return max(self.memory_ms, self.arithmetic_ms, self.issue_ms or 0.0, self.shared_ms or 0.0)


def sheet(gpu: Gpu = H200, batch: int = BATCH, folder: Path = OBJECTS) -> tuple[Row, ...]:
    """Every kernel's row; with the code's figures where objects and cuobjdump are here."""
    return tuple(_row(kernel, gpu, batch, folder) for kernel in kernels())


def _row(kernel: Kernel, gpu: Gpu, batch: int, folder: Path) -> Row:
    multiply_adds = batch * kernel.multiply_adds
    row = Row(
        kernel,
        memory_ms=batch * kernel.bytes / gpu.copy_gb_s / 1e6,
        arithmetic_ms=2 * multiply_adds / gpu.fp32_gflop_s / 1e6,
    )
    path = folder / f"{kernel.source}.o"
    if not path.is_file() or find_cuobjdump() is None:
        return row
    found = [code for code in read_code(path, ARCHITECTURE) if code.count("FFMA")]
    return with_code(row, max(found, key=lambda code: code.count("FFMA")), multiply_adds, gpu) if found else row


def with_code(row: Row, code: Code, multiply_adds: float, gpu: Gpu) -> Row:
    """A row with the figures of its kernel's code; the largest of the instance is the one with gradients."""
    fma = code.count("FFMA")
    padding = code.count("NOP", "BRA")
    issued = code.instructions.total() - padding
    moved = sum(size * code.instructions[name] for name, size in SHARED_BYTES.items())
    if row.kernel.issued is not None:
        warps = multiply_adds / row.kernel.multiply_adds / 32
        issue_ms = warps * row.kernel.issued / (4 * gpu.processors) / gpu.clock_ghz / 1e6
        return replace(row, registers=code.registers, fma=fma, instructions=issued, issue_ms=issue_ms)
    clocks = multiply_adds / fma / gpu.processors / gpu.clock_ghz / 1e6
    return replace(
        row,
        registers=code.registers,
        fma=fma,
        instructions=issued,
        issue_ms=clocks * issued / 128,
        shared_ms=clocks * moved / 128,
    )


def as_record(rows: Sequence[Row], gpu: Gpu = H200, batch: int = BATCH) -> dict[str, Any]:
    """For a JSON file; nothing in it was measured."""
    found = [{**asdict(row), "predicted_ms": row.predicted_ms} for row in rows]
    return {"format": FORMAT, "measured": False, "gpu": asdict(gpu), "batch": batch, "kernels": found}


def print_sheet(rows: Sequence[Row], console: Console, gpu: Gpu = H200, batch: int = BATCH) -> None:
    """The sheet as a table."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Floors on {gpu.name}, B = {batch:,}, d = {W.d}, n = {W.n}, L = {W.layers}: worked out, not measured",
    )
    headers = ("bytes", "FMA", "memory ms", "FMA ms", "issue ms", "shared ms", "predicted", "tasks/s", "regs")
    table.add_column("kernel", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        code = [figure(ms) if ms is not None else "" for ms in (row.issue_ms, row.shared_ms)]
        table.add_row(
            row.kernel.name,
            str(row.kernel.bytes),
            str(row.kernel.multiply_adds),
            figure(row.memory_ms),
            figure(row.arithmetic_ms),
            *code,
            figure(row.predicted_ms),
            f"{1e3 * batch / row.predicted_ms:.2g}",
            "" if row.registers is None else str(row.registers),
        )
    console.print(table)
    console.print(
        f"{gpu.copy_gb_s:.0f} GB/s of a nominal {gpu.memory_gb_s:.0f}, {gpu.fp32_gflop_s / 1000:.0f} TFLOP/s float32, "
        f"{gpu.processors} multiprocessors at {gpu.clock_ghz:.2f} GHz. Issue and shared memory by the mix of the code."
    )
