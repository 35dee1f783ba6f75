"""Which configuration runs: every size a kernel is compiled for, by rule from D, N, dtype and GPU, with its reason.

Nothing is tuned at run time. What a kernel of tasks is compiled for does not depend on their number. How work is spread
does, by `programs`, `tasks_a_sum` and `gram_splits`: sums over tasks depend on the second, sums over a context on the
third, and neither looks at the GPU.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from memformer_kernels.backends.triton.batches import planned
from memformer_kernels.triton_support import GENERATIONS

DOT_MINIMUM = 16
"""The smallest side `tl.dot` takes. Narrower tasks are packed, several to a program, and multiplied elementwise."""

TOKENS_AT_ONCE = 32
"""Tokens summed by one product before the sum joins the running one, so that float32 errors do not grow with n."""

TOKENS_A_SPLIT = 4096
"""Tokens whose Gram matrix one program sums; longer contexts are split, and the splits added pairwise."""

MULTIPROCESSORS = 132
"""Of an H100 or H200, for which sums are cut up on every GPU, so that their order is the same on all of them."""

SPLIT_BELOW = 256
"""Tasks below which contexts are split further, to fill the multiprocessors."""

TASKS_AT_ONCE = 4
"""Most tasks of a program at a time: 1000 of them are then 250 programs, and every multiprocessor has some."""

TASKS_A_BLOCK = 1024
"""Tasks whose gradients are summed in the working dtype; sums of blocks are added in float64."""

WARPS = 32
"""Of the programs that a multiprocessor is given at a time: half of what it can hold, each thread with 64 registers."""

SCRATCH_BYTES = 2**28
"""Scratch up to which a multiprocessor is given several programs: for common sizes near what the caches hold."""

SUM_BYTES = 2**29
"""Of the partial sums of a batch, and again of the running sums of programs, where parameters have many numbers."""

SCRATCH_SHARE = 8
"""Scratch is at most this part of a GPU's memory, one over it, whatever is left idle."""

NUMBERS_IN_REGISTERS = 4096
"""Of the features that a program of response-only tasks on tokens holds at a time."""

TOKENS_IN_REGISTERS = 128
"""Most tokens of them: more would be configurations of their own for nothing."""

LONGEST_LINE = 512
"""Most numbers of a task's column that a program reads at a time: 16 registers of 128 threads for four tasks."""

LANES = 32
"""Tasks whose vectors are kept until a product sums over them."""

MOST_REGISTERS = 255
"""What a thread of a GPU can have."""


def wgmma(architecture: int) -> bool:
    """Whether products of tiles read an operand from shared memory; else both are in registers."""
    return GENERATIONS[architecture // 10].products == "wgmma"


class Config(NamedTuple):
    """tasks: per program at a time. block: D rounded up. rows: tokens at a time. chunk: inner length of a product.

    lanes: tasks whose vectors lie in a program's scratch together, of kernels that sum over them by a product.

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
        # A program is one warp, whose lanes sum without shared memory and without waiting for other warps. A product
        # holds tasks * block * block * chunk numbers, 2048 of them 64 registers of a thread; a quarter of that leaves
        # room for the other tiles of the matrix recurrence.
        tasks = 2 if block > 8 else TASKS_AT_ONCE
        chunk = 2 if matrices else 8 if block <= 8 else 4
        return Config(tasks, block, min(8, most_rows), min(block, chunk), LANES, 1, 1, MOST_REGISTERS)
    # 64 rows of 128 float32 are 32 registers of 256 threads; state, fresh register and update are three such tiles.
    rows = max(DOT_MINIMUM, min(most_rows, 64 if block >= 64 else 32))
    # Vectors of 16 tasks are the least that a product takes; those of more would leave a program's caches.
    lanes = DOT_MINIMUM if block >= 64 else LANES
    warps = {16: 2, 32: 4, 64: 8, 128: 8}[block]
    # Operands of products in three TF32 parts take twice their registers: where tiles are large or many, 16 at a time.
    chunk = DOT_MINIMUM if matrices or block >= 64 else min(block, TOKENS_AT_ONCE)
    # Tiles of float64 are twice as large: one buffer each, so that shared memory holds them. So on Ampere are the tiles
    # of a matrix recurrence's addresses, which would spill.
    single = dtype == torch.float64 or (matrices and block == 64 and not wgmma(architecture))
    # Not told that it may have more, the assembler settles for 128 registers at 64 features, for two programs a
    # multiprocessor, and for 168 where a program is one warp, and spills what they do not hold.
    registers = MOST_REGISTERS if block == 64 else None
    return Config(1, block, rows, chunk, lanes, warps, 1 if single else 2, registers)


def vectors_config(width: int, tokens: int, dtype: torch.dtype, architecture: int, gradients: bool) -> Config:
    """The configuration of the recurrence of vectors, `width` long, on matrices of tasks.

    gradients: those of the tasks' matrices are summed next to the matrices.
    """
    chosen = config(width, tokens, dtype, architecture)
    if chosen.block != 64:
        return chosen
    # A thread takes 64 numbers at a time of a matrix, or of two. Three programs of 128 threads hide on a multiprocessor
    # what each waits for. Where products keep both operands in registers, those of three programs are too few.
    plain = dtype == torch.float32 and not gradients
    return chosen._replace(tasks=2 if plain else 1, warps=4, registers=168 if plain and wgmma(architecture) else None)


class GramConfig(NamedTuple):
    """sides: of block features each, together all of them rounded up. chunk: tokens of a product.

    registers: that the assembler may give a thread, where it is told.
    """

    block: int
    sides: int
    chunk: int
    warps: int
    registers: int | None

    @property
    def parts(self) -> int:
        """Of a chunk: a thread of a warp has a feature, and as many warps as there are more of have other tokens."""
        return max(1, 32 * self.warps // self.block)

    @property
    def options(self) -> dict[str, int | None]:
        """Triton's options of a launch. Loads run ahead by the kernel's own order."""
        return {"num_warps": self.warps, "num_stages": 1, "maxnreg": self.registers}


GRAM_SIDE = 64
"""Most features of a side of a Gram matrix: the least that a group of four warps multiplies at a time on Hopper."""


def feature_gram_config(width: int, dtype: torch.dtype, architecture: int) -> GramConfig:
    """The configuration of Gram matrices whose response is a vector apart."""
    block = int(triton.next_power_of_2(max(width - 1, DOT_MINIMUM)))
    whole = dtype != torch.float64 and (block <= GRAM_SIDE or wgmma(architecture))
    chunk = TOKENS_AT_ONCE if whole and block <= GRAM_SIDE else DOT_MINIMUM
    if block > GRAM_SIDE and whole:
        # 96 numbers of the sum, 32 of a chunk's and 16 of its tokens leave room for three programs.
        return GramConfig(GRAM_SIDE, 2, chunk, 4, 168)
    # A thread has 32 or 64 numbers of the sum, as many of a chunk's and 16 or 8 of its tokens.
    return GramConfig(block, 1, chunk, 8 if block > GRAM_SIDE else 4, None)


def columns_config(width: int, tokens: int) -> Config:
    """The configuration of response-only tasks on tokens.

    A program has a tile of its tasks' features in registers, at most 4096 numbers: 32 registers of 128 threads, and
    their gradient as many. Tasks of more tokens pass through it tile by tile.
    """
    block = triton.next_power_of_2(max(width - 1, 1))
    rows = min(triton.next_power_of_2(max(tokens, 1)), TOKENS_IN_REGISTERS, NUMBERS_IN_REGISTERS // block)
    tasks = min(TASKS_AT_ONCE, NUMBERS_IN_REGISTERS // (block * rows))
    return Config(tasks, block, rows, 1, 1, _warps(tasks * block * rows), 1)


def keeps_features(tokens: int, rows: int, architecture: int) -> bool:
    """Whether the features of response-only tasks stay in registers for all layers: where `rows` are all of them.

    Compiled for Ampere, what is kept from layer to layer spills; the first-level cache holds what was read.
    """
    return tokens <= rows and architecture // 10 != 8


def line(tokens: int) -> int:
    """Rows at a time where only columns of numbers are read, not features."""
    return min(int(triton.next_power_of_2(max(tokens, 1))), LONGEST_LINE)


def _warps(numbers: int) -> int:
    """Warps whose threads hold at most 32 of so many numbers each, up to four warps."""
    return max(1, min(4, numbers // 1024))


class Machine(NamedTuple):
    """A GPU's multiprocessors and its memory in bytes."""

    multiprocessors: int
    memory: int


def programs(work: int, scratch: int, warps: int, machine: Machine, running: int = 0) -> int:
    """Programs for so many pieces of work, each with `scratch` bytes of its own; each takes every n-th piece.

    As many as multiprocessors hold with 64 registers a thread; fewer where their scratch would be large, but so many
    that each multiprocessor holds programs with 255 registers a thread, as long as the GPU's memory allows them. Pieces
    are tasks, so this depends on the batch. Results do not: a piece is the same work in any program.

    running: bytes of a program's sum that is still to join others, which count as scratch and are never more than
    `SUM_BYTES` together, unless one is.
    """
    if running:
        work = min(work, SUM_BYTES // running)
    scratch = max(scratch + running, 1)
    always = min(machine.multiprocessors * _resident(warps), machine.memory // SCRATCH_SHARE // scratch)
    most = min(machine.multiprocessors * max(1, WARPS // warps), SCRATCH_BYTES // scratch)
    return max(1, min(work, max(always, most)))


def _resident(warps: int) -> int:
    """Programs that a multiprocessor holds at a time where a thread has all the registers it can have."""
    return max(1, 8 // warps)


@lru_cache(maxsize=4096)
def tasks_a_sum(
    batch: int, at_once: int, warps: int, tiles: int = 1, size: int = 0, multiprocessors: int = MULTIPROCESSORS
) -> int:
    """Consecutive tasks whose parameter gradients one program adds up: a power of 2, up to a block of 1024.

    As many as keep the multiprocessors nearly as busy as fewer would, so that partial sums, which are written and read
    again, stay few; and so few that every multiprocessor has a program where there are tasks enough. Where a partial
    sum is large, so many that all of them fit in `SUM_BYTES`, as far as a block of 1024 tasks has only one. The order
    of sums over tasks follows from it: it looks at the batch, not at the GPU.

    at_once: tasks of a program at a time. tiles: programs that share the same tasks. size: bytes of a partial sum.
    """
    held = multiprocessors * _resident(warps)

    def time(tasks: int) -> int:
        """In tasks, where writing and adding up a partial sum counts for those of a program at a time."""
        return -(-(-(-batch // tasks) * tiles) // held) * (tasks + at_once)

    choices = [at_once << power for power in range(11) if at_once << power <= TASKS_A_BLOCK]
    fit = [tasks for tasks in choices if -(-batch // tasks) * size <= SUM_BYTES] or choices[-1:]
    spread = [tasks for tasks in fit if -(-batch // tasks) * tiles >= multiprocessors]
    least = min(map(time, spread), default=0)
    return max((tasks for tasks in spread if 10 * time(tasks) <= 11 * least), default=fit[0])


def gram_apart(width: int) -> bool:
    """Whether a kernel of its own makes the Gram matrices of response-only tasks before their layers run.

    From 32 features on matrices are large enough for tensor cores and for registers alike: a program that also ran the
    layers would have none left to keep tokens in flight. It writes and reads D^2 numbers a task for the n D that it
    streams.
    """
    return width > 32


def holds_matrices(block: int) -> bool:
    """Whether programs keep given matrices in registers for all layers.

    Without wide ones a program has registers for a shared matrix, and leaves room for other programs, which hide what
    it waits for. Caches of the first level hold those of all of them.
    """
    return block < 64


def gram_splits(batch: int, longest: int) -> int:
    """Programs that share one task's context: a power of 2.

    It depends on the batch: few tasks are split further. So do then the last bits of a context's sums.
    """
    batch, needed = planned(batch), max(1, -(-longest // TOKENS_A_SPLIT))
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
