"""Instructions of whole warps and blocks: barriers, shuffles, votes, tensor cores."""

import re
from collections.abc import Callable, Iterable

from virtual_gpu.ptx.assembler import Assembler
from virtual_gpu.ptx.code import NOTHING, Instruction, constant
from virtual_gpu.ptx.statements import Instruction as Statement
from virtual_gpu.ptx.types import SIZES, UnknownInstruction

Selector = Callable[[Assembler, Statement, list[str], list[str]], Iterable[Instruction]]

LANES = 32

VOTES = ("popc", "and", "or")
"""What a barrier's reduction gives, in the machine's order."""


def barrier(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """bar, barrier: of a warp, of a block, of a cluster."""
    operands = list(statement.operands)
    if "warp" in modifiers:
        return [Instruction("bar.warp", (assembler.operand(operands[0], "u32"),))]
    if "cluster" in modifiers:
        known = ("cluster", "arrive", "wait", "release", "relaxed", "acquire", "aligned")
        if not set(modifiers) <= set(known):
            raise UnknownInstruction(statement.text)
        name, relaxed = "arrive" if "arrive" in modifiers else "wait", int("relaxed" in modifiers)
        return [Instruction(f"bar.cluster.{name}", immediates=(relaxed, 0))]
    reduced: tuple[str, ...] = ()
    results = 0
    operation = ""
    if "red" in modifiers:
        operation = next(word for word in VOTES if word in modifiers)
        reduced, results = (operands.pop(0), operands.pop()), 1
    number = assembler.operand(operands[0] if operands else "0", "u32")
    count = assembler.operand(operands[1], "u32") if len(operands) > 1 else constant(0, 4)
    read = [number, count]
    if reduced:
        kind = "u32" if operation == "popc" else "pred"
        read = [assembler.operand(reduced[0], kind), *read, assembler.operand(reduced[1], "pred")]
    aligned = statement.name[0] == "bar" or "aligned" in modifiers
    name = "red" if operation else "arrive" if "arrive" in modifiers else "sync"
    voted = VOTES.index(operation) if operation else 0
    return [Instruction(f"bar.{name}", tuple(read), results, immediates=(int(aligned), voted))]


def shuffle(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    results = [
        assembler.operand(text.strip(), kind)
        for text, kind in zip(statement.operands[0].split("|"), ("u32", "pred"), strict=False)
    ]
    results += [NOTHING] * (2 - len(results))
    read = [assembler.operand(text, "u32") for text in statement.operands[1:]]
    return [Instruction(f"shfl.{modifiers[1]}", (*results, *read), 2)]


def vote(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    kinds = (types[0], "pred", "u32")
    read = [assembler.operand(text, kind) for text, kind in zip(statement.operands, kinds, strict=True)]
    return [Instruction(f"vote.{modifiers[1]}", tuple(read), 1)]


def match(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    results = [
        assembler.operand(text.strip(), kind)
        for text, kind in zip(statement.operands[0].split("|"), ("u32", "pred"), strict=False)
    ]
    results += [NOTHING] * (2 - len(results))
    read = [assembler.operand(text, kind) for text, kind in zip(statement.operands[1:], (types[0], "u32"), strict=True)]
    return [Instruction(f"match.{modifiers[0]}", (*results, *read), 2)]


def reduce(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    if "abs" in modifiers or "NaN" in modifiers or types[0] == "f32":
        raise UnknownInstruction(statement.text)
    kind = types[0]
    read = [assembler.operand(text, part) for text, part in zip(statement.operands, (kind, kind, "u32"), strict=True)]
    return [Instruction(f"redux.{modifiers[1]}.{kind.replace('b', 'u')}", tuple(read), 1)]


def active(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    return [Instruction("activemask", (assembler.operand(statement.operands[0], "u32"),), 1)]


def elect(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    first, predicate = statement.operands[0].split("|")
    read = (
        assembler.operand(first.strip(), "u32"),
        assembler.operand(predicate.strip(), "pred"),
        assembler.operand(statement.operands[1], "u32"),
    )
    return [Instruction("elect", read, 2)]


def product(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """mma: the sum of a product of matrices held by a warp's registers."""
    shape = next(word for word in modifiers if re.fullmatch(r"m\d+n\d+k\d+", word))
    if modifiers != ["sync", "aligned", shape, "row", "col"]:
        raise UnknownInstruction(statement.text)
    kinds = [types[0], types[1], types[2], types[3]]
    groups = [assembler.vector(text, _held(kind)) for text, kind in zip(statement.operands, kinds, strict=True)]
    m, n, k = map(int, re.findall(r"\d+", shape))
    for registers, kind, elements in zip(groups, kinds, (m * n, m * k, k * n, m * n), strict=True):
        if len(registers) * LANES * SIZES[_held(kind)] != elements * SIZES[kind]:
            raise UnknownInstruction(statement.text)
    operands = tuple(operand for group in groups for operand in group)
    return [Instruction(f"mma.{shape}.{'.'.join(types)}", operands, len(groups[0]))]


def _held(kind: str) -> str:
    """The type of the registers that hold a matrix: halves go in pairs."""
    return kind if SIZES[kind] >= 4 else "b32"


def matrix(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """ldmatrix, stmatrix."""
    count = next(int(word[1:]) for word in modifiers if re.fullmatch(r"x[124]", word))
    if "m8n8" not in modifiers or types != ["b16"]:
        raise UnknownInstruction(statement.text)
    loads = statement.name[0] == "ldmatrix"
    values, where = statement.operands if loads else reversed(statement.operands)
    registers = assembler.vector(values, "b32")
    address, offset = assembler.address(where)
    name = f"{statement.name[0]}{'.trans' if 'trans' in modifiers else ''}"
    if len(registers) != count:
        raise UnknownInstruction(statement.text)
    space = 2 if any(word.startswith("shared") for word in modifiers) else 0
    return [Instruction(name, (*registers, address), count if loads else 0, space=space, immediates=(offset, 0))]


NEGATE_A, NEGATE_B, TRANSPOSED_A, TRANSPOSED_B, A_IN_REGISTERS = 1, 2, 4, 8, 16


def group(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """wgmma: a product by four warps, on matrices in shared memory."""
    if modifiers[0] in ("fence", "commit_group", "wait_group"):
        pending = int(statement.operands[0], 0) if statement.operands else 0
        name = {"fence": "fence", "commit_group": "commit", "wait_group": "wait"}[modifiers[0]]
        return [Instruction(f"wgmma.{name}", immediates=(pending, 0))]
    shape = next(word for word in modifiers if re.fullmatch(r"m64n\d+k\d+", word))
    if modifiers != ["mma_async", "sync", "aligned", shape] or len(types) != 3:
        raise UnknownInstruction(statement.text)
    accumulator, left, right, accumulate, *numbers = statement.operands
    signs, transposed = [int(text, 0) for text in numbers[:2]], [int(text, 0) for text in numbers[2:]]
    results = assembler.vector(accumulator, _held(types[0]))
    in_registers = left.startswith("{")
    factors = [*assembler.vector(left, "b32" if in_registers else "b64"), assembler.operand(right, "b64")]
    flags = A_IN_REGISTERS if in_registers else 0
    flags |= (NEGATE_A if signs[0] < 0 else 0) | (NEGATE_B if signs[1] < 0 else 0)
    if in_registers and transposed:
        transposed = [0, transposed[0]]
    if transposed:
        flags |= (TRANSPOSED_A if transposed[0] else 0) | (TRANSPOSED_B if transposed[1] else 0)
    operands = (*results, *factors, assembler.operand(accumulate, "pred"))
    n, k = (int(number) for number in re.findall(r"[nk](\d+)", shape))
    if 4 * LANES * len(results) * SIZES[_held(types[0])] != 64 * n * SIZES[types[0]] or len(factors) != (
        5 if in_registers else 2
    ):
        raise UnknownInstruction(statement.text)
    return [Instruction(f"wgmma.{'.'.join(types)}", operands, len(results), flags=flags, immediates=(n, k))]


SELECTORS: dict[str, Selector] = {
    "bar": barrier,
    "barrier": barrier,
    "shfl": shuffle,
    "vote": vote,
    "match": match,
    "redux": reduce,
    "activemask": active,
    "elect": elect,
    "mma": product,
    "ldmatrix": matrix,
    "stmatrix": matrix,
    "wgmma": group,
}
