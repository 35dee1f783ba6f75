"""PTX instructions to instructions of the machine: arithmetic, comparisons, conversions, control.

A machine's instruction is named by its operation and the types that matter, as in `add.f32`. What PTX's other words ask
for is either in the instruction's fields, or has no effect on this machine, or is refused by name.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from virtual_gpu.ptx import memory, warp
from virtual_gpu.ptx.assembler import Assembler
from virtual_gpu.ptx.code import NOTHING, Instruction, Operand, constant
from virtual_gpu.ptx.statements import Instruction as Statement
from virtual_gpu.ptx.types import SIZES, UnknownInstruction, is_float, signed, untyped

Selector = Callable[[Assembler, Statement, list[str], list[str]], Iterable[Instruction]]

ROUNDING = {"rn": 0, "rm": 0x2000, "rp": 0x4000, "rz": 0x6000}
"""Rounding modes as bits of the host's control register (MXCSR)."""

FLUSH = 0x8040
"""Subnormal inputs and results are zero."""

DEFAULT_CONTROL = 0x1F80
SATURATE = 1

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs")
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
COMBINATIONS = ("and", "or", "xor")


def select(assembler: Assembler, statement: Statement) -> list[Instruction]:
    """The machine's instructions for one of PTX; raises UnknownInstruction."""
    operation, *words = statement.name
    types = [word for word in words if word in SIZES]
    modifiers = [word for word in words if word not in SIZES]
    chosen = SELECTORS.get(operation) or memory.SELECTORS.get(operation) or warp.SELECTORS.get(operation)
    if chosen is None:
        raise UnknownInstruction(statement.text)
    if "L2::cache_hint" in modifiers:
        # Its last operand is a policy of the cache, which changes no result.
        statement = replace(statement, operands=statement.operands[:-1])
    try:
        return list(chosen(assembler, statement, modifiers, types))
    except (IndexError, KeyError, StopIteration, ValueError) as reason:
        raise UnknownInstruction(f"{statement.text} ({reason})") from reason


def refuse_others(statement: Statement, modifiers: Iterable[str], known: Collection[str]) -> None:
    for modifier in modifiers:
        if modifier not in known:
            raise UnknownInstruction(f"{statement.text} (.{modifier})")


def control_of(modifiers: Collection[str]) -> int:
    """The control register that the modifiers ask for, or 0 where it is the usual one."""
    bits = FLUSH if "ftz" in modifiers else 0
    for mode, rounding in ROUNDING.items():
        if mode in modifiers:
            bits |= rounding
    return DEFAULT_CONTROL | bits if bits else 0


FLOAT_WORDS = ("rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full")


def computed(
    assembler: Assembler, key: str, modifiers: Collection[str], kinds: Iterable[str], operands: Iterable[str]
) -> Instruction:
    """An instruction with one result, its operands read as these types."""
    read = tuple(assembler.operand(text, kind) for text, kind in zip(operands, kinds, strict=True))
    flags = SATURATE if "sat" in modifiers else 0
    return Instruction(key, read, 1, control=control_of(modifiers), flags=flags)


ONE_INPUT = ("abs", "neg", "not", "cnot", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
THREE_INPUTS = ("fma", "mad", "sad")


def arithmetic(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """Operations whose result and operands have one type."""
    operation, kind = statement.name[0], types[-1]
    words = [word for word in modifiers if word in ("approx", "full", "NaN", "hi")]
    inputs = 1 if operation in ONE_INPUT else 3 if operation in THREE_INPUTS else 2
    if is_float(kind):
        known = [*FLOAT_WORDS, "NaN"]
        if kind not in ("f32", "f64"):
            known.remove("sat")
        always_flushed = operation == "ex2" and kind.startswith("bf16")
        if kind not in ("f32", "f64", "f32x2") and not always_flushed:
            known.remove("ftz")
        refuse_others(statement, modifiers, known)
        if always_flushed and "ftz" not in modifiers:
            raise UnknownInstruction(f"{statement.text} (without .ftz)")
    else:
        refuse_others(statement, modifiers, ("lo", "hi", "cc", *(["sat"] if operation in ("add", "sub") else [])))
        if operation in ("and", "or", "xor", "not", "cnot") and kind != "pred":
            kind = untyped(kind)
        if operation in ("add", "sub") and ("cc" in modifiers or "sat" in modifiers):
            words = ["cc" if "cc" in modifiers else "sat"]
            modifiers = [word for word in modifiers if word != "sat"]
    if operation == "mad" and is_float(kind):
        operation = "fma"
    key = ".".join([operation, *words, kind])
    made = computed(assembler, key, modifiers, [kind] * (1 + inputs), statement.operands)
    if "cc" in modifiers:
        made.operands = (made.operands[0], assembler.carry(), *made.operands[1:])
        made.results = 2
    return [made]


def with_carry(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """addc, subc, madc: they read the carry, and write it with `.cc`."""
    refuse_others(statement, modifiers, ("cc", "lo", "hi"))
    words = [word for word in modifiers if word in ("hi", "lo")]
    kind = untyped(types[0]) if statement.name[0] != "madc" else types[0]
    result, *read = (assembler.operand(text, kind) for text in statement.operands)
    if len(read) != (3 if statement.name[0] == "madc" else 2):
        raise UnknownInstruction(statement.text)
    writes = assembler.carry() if "cc" in modifiers else NOTHING
    return [Instruction(".".join([statement.name[0], *words, kind]), (result, writes, *read, assembler.carry()), 2)]


def multiply(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """mul and mad: the low half, the high half or the whole of a product."""
    kind = types[0]
    if is_float(kind) or ("wide" not in modifiers and "cc" not in modifiers):
        return arithmetic(assembler, statement, modifiers, types)
    if "cc" in modifiers:
        refuse_others(statement, modifiers, ("cc", "lo", "hi"))
        words = [word for word in modifiers if word in ("hi", "lo")]
        result, *read = (
            assembler.operand(text, part) for text, part in zip(statement.operands, [kind] * 4, strict=True)
        )
        return [Instruction(".".join(["mad.cc", *words, kind]), (result, assembler.carry(), *read), 2)]
    refuse_others(statement, modifiers, ("wide",))
    wide = f"{kind[0]}{16 * SIZES[kind]}"
    kinds = [wide, kind, kind, *([wide] if statement.name[0] == "mad" else [])]
    return [computed(assembler, f"{statement.name[0]}.wide.{kind}", (), kinds, statement.operands)]


def shift(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    refuse_others(statement, modifiers, ())
    kind = types[0] if signed(types[0]) and statement.name[0] == "shr" else untyped(types[0])
    return [computed(assembler, f"{statement.name[0]}.{kind}", (), (kind, kind, "u32"), statement.operands)]


def funnel(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    refuse_others(statement, modifiers, ("l", "r", "wrap", "clamp"))
    return [computed(assembler, f"shf.{'.'.join(modifiers)}.u32", (), ["u32"] * 4, statement.operands)]


def field(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """bfe, bfi: bit fields, their place and length in 32 bits."""
    refuse_others(statement, modifiers, ())
    kind = types[0] if statement.name[0] == "bfe" else untyped(types[0])
    values = 2 if statement.name[0] == "bfe" else 3
    kinds = [kind] * values + ["u32"] * 2
    return [computed(assembler, f"{statement.name[0]}.{kind}", (), kinds, statement.operands)]


def bits(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """brev, clz, popc, bfind: counts of bits are 32 bits wide."""
    refuse_others(statement, modifiers, ("shiftamt",))
    operation = statement.name[0]
    kind = types[0] if operation == "bfind" else untyped(types[0])
    key = ".".join([operation, *modifiers, kind])
    return [computed(assembler, key, (), (kind if operation == "brev" else "u32", kind), statement.operands)]


def three_inputs(
    assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]
) -> list[Instruction]:
    """lop3: any function of three bits, by its table."""
    refuse_others(statement, modifiers, ())
    made = computed(assembler, "lop3.u32", (), ["u32"] * 4, statement.operands[:4])
    made.immediates = (int(statement.operands[4], 0), 0)
    return [made]


def bytes_of(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """prmt: bytes of two words, by a selector."""
    refuse_others(statement, modifiers, ())
    return [computed(assembler, "prmt.u32", (), ["u32"] * 4, statement.operands)]


def move(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """mov: a register, a constant, an address; or registers packed into one, or taken out of one."""
    refuse_others(statement, modifiers, ())
    kind = types[0]
    result, value = statement.operands
    if result.startswith("{"):
        parts = assembler.vector(result, f"b{8 * SIZES[kind] // len(result.split(','))}", wider=True)
        return [Instruction("unpack", (*parts, assembler.operand(value, kind)), len(parts))]
    if value.startswith("{"):
        count = len(value.split(","))
        parts = assembler.vector(value, f"b{8 * SIZES[kind] // count}", wider=True)
        return [Instruction("pack", (assembler.operand(result, kind), *parts), 1)]
    if value.startswith(("%clock", "%globaltimer")):
        return [Instruction(f"clock.{untyped(kind)}", (assembler.operand(result, kind),), 1)]
    key = "mov.pred" if kind == "pred" else f"mov.{untyped(kind)}"
    return [Instruction(key, (assembler.operand(result, kind), assembler.operand(value, kind)), 1)]


def convert(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """cvt: the name keeps the rounding where it is not one of the host's."""
    target, origin = types
    named = ("rni", "rzi", "rmi", "rpi", "rna", *(("rz",) if target == "tf32" else ()))
    saturates = ("sat",) if not is_float(target) or target in ("f32", "f64") else ()
    refuse_others(statement, modifiers, ("rn", "rz", "rm", "rp", *named, "ftz", *saturates))
    mode = next((word for word in modifiers if word in named), "")
    if target == origin and modifiers == ["ftz"]:
        raise UnknownInstruction(statement.text)
    if len(statement.operands) == 3:
        key = f"cvt.pack.{target}"
        kinds: tuple[str, ...] = (target, "f32", "f32")
    else:
        key = ".".join(filter(None, ["cvt", mode, target, origin]))
        kinds = (target, origin)
    saturating_integer = "sat" in modifiers and not is_float(target)
    if saturating_integer and not is_float(origin):
        key = f"cvt.sat.{target}.{origin}"
    read = tuple(
        assembler.operand(text, kind, wider=True) for text, kind in zip(statement.operands, kinds, strict=True)
    )
    flags = SATURATE if "sat" in modifiers and is_float(target) else 0
    return [Instruction(key, read, 1, control=control_of(modifiers), flags=flags)]


def compare(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """setp: two predicates, of the comparison and of its opposite, each combined with a third."""
    refuse_others(statement, modifiers, (*COMPARISONS, *UNORDERED, *COMBINATIONS, "ftz"))
    kind = types[0]
    combination = next((word for word in modifiers[1:] if word in COMBINATIONS), None)
    results = [assembler.operand(text.strip(), "pred") for text in statement.operands[0].split("|")]
    results += [NOTHING] * (2 - len(results))
    kinds = [kind, kind, *(["pred"] if combination is not None else [])]
    read = [assembler.operand(text, part) for text, part in zip(statement.operands[1:], kinds, strict=True)]
    code = 1 + COMBINATIONS.index(combination) if combination else 0
    key = f"setp.{modifiers[0]}.{kind if is_float(kind) or signed(kind) else untyped(kind)}"
    return [Instruction(key, (*results, *read), 2, control=control_of(modifiers), immediates=(code, 0))]


def set_by_comparison(
    assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]
) -> list[Instruction]:
    """set: all bits, or 1.0, where a comparison holds."""
    if types[0] not in ("u32", "s32", "f32"):
        raise UnknownInstruction(statement.text)
    predicate = assembler.register("pred")
    result, *read = statement.operands
    name = ("setp", *modifiers, types[1])
    holds = compare(assembler, Statement("", name, ("_", *read), statement.text), modifiers, types[1:])
    holds[0].operands = (predicate, *holds[0].operands[1:])
    true = constant(0x3F800000 if types[0] == "f32" else -1, 4)
    chosen = Instruction("selp.u32", (assembler.operand(result, "b32"), true, constant(0, 4), predicate), 1)
    return [*holds, chosen]


def choose(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """selp: by a predicate; slct: by a sign."""
    refuse_others(statement, modifiers, ("ftz",) if statement.name[0] == "slct" else ())
    kind = types[0]
    if statement.name[0] == "slct":
        kinds = [kind] * 3 + types[1:]
        return [computed(assembler, f"slct.{untyped(kind)}.{types[1]}", modifiers, kinds, statement.operands)]
    key = "selp.pred" if kind == "pred" else f"selp.{untyped(kind)}"
    return [computed(assembler, key, (), [kind] * 3 + ["pred"], statement.operands)]


def test(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """testp: what kind of floating-point number."""
    return [computed(assembler, f"testp.{modifiers[0]}.{types[0]}", (), ("pred", types[0]), statement.operands)]


def branch(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    refuse_others(statement, modifiers, ("uni",))
    return [assembler.label(Instruction("bra"), statement.operands[0])]


def leave(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    refuse_others(statement, modifiers, ())
    return [Instruction("trap" if statement.name[0] in ("trap", "brkpt") else "exit")]


def nothing(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """Hints that change no result."""
    return [Instruction("nop")]


def policy(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """createpolicy: hints to caches go by it, so that any value does."""
    return [Instruction("mov.u64", (assembler.operand(statement.operands[0], "b64"), constant(0, 8)), 1)]


def window(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """cvta: only shared addresses differ from their generic ones."""
    refuse_others(statement, modifiers, ("to", "global", "shared", "local", "param", "const", "shared::cta"))
    read = tuple(assembler.operand(text, "u64") for text in statement.operands)
    shared = any(word.startswith("shared") for word in modifiers)
    key = ("cvta.to.shared" if "to" in modifiers else "cvta.shared") if shared else "mov.u64"
    return [Instruction(key, read, 1)]


def is_in(assembler: Assembler, statement: Statement, modifiers: list[str], types: list[str]) -> list[Instruction]:
    """isspacep."""
    space = modifiers[0].split("::")[0]
    read: tuple[Operand, ...] = tuple(
        assembler.operand(text, kind) for text, kind in zip(statement.operands, ("pred", "u64"), strict=True)
    )
    return [Instruction(f"isspacep.{space}", read, 1)]


SELECTORS: dict[str, Selector] = {
    **dict.fromkeys(("add", "sub", "fma", "div", "rem", "min", "max", "abs", "neg", "sad", "copysign"), arithmetic),
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), arithmetic),
    **dict.fromkeys(("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"), arithmetic),
    **dict.fromkeys(("addc", "subc", "madc"), with_carry),
    **dict.fromkeys(("mul", "mad"), multiply),
    **dict.fromkeys(("shl", "shr"), shift),
    **dict.fromkeys(("bfe", "bfi"), field),
    **dict.fromkeys(("brev", "clz", "popc", "bfind"), bits),
    **dict.fromkeys(("selp", "slct"), choose),
    **dict.fromkeys(("exit", "trap", "brkpt"), leave),
    **dict.fromkeys(
        ("prefetch", "prefetchu", "applypriority", "discard", "nanosleep", "setmaxnreg", "griddepcontrol", "pmevent"),
        nothing,
    ),
    "shf": funnel,
    "lop3": three_inputs,
    "prmt": bytes_of,
    "mov": move,
    "cvt": convert,
    "setp": compare,
    "set": set_by_comparison,
    "testp": test,
    "bra": branch,
    "createpolicy": policy,
    "cvta": window,
    "isspacep": is_in,
}
