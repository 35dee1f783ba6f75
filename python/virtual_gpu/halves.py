"""How many instructions on 32 bits the assembler makes of operations on 64 bits, by the halves that a kernel needs, and
of bitwise ones.

It leaves out what makes a half that nothing reads or that is known: a shift by 32 and a change of width are none, and a
product is one where its lower half alone is read, or two where both of its numbers are below 2^32 (the second adds the
zero that their upper halves make). A bitwise operation on the result of another that nothing else reads is one with it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from virtual_gpu.ptx.code import Code, Instruction, Kind, Operand

LOW, HIGH, BOTH = 1, 2, 3

BITWISE = re.compile(r"(and|or|xor)\.u64")
OF_WORDS = re.compile(r"(and|or|xor)\.u32")
SUM = re.compile(r"(add|sub|neg)\.[us]64")
PRODUCT = re.compile(r"(mul|mad)\.[us]64")
SHIFT = re.compile(r"(shl|shr)\.([us])64")
WIDER = re.compile(r"cvt\.[us]64\.([us])(?:8|16|32)")
NARROWER = re.compile(r"cvt\.[us](?:8|16|32)\.[us]64")
HALVES_APART = re.compile(r"(mov|not|selp)\.[us]64")
"""Operations whose result has a half by the same half of what they read."""


def counts(code: Code) -> list[int | None]:
    """For each instruction how many ptxas makes of it; None where its key alone tells."""
    zero = _zero_above(code)
    needed = _needed(code, zero)
    made = [_count(instruction, needed, zero) for instruction in code.instructions]
    _merge(code, made)
    return made


def _count(instruction: Instruction, needed: Mapping[int, int], zero: set[int]) -> int | None:
    key, read = instruction.key, instruction.operands[instruction.results :]
    wanted = needed.get(instruction.operands[0].value, 0) if instruction.results else BOTH
    if BITWISE.fullmatch(key):
        return sum(not _is_copy(key, read, half, zero) for half in (LOW, HIGH) if wanted & half)
    if OF_WORDS.fullmatch(key):
        return 1
    if SUM.fullmatch(key):
        return wanted.bit_length()
    if PRODUCT.fullmatch(key):
        above = sum(not _is_zero_above(operand, zero) for operand in read[:2])
        return wanted if wanted <= LOW else 2 + above
    if (shift := SHIFT.fullmatch(key)) and read[1].kind == Kind.CONSTANT:
        return _of_shift(shift[1], shift[2] == "s", read[1].value, wanted)
    if wider := WIDER.fullmatch(key):
        return int(wider[1] == "s" and wanted & HIGH != 0)
    return 0 if NARROWER.fullmatch(key) else None


def _is_copy(key: str, read: Iterable[Operand], half: int, zero: set[int]) -> bool:
    """Whether one operand of a bitwise operation leaves a half as the other has it, or makes it zero."""
    parts = [operand.value >> (32 if half == HIGH else 0) for operand in read if operand.kind == Kind.CONSTANT]
    trivial = (0, 0xFFFFFFFF) if key == "and.u64" else (0,)
    return any(part & 0xFFFFFFFF in trivial for part in parts) or (half == HIGH and _any_zero_above(read, zero))


def _of_shift(direction: str, is_signed: bool, by: int, wanted: int) -> int:
    """By less than 32 each half that is wanted; else one half moves, for nothing if it moves whole."""
    if by < 32:
        return (wanted & LOW) + (wanted >> 1)
    moved, filled = (LOW, HIGH) if direction == "shr" else (HIGH, LOW)
    signs = is_signed and direction == "shr" and wanted & filled != 0
    return int(wanted & moved != 0 and by > 32) + int(signs)


def _zero_above(code: Code) -> set[int]:
    """Registers of 64 bits whose upper half is zero whatever writes them."""
    writes: dict[int, list[Instruction]] = defaultdict(list)
    for instruction in code.instructions:
        for operand in instruction.operands[: instruction.results]:
            if operand.kind == Kind.REGISTER and operand.width == 8:
                writes[operand.value].append(instruction)
    found = set(writes)
    while True:
        kept = {register for register in found if all(_makes_zero(one, found) for one in writes[register])}
        if kept == found:
            return found
        found = kept


def _makes_zero(instruction: Instruction, zero: set[int]) -> bool:
    key, read = instruction.key, instruction.operands[instruction.results :]
    if key == "and.u64":
        return _any_zero_above(read, zero)
    if BITWISE.fullmatch(key) or key in ("mov.u64", "selp.u64"):
        return all(_is_zero_above(operand, zero) for operand in read if operand.width == 8)
    if key == "shr.u64":
        return _is_zero_above(read[0], zero) or (read[1].kind == Kind.CONSTANT and read[1].value >= 32)
    return (wider := WIDER.fullmatch(key)) is not None and wider[1] == "u"


def _is_zero_above(operand: Operand, zero: set[int]) -> bool:
    if operand.kind == Kind.CONSTANT:
        return operand.value >> 32 == 0 and not operand.dynamic
    return operand.value in zero


def _any_zero_above(read: Iterable[Operand], zero: set[int]) -> bool:
    return any(_is_zero_above(operand, zero) for operand in read)


def _needed(code: Code, zero: set[int]) -> dict[int, int]:
    """The halves of each register of 64 bits that something needs."""
    needed: dict[int, int] = {}
    changed = True
    while changed:
        changed = False
        for instruction in reversed(code.instructions):
            asked = _asked(instruction, needed, zero)
            for operand in instruction.operands[instruction.results :]:
                if operand.kind == Kind.REGISTER and operand.width == 8:
                    before = needed.get(operand.value, 0)
                    needed[operand.value] = before | asked(operand)
                    changed |= needed[operand.value] != before
    return needed


def _asked(instruction: Instruction, needed: Mapping[int, int], zero: set[int]) -> Callable[[Operand], int]:
    """What an instruction needs of an operand."""
    key, results = instruction.key, instruction.operands[: instruction.results]
    read = instruction.operands[instruction.results :]
    wanted = needed.get(results[0].value, 0) if results else 0
    if HALVES_APART.fullmatch(key):
        return lambda operand: wanted
    if BITWISE.fullmatch(key):
        masked = key == "and.u64" and _any_zero_above(read, zero)
        return lambda operand: wanted & LOW if masked else wanted
    if SUM.fullmatch(key) or PRODUCT.fullmatch(key):
        return lambda operand: BOTH if wanted & HIGH else wanted
    if NARROWER.fullmatch(key):
        return lambda operand: LOW
    shift = SHIFT.fullmatch(key)
    if shift is None or read[1].kind != Kind.CONSTANT:
        return lambda operand: BOTH
    from_half, to_half = (HIGH, LOW) if shift[1] == "shr" else (LOW, HIGH)
    if read[1].value >= 32:
        return lambda operand: from_half if wanted & to_half or (wanted and shift[2] == "s") else 0
    return lambda operand: BOTH if wanted & to_half else wanted


def _merge(code: Code, made: list[int | None]) -> None:
    """Bitwise operations on three inputs are one instruction (LOP3): what another alone reads counts there."""
    reads = Counter(
        operand.value
        for instruction in code.instructions
        for operand in instruction.operands[instruction.results :]
        if operand.kind == Kind.REGISTER
    )
    makers: dict[int, int] = {}
    for place, instruction in enumerate(code.instructions):
        for operand in instruction.operands[: instruction.results]:
            makers.pop(operand.value, None)
        if not any(kind.fullmatch(instruction.key) for kind in (BITWISE, OF_WORDS)):
            continue
        result, *read = instruction.operands
        before = next((makers[x.value] for x in read if x.kind == Kind.REGISTER and x.value in makers), None)
        saved = 0 if before is None else min(made[before] or 0, made[place] or 0)
        if before is not None and saved:
            made[before] = (made[before] or 0) - saved
        elif reads[result.value] == 1 and instruction.guard is None:
            makers[result.value] = place
