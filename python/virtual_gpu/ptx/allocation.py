"""Registers that are never live at once share a place, so that a warp's registers stay in the cache.

PTX gives each value a register of its own, thousands in a large kernel. Lanes have places of their own, so what holds
for one thread's course through the code holds for a warp's, however its lanes part.
"""

import heapq
from collections.abc import Iterable

from virtual_gpu.ptx.code import Code, Instruction, Kind, Operand
from virtual_gpu.ptx.flow import starts, successors


def places(code: Code) -> list[int]:
    """For each register the number of its place, or -1 if it is never used; those of a place have one width."""
    if any(instruction.key.startswith("wgmma") for instruction in code.instructions):
        # Results of a wgmma are written when it is waited for.
        return list(range(len(code.widths)))
    spans = _spans(code)
    for register in code.special.values():
        spans[register] = (-1, len(code.instructions))
    out = [-1] * len(code.widths)
    free: dict[int, list[int]] = {}
    ending: list[tuple[int, int]] = []
    count = 0
    for span, register in sorted((span, register) for register, span in spans.items()):
        while ending and ending[0][0] < span[0]:
            _, ended = heapq.heappop(ending)
            free.setdefault(code.widths[ended], []).append(out[ended])
        of_width = free.get(code.widths[register])
        if of_width:
            out[register] = of_width.pop()
        else:
            out[register] = count
            count += 1
        heapq.heappush(ending, (span[1], register))
    return out


def _spans(code: Code) -> dict[int, tuple[int, int]]:
    """From the first to the last instruction at which each register is live; those that are never used are left out."""
    blocks = starts(code)
    after = successors(code, blocks)
    ends = [*blocks[1:], len(code.instructions)]
    read_first, written = zip(*(_uses(code, first, end) for first, end in zip(blocks, ends, strict=True)), strict=True)
    live_in = [0] * (len(blocks) + 1)
    live_out = [0] * len(blocks)
    changed = True
    while changed:
        changed = False
        for block in reversed(range(len(blocks))):
            out = 0
            for other in after[block]:
                out |= live_in[other]
            live_out[block] = out
            into = read_first[block] | (out & ~written[block])
            if into != live_in[block]:
                live_in[block] = into
                changed = True
    first: dict[int, int] = {}
    seen = 0
    for block, (start, end) in enumerate(zip(blocks, ends, strict=True)):
        for register in _members(live_in[block] & ~seen):
            first.setdefault(register, start)
        seen |= live_in[block]
        for place in range(start, end):
            for register in _registers(code.instructions[place]):
                first.setdefault(register, place)
    last: dict[int, int] = {}
    seen = 0
    for block in reversed(range(len(blocks))):
        for register in _members(live_out[block] & ~seen):
            last.setdefault(register, ends[block] - 1)
        seen |= live_out[block]
        for place in reversed(range(blocks[block], ends[block])):
            for register in _registers(code.instructions[place]):
                last.setdefault(register, place)
    return {register: (first[register], last[register]) for register in first}


def _registers(instruction: Instruction) -> set[int]:
    guard = () if instruction.guard is None else (instruction.guard,)
    return _numbers((*instruction.operands, *guard))


def _uses(code: Code, first: int, end: int) -> tuple[int, int]:
    """Registers that a block reads before it writes them, and those that it writes for certain, as sets of bits."""
    read: set[int] = set()
    written: set[int] = set()
    for instruction in code.instructions[first:end]:
        certain = instruction.results if instruction.guard is None else 0
        read.update(_numbers(instruction.operands[certain:]) - written)
        if instruction.guard is not None:
            read.update(_numbers((instruction.guard,)) - written)
        written.update(_numbers(instruction.operands[:certain]))
    return _bits(read), _bits(written)


def _numbers(operands: Iterable[Operand]) -> set[int]:
    return {operand.value for operand in operands if operand.kind == Kind.REGISTER}


def _bits(numbers: set[int]) -> int:
    """A set as the bits of a number, which are joined and told apart at once."""
    raw = bytearray((max(numbers, default=0) >> 3) + 1)
    for number in numbers:
        raw[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(raw, "little")


def _members(bits: int) -> list[int]:
    """The numbers in a set of bits."""
    raw = bits.to_bytes((bits.bit_length() + 7) >> 3, "little")
    return [8 * place + bit for place, byte in enumerate(raw) if byte for bit in range(8) if byte >> bit & 1]
