"""What PTX is translated to: instructions of the machine on numbered registers."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What an operand is; the order is the machine's."""

    REGISTER = 0
    CONSTANT = 1
    NONE = 2


class Operand(NamedTuple):
    """A register by its number, or a constant's bits; `width` in bytes a lane, 0 for a predicate.

    A constant that is `dynamic` counts from where the shared memory starts that the launch sizes.
    """

    kind: Kind
    value: int
    width: int
    negated: bool = False
    dynamic: bool = False


NOTHING = Operand(Kind.NONE, 0, 4)


def constant(value: int, width: int, *, dynamic: bool = False) -> Operand:
    bits = (1 << 8 * width) - 1 if width else 0xFFFFFFFF
    return Operand(Kind.CONSTANT, value & bits, width, dynamic=dynamic)


class Label:
    """A place in the code, once it is known."""

    def __init__(self) -> None:
        self.place = -1


@dataclass
class Instruction:
    """One instruction: results first in `operands`, then what it reads.

    `control` holds bits of the host's floating-point control register (rounding, flushing of subnormals), or 0.
    """

    key: str
    operands: tuple[Operand, ...] = ()
    results: int = 0
    guard: Operand | None = None
    target: Label | None = None
    space: int = 0
    flags: int = 0
    control: int = 0
    immediates: tuple[int, int] = (0, 0)
    file: int = 0
    line: int = 0
    text: str = ""
    reconverge: int = -1


@dataclass
class Code:
    """A kernel: its instructions, its registers' widths, the special registers among them, and what it needs."""

    instructions: list[Instruction] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    static_shared: int = 0
