"""Instructions that touch memory: loads and stores, atomics, asynchronous copies, fences, mbarriers."""

from collections.abc import Callable, Collection, Iterable

from virtual_gpu.ptx.assembler import Assembler
from virtual_gpu.ptx.code import Instruction, Operand, constant
from virtual_gpu.ptx.statements import Instruction as Statement
from virtual_gpu.ptx.types import SIZES, SPACES, UnknownInstruction, is_float, untyped

Selector = Callable[[Assembler, Statement, list[str], list[str]], Iterable[Instruction]]

STRONG, ACQUIRE, RELEASE, WHOLE_GRID = 1, 2, 4, 8
"""Flags of an access: it is no data race by itself; it orders others; it does so beyond its block."""

CACHING = (
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "volatile", "weak", "relaxed", "acquire", "release", "acq_rel"),
    *("cta", "cluster", "gpu", "sys", "v2", "v4", "v8", "noftz"),
    *("global", "shared", "local", "param", "const", "shared::cta", "shared::cluster", "param::entry", "param::func"),
)
"""Words of loads, stores and atomics; besides, there are hints for caches, which begin with `L1::` or `L2::`."""


def _check(statement: Statement, modifiers: Iterable[str], known: Collection[str]) -> None:
    for modifier in modifiers:
        if modifier not in known and not modifier.startswith(("L1::", "L2::")):
            raise UnknownInstruction(f"{statement.text} (.{modifier})")


def _check_count(statement: Statement, modifiers: Collection[str], values: Collection[Operand]) -> None:
    if len(values) != next((int(word[1:]) for word in modifiers if word in ("v2", "v4", "v8")), 1):
        raise UnknownInstruction(statement.text)


def _space(modifiers: Iterable[str]) -> int:
    return next((SPACES.index(word.split("::")[0]) for word in modifiers if word.split("::")[0] in SPACES), 0)


def _order(modifiers: Collection[str]) -> int:
    flags = STRONG if any(word in modifiers for word in ("volatile", "relaxed", "acquire", "release", "acq_rel")) else 0
    flags |= ACQUIRE if "acquire" in modifiers or "acq_rel" in modifiers else 0
    flags |= RELEASE if "release" in modifiers or "acq_rel" in modifiers else 0
    return flags if "cta" in modifiers else flags | WHOLE_GRID


def load(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    _check(statement, modifiers, CACHING)
    kind = types[0]
    results = assembler.vector(statement.operands[0], kind, wider=True)
    _check_count(statement, modifiers, results)
    address, offset = assembler.address(statement.operands[1])
    name = kind if kind[0] == "s" else untyped(kind)
    return [
        Instruction(
            f"ld.{name}",
            (*results, address),
            len(results),
            space=_space(modifiers),
            flags=_order(modifiers),
            immediates=(offset, 0),
        )
    ]


def store(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    _check(statement, modifiers, CACHING)
    address, offset = assembler.address(statement.operands[0])
    values = assembler.vector(statement.operands[1], types[0], wider=True)
    _check_count(statement, modifiers, values)
    return [
        Instruction(
            f"st.{untyped(types[0])}",
            (*values, address),
            space=_space(modifiers),
            flags=_order(modifiers),
            immediates=(offset, 0),
        )
    ]


ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def atomic(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """atom, and red without a result."""
    if "async" in modifiers:
        raise UnknownInstruction(statement.text)
    _check(statement, modifiers, (*CACHING, *ATOMICS))
    kind = types[0]
    operands = statement.operands if statement.name[0] == "atom" else ("_", *statement.operands)
    results = assembler.vector(operands[0], kind)
    address, offset = assembler.address(operands[1])
    values = [operand for text in operands[2:] for operand in assembler.vector(text, kind)]
    if len(values) != (2 if "cas" in modifiers else 1):
        raise UnknownInstruction(statement.text)
    operation = next(word for word in ATOMICS if word in modifiers)
    arithmetic = operation in ("min", "max") or is_float(kind)
    return [
        Instruction(
            f"atom.{operation}.{kind if arithmetic else untyped(kind)}",
            (*results, address, *values),
            1,
            space=_space(modifiers),
            flags=_order(modifiers) | STRONG,
            immediates=(offset, 0),
        )
    ]


def copy(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """cp.async of each kind."""
    operands = statement.operands
    if modifiers[:2] == ["async", "bulk"]:
        return _bulk(assembler, statement, modifiers[2:])
    if modifiers[:2] == ["async", "commit_group"]:
        return [Instruction("cp.commit")]
    if modifiers[:2] == ["async", "wait_group"]:
        return [Instruction("cp.wait", immediates=(int(operands[0], 0), 0))]
    if modifiers[:2] == ["async", "wait_all"]:
        return [Instruction("cp.wait", immediates=(-1, 0))]
    if modifiers[:3] == ["async", "mbarrier", "arrive"]:
        barrier, offset = assembler.address(operands[0])
        return [Instruction("cp.arrive", (barrier,), immediates=(offset, int("noinc" in modifiers)))]
    _check(statement, modifiers, ("async", *CACHING))
    size = int(operands[2], 0)
    taken = assembler.operand(operands[3], "u32") if len(operands) > 3 else constant(size, 4)
    read, sums = _addresses(assembler, operands[:2])
    return [*sums, Instruction("cp.async", (*read, taken), immediates=(size, 0))]


def _addresses(assembler: Assembler, texts: Iterable[str]) -> tuple[list[Operand], list[Instruction]]:
    """Registers that hold addresses with their offsets, and the instructions that make them."""
    read: list[Operand] = []
    sums: list[Instruction] = []
    for base, offset in map(assembler.address, texts):
        if offset == 0:
            read.append(base)
            continue
        kind = f"u{8 * base.width}"
        read.append(assembler.register(kind))
        sums.append(Instruction(f"add.{kind}", (read[-1], base, constant(offset, base.width)), 1))
    return read, sums


def _bulk(assembler: Assembler, statement: Statement, modifiers: list[str]) -> list[Instruction]:
    operands = statement.operands
    if modifiers[0] == "commit_group":
        return [Instruction("bulk.commit")]
    if modifiers[0] == "wait_group":
        if "read" in modifiers:
            raise UnknownInstruction(statement.text)
        return [Instruction("bulk.wait", immediates=(int(operands[0], 0), 0))]
    spaces = [word.split("::")[0] for word in modifiers if word.split("::")[0] in SPACES]
    if "tensor" in modifiers or "multicast::cluster" in modifiers or "prefetch" in modifiers:
        raise UnknownInstruction(statement.text)
    read, sums = _addresses(assembler, operands[:2])
    read.append(assembler.operand(operands[2], "u32"))
    if spaces[0] == "shared" and spaces[1] == "global":
        barrier, offset = assembler.address(operands[3])
        return [*sums, Instruction("bulk.load", (*read, barrier), immediates=(offset, 0))]
    if spaces[0] == "global" and spaces[1] == "shared":
        return [*sums, Instruction("bulk.store", tuple(read))]
    raise UnknownInstruction(statement.text)


def fence(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """membar, fence: of generic accesses to a scope, or between generic and asynchronous ones."""
    if "proxy" in modifiers:
        proxies = ("proxy", "async", "async::generic", "alias", "global", "shared::cta", "shared::cluster")
        _check(statement, modifiers, (*proxies, "acquire", "release", "sync_restrict::shared::cta", "cluster"))
        elsewhere = "alias" in modifiers or ("global" in modifiers and not any("shared" in word for word in modifiers))
        return [Instruction("nop" if elsewhere else "fence.proxy")]
    known = ("gl", "sys", "cta", "gpu", "cluster", "acq_rel", "sc", "acquire", "release", "mbarrier_init")
    _check(statement, modifiers, known)
    if "mbarrier_init" in modifiers:
        return [Instruction("fence.mbarrier")]
    return [Instruction("nop" if "cta" in modifiers else "fence.grid")]


def mbarrier(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    operation, operands = modifiers[0], list(statement.operands)
    if "relaxed" in modifiers:
        raise UnknownInstruction(statement.text)
    if operation in ("init", "inval"):
        barrier, offset = assembler.address(operands[0])
        count = [assembler.operand(text, "u32") for text in operands[1:]]
        return [Instruction(f"mbarrier.{operation}", (barrier, *count), immediates=(offset, 0))]
    if operation in ("arrive", "expect_tx", "arrive_drop"):
        if operands[0].startswith("["):
            operands.insert(0, "_")
        barrier, offset = assembler.address(operands[1])
        number = assembler.operand(operands[2], "u32") if len(operands) > 2 else constant(1, 4)
        expects = "expect_tx" in modifiers
        name = {"arrive": "arrive.expect" if expects else "arrive", "expect_tx": "expect"}.get(operation)
        if name is None or "noComplete" in modifiers:
            raise UnknownInstruction(statement.text)
        result = assembler.operand(operands[0], "b64")
        return [Instruction(f"mbarrier.{name}", (result, barrier, number), 1, immediates=(offset, 0))]
    if operation in ("try_wait", "test_wait"):
        barrier, offset = assembler.address(operands[1])
        state = assembler.operand(operands[2], "u32" if "parity" in modifiers else "b64")
        result = assembler.operand(operands[0], "pred")
        parity = int("parity" in modifiers)
        return [Instruction("mbarrier.test", (result, barrier, state), 1, immediates=(offset, parity))]
    raise UnknownInstruction(statement.text)


def of_cluster(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """mapa: an address in the shared memory of another block of the cluster."""
    kind = untyped(types[0])
    generic = "shared" not in " ".join(modifiers)
    read = [assembler.operand(text, part) for text, part in zip(statement.operands, (kind, kind, "u32"), strict=True)]
    return [Instruction(f"mapa.{kind}", tuple(read), 1, immediates=(int(generic), 0))]


def of_rank(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """getctarank: the block of the cluster that an address in shared memory belongs to."""
    result, address = statement.operands
    read = (assembler.operand(result, "u32"), assembler.operand(address, types[0]))
    return [Instruction(f"getctarank.u{8 * SIZES[types[0]]}", read, 1)]


SELECTORS: dict[str, Selector] = {
    "ld": load,
    "ldu": load,
    "st": store,
    "atom": atomic,
    "red": atomic,
    "cp": copy,
    "fence": fence,
    "membar": fence,
    "mbarrier": mbarrier,
    "mapa": of_cluster,
    "getctarank": of_rank,
}
