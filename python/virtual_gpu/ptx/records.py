"""A kernel's code as the arrays that the machine reads. Their layouts are those of machine/program.h."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virtual_gpu.ptx.allocation import places
from virtual_gpu.ptx.assembler import SPECIAL
from virtual_gpu.ptx.code import Code, Kind, Operand

INSTRUCTION = np.dtype(
    [
        ("immediates", "<i8", 2),
        ("key", "<i4"),
        ("first_operand", "<i4"),
        ("operands", "<i4"),
        ("results", "<i4"),
        ("guard", "<i4"),
        ("target", "<i4"),
        ("reconverge", "<i4"),
        ("control", "<u4"),
        ("flags", "<i4"),
        ("space", "<i4"),
        ("file", "<i4"),
        ("line", "<i4"),
    ]
)
OPERAND = np.dtype(
    [("offset", "<u4"), ("slot", "<u4"), ("kind", "u1"), ("width", "u1"), ("negated", "u1"), ("padding", "u1")]
)
LANES = 32
ALIGNMENT = 64


@dataclass(frozen=True)
class Records:
    """Arrays of instructions and operands, the keys that instructions count from, and the sizes of what they use."""

    instructions: NDArray[np.void]
    operands: NDArray[np.void]
    keys: tuple[str, ...]
    constants: bytes
    special: NDArray[np.uint32]
    register_bytes: int
    registers: int
    local_bytes: int
    static_shared: int


def records(code: Code) -> Records:
    offsets, register_bytes = _offsets(code)
    constants = bytearray()
    constant_at: dict[tuple[int, int], int] = {}

    def packed(operand: Operand) -> tuple[int, int, int, int, int, int]:
        if operand.kind == Kind.REGISTER:
            # Slot 0 belongs to constants, which are always defined.
            return offsets[operand.value], operand.value + 1, 0, operand.width, operand.negated, 0
        if operand.kind == Kind.NONE:
            return 0, 0, int(Kind.NONE), operand.width, 0, 0
        key = operand.value, operand.width
        if key not in constant_at:
            constant_at[key] = len(constants)
            lane = operand.value.to_bytes(operand.width or 4, "little")
            constants.extend((lane * (LANES if operand.width else 1)).ljust(ALIGNMENT, b"\0"))
        return constant_at[key], 0, int(Kind.CONSTANT), operand.width, operand.negated, 0

    keys: dict[str, int] = {}
    rows: list[tuple[object, ...]] = []
    operands: list[tuple[int, ...]] = []
    for instruction in code.instructions:
        first = len(operands)
        operands.extend(map(packed, instruction.operands))
        guard = -1
        if instruction.guard is not None:
            guard = len(operands)
            operands.append(packed(instruction.guard))
        rows.append(
            (
                instruction.immediates,
                keys.setdefault(instruction.key, len(keys)),
                first,
                len(instruction.operands),
                instruction.results,
                guard,
                instruction.target.place if instruction.target else -1,
                instruction.reconverge,
                instruction.control,
                instruction.flags,
                instruction.space,
                instruction.file,
                instruction.line,
            )
        )
    special = [(SPECIAL.index(name), offsets[register], register + 1) for name, register in code.special.items()]
    return Records(
        np.array(rows, INSTRUCTION),
        np.array(operands, OPERAND),
        tuple(keys),
        bytes(constants),
        np.array(special, np.uint32).reshape(-1, 3),
        register_bytes,
        len(code.widths) + 1,
        -(-code.local_bytes // 16) * 16,
        code.static_shared,
    )


def _offsets(code: Code) -> tuple[list[int], int]:
    """Where each register starts, and the bytes of all: lanes at lines of the cache, then the predicates."""
    shared = places(code)
    of_place: dict[int, int] = {}
    at = 0
    for lanes in (True, False):
        for place, width in zip(shared, code.widths, strict=True):
            if place >= 0 and bool(width) == lanes and place not in of_place:
                of_place[place] = at
                at += max(width * LANES, ALIGNMENT) if lanes else 4
    return [of_place.get(place, 0) for place in shared], -(-at // ALIGNMENT) * ALIGNMENT
