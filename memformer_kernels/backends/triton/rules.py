"""Which configuration runs: every size a kernel is compiled for, by rule from D, N, dtype and GPU, with its reason.

Nothing is tuned at run time. What a kernel is compiled for does not depend on the number of tasks. How work is spread
does, by `programs` and by `gram_splits`: sums over tasks depend on neither, sums over a context on the second.
"""

from typing import NamedTuple

import torch
import triton

from memformer_kernels.calls.limits import TINY_TOKENS, TINY_WIDTH

DOT_MINIMUM = 16
"""The smallest side `tl.dot` takes. Narrower tasks are packed, several to a program, and multiplied elementwise."""

TOKENS_AT_ONCE = 32
"""Tokens summed by one product before the sum joins the running one, so that float32 errors do not grow with n."""

TOKENS_A_SPLIT = 4096
"""Tokens whose Gram matrix one program sums; longer contexts are split, and the splits added pairwise."""

SPLIT_BELOW = 256
"""Tasks below which contexts are split further, since an H100 or H200 has 132 multiprocessors to fill."""

PROGRAMS = 1056
"""Most programs that own scratch: 8 for each of an H200's 132 multiprocessors."""

SCRATCH_BYTES = 2**28
"""Most scratch of a launch: a small part of any GPU's memory, and for common sizes near what the caches hold."""


MOST_REGISTERS = 255
"""What a thread of a GPU can have."""


class Config(NamedTuple):
    """tasks: per program at a time. block: D rounded up. rows: tokens at a time. chunk: inner length of a product.

    lanes: tasks whose parameter gradients make one partial sum; a divisor of 1024, so that a block of 1024 tasks is a
    whole number of them whatever the batch, and the same on every GPU.

    registers: that the assembler may give a thread, where it is told.
    """

    tasks: int
    block: int
    rows: int
    chunk: int
    lanes: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """Triton's options of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}

    @property
    def tile(self) -> int:
        """A side that `tl.dot` takes."""
        return max(self.block, DOT_MINIMUM)


def config(width: int, tokens: int, dtype: torch.dtype, architecture: int, matrices: bool = False) -> Config:
    """The configuration for tasks of `tokens` rows, `width` wide, computed in `dtype`.

    architecture: ten times the compute capability.
    `matrices`: for the matrix recurrence, whose steps hold more tiles at once than a Gram matrix and vectors do.
    """
    block, most_rows = triton.next_power_of_2(width), triton.next_power_of_2(max(tokens, 1))
    if width < DOT_MINIMUM:
        # An elementwise product holds tasks * block * block * chunk numbers: 4096 are 32 registers of 128 threads, and
        # 1024 leave room for the other tiles of the matrix recurrence. With 8192 workload W spills.
        tasks = max(2, min(64, 512 // (block * block)))
        lanes = 256 if block <= 8 else 128
        chunk = min(block, 2 if matrices else 8)
        return Config(tasks, block, min(8, most_rows), chunk, lanes, 4, 1)
    # 64 rows of 128 float32 are 32 registers of 256 threads; state, fresh register and update are three such tiles.
    rows = max(DOT_MINIMUM, min(most_rows, 64 if block >= 64 else 32))
    # More tasks a partial sum would leave multiprocessors idle in batches of a few thousand; fewer would make the
    # partial sums of D-by-D gradients a noticeable part of the memory.
    lanes = 8 if block >= 64 else 32
    warps = {16: 2, 32: 4, 64: 8, 128: 8}[block]
    # Operands of products in three TF32 parts take twice their registers: where tiles are large or many, 16 at a time.
    chunk = DOT_MINIMUM if matrices or block >= 64 else min(block, TOKENS_AT_ONCE)
    # Tiles of float64 are twice as large: one buffer each, so that shared memory holds them. So on Ampere are the tiles
    # of a matrix recurrence's addresses, which would spill.
    single = dtype == torch.float64 or (matrices and block == 64 and architecture < 90)
    # Not told that it may, the assembler settles for 128 registers at 64 features, for two programs a multiprocessor,
    # and spills what they do not hold.
    registers = MOST_REGISTERS if block == 64 else None
    return Config(1, block, rows, chunk, lanes, warps, 1 if single else 2, registers)


def columns_config(width: int, tokens: int) -> Config | None:
    """The configuration of response-only tasks on tokens, or None where features do not fit in registers.

    Features of a program's tasks are at most 4096 numbers: 32 registers of 128 threads, and their gradient as many.
    """
    block, rows = triton.next_power_of_2(max(width - 1, 1)), triton.next_power_of_2(tokens)
    if width > TINY_WIDTH or rows > TINY_TOKENS:
        return None
    tasks = min(32, 4096 // (block * rows))
    return Config(tasks, block, rows, 1, 128, 4, 1)


def programs(work: int, scratch: int) -> int:
    """Programs for so many pieces of work, each with `scratch` bytes of its own; each takes every n-th piece.

    Pieces are tasks, so this depends on the batch. Results do not: a piece is the same work in any program.
    """
    return max(1, min(work, PROGRAMS, SCRATCH_BYTES // max(scratch, 1)))


def gram_apart(width: int) -> bool:
    """Whether a kernel of its own makes the Gram matrices of response-only tasks before their layers run.

    From 64 features on a matrix is a quarter of a program's registers; one that also runs the layers has none left to
    keep tokens in flight. It writes and reads D^2 numbers a task for the n D that it streams.
    """
    return width > 64


def rereads(width: int, architecture: int) -> bool:
    """Whether the fused loss reads a given matrix again before the layers' backward.

    Compiled for Ampere, a matrix of more than 64 features kept from the forward on spills. Caches hold what was read.
    """
    return width > 64 and architecture < 90


def gram_splits(batch: int, longest: int) -> int:
    """Programs that share one task's context: a power of 2.

    It depends on the batch: few tasks are split further. So do then the last bits of a context's sums.
    """
    needed = max(1, -(-longest // TOKENS_A_SPLIT))
    if batch < SPLIT_BELOW:
        useful = -(-longest // (8 * TOKENS_AT_ONCE))
        needed = max(needed, min(useful, SPLIT_BELOW // max(batch, 1)))
    return int(triton.next_power_of_2(needed))


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 in three TF32 products, of float32-grade error, unless torch allows TF32.

    Half-precision operands are multiplied exactly and float64 ones in full.
    """
    if dtype == torch.float64:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
