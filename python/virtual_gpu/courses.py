"""The courses of a traced block's warps, as the model of time reads them.

device.traced_block = 0
launch = device.launch(kernel, grid, block, arguments)
registers = registers_of(text)[kernel.name]
resident = resident_blocks(H200, threads, registers, shared + kernel.static_shared)
predict(H200, courses(launch), blocks, resident).seconds
"""

import re

from virtual_gpu.device import Launch
from virtual_gpu.halves import counts
from virtual_gpu.hardware import SECTOR, WARP
from virtual_gpu.ptx.code import Instruction, Kind
from virtual_gpu.ptx.types import SPACES
from virtual_gpu.schedule import Issue, Operation

COPIES = -1
"""Stands for the registers of asynchronous copies, which their waits read."""

GROUP_ROWS = 16
"""Of a product by four warps, each makes so many rows."""


def courses(launch: Launch) -> list[list[Issue]]:
    """What each warp of the traced block ran.

    Raises:
        ValueError: no block was traced.
    """
    if not len(launch.trace):
        raise ValueError("no block of the launch was traced: set the device's traced_block")
    instructions = launch.kernel.code.instructions
    operations = [
        _operation(instruction, count)
        for instruction, count in zip(instructions, counts(launch.kernel.code), strict=True)
    ]
    spilled = [_local_sectors(instruction) for instruction in instructions]
    warps: list[list[Issue]] = [[] for _ in range(int(launch.trace["warp"].max()) + 1)]
    for warp, place, sectors, fresh, wavefronts in launch.trace.tolist():
        warps[warp].append(Issue(operations[place], sectors + spilled[place], fresh, wavefronts))
    return warps


def _operation(instruction: Instruction, count: int | None) -> Operation:
    operands = instruction.operands
    registers = [operand.value if operand.kind == Kind.REGISTER else None for operand in operands]
    reads = [register for register in registers[instruction.results :] if register is not None]
    writes = [register for register in registers[: instruction.results] if register is not None]
    if instruction.guard is not None:
        reads.append(instruction.guard.value)
    key = instruction.key
    if SPACES[instruction.space] in ("param", "const"):
        key = f"mov.{SPACES[instruction.space]}"
    if key in ("cp.async", "bulk.load"):
        writes.append(COPIES)
    elif key in ("cp.wait", "bulk.wait") or key.startswith("mbarrier.t"):
        reads.append(COPIES)
    return Operation(key, tuple(reads), tuple(writes), _products(instruction), count)


def _products(instruction: Instruction) -> int:
    """Multiply-adds of a tensor core that one warp makes."""
    shape = re.match(r"mma\.m(\d+)n(\d+)k(\d+)\.", instruction.key)
    if shape is not None:
        return int(shape[1]) * int(shape[2]) * int(shape[3])
    if re.match(r"wgmma\.\w+\.\w+\.\w+", instruction.key) is None:
        return 0
    return GROUP_ROWS * instruction.immediates[0] * instruction.immediates[1]


def _local_sectors(instruction: Instruction) -> int:
    """Sectors of the cache that a warp touches in the threads' own memory, whose words lie beside one another."""
    if SPACES[instruction.space] != "local":
        return 0
    values = instruction.operands[: instruction.results] or instruction.operands[:-1]
    return sum(value.width for value in values) * WARP // SECTOR
