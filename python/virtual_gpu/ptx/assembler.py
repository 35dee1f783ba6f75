"""A kernel and the functions it calls, laid out as one piece of code: each call is replaced by the function's body.

A parameter of a function is then another name for the variable that its caller passes. Each function's registers and
variables have places of their own for each call, so a function that calls itself is refused.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import Protocol

from virtual_gpu.ptx import statements
from virtual_gpu.ptx.code import NOTHING, Code, Instruction, Kind, Label, Operand, constant
from virtual_gpu.ptx.source import Function, Source, declared
from virtual_gpu.ptx.types import LOCAL_WINDOW, PARAM_WINDOW, SIZES, UnknownInstruction, is_float

SPECIAL = (
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    "%laneid",
    "%warpid",
    "%nwarpid",
    *(f"%lanemask_{which}" for which in ("eq", "le", "lt", "ge", "gt")),
    *(f"%{name}.{axis}" for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid") for axis in "xyz"),
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%dynamic_smem_size",
    "%total_smem_size",
    "%smid",
    "%nsmid",
)
"""Special registers, in the order of the machine's `Special`."""

_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_DECIMAL = re.compile(r"[+-]?\d*\.\d*([eE][+-]?\d+)?$")
_BITS = re.compile(r"0([fFdD])([0-9a-fA-F]+)$")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)
_SUM = re.compile(r"(.+?)\s*\+\s*(-?(?:0[xX][0-9a-fA-F]+|\d+))$", re.S)
_CALL = re.compile(r"(?:\((?P<results>[^)]*)\)\s*,\s*)?(?P<name>[\w$%]+)\s*(?:,\s*\((?P<arguments>[^)]*)\))?", re.S)


class Globals(Protocol):
    """Where the module's variables in global and constant memory lie on the host."""

    def address_of(self, name: str) -> int: ...


@dataclass
class Scope:
    """Names between two braces; `families` are registers declared by number, as in `%r<80>`."""

    outer: "Scope | None" = None
    registers: dict[str, Operand] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    variables: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)


class Select(Protocol):
    """The machine's instructions for one of PTX."""

    def __call__(self, assembler: "Assembler", statement: statements.Instruction, /) -> list[Instruction]: ...


class Assembler:
    """Builds a kernel's code, statement by statement."""

    def __init__(self, source: Source, memory: Globals, entry: Function, select: Select) -> None:
        self.source, self.memory, self.entry = source, memory, entry
        self.select = select
        self.code = Code()
        self.parameters = {parameter.name: parameter.offset for parameter in entry.parameters}
        self.shared: dict[str, int] = {}
        self.dynamic_alignment = 1
        self.scope = Scope()
        self.calls: list[str] = []
        self.file = self.line = 0
        self.text = ""
        self.branches: list[tuple[Instruction, Scope, str]] = []
        self._body(entry, Label())
        self.emit(Instruction("exit"))
        self._resolve()

    # Names

    def register(self, kind: str) -> Operand:
        """A new register for values of a type."""
        self.code.widths.append(SIZES[kind])
        return Operand(Kind.REGISTER, len(self.code.widths) - 1, SIZES[kind])

    def _find_register(self, name: str) -> Operand | None:
        scope: Scope | None = self.scope
        family = name.rstrip("0123456789")
        while scope is not None:
            if name in scope.registers:
                return scope.registers[name]
            if family in scope.families:
                made = scope.registers[name] = self.register(scope.families[family])
                return made
            scope = scope.outer
        return None

    def carry(self) -> Operand:
        """The carry of `.cc` instructions: a predicate that has no name."""
        scope = self.scope
        while scope.outer is not None:
            scope = scope.outer
        if "" not in scope.registers:
            scope.registers[""] = self.register("pred")
        return scope.registers[""]

    def _address_of(self, name: str) -> tuple[int, bool] | None:
        """A variable's address and whether it counts from the dynamic shared memory."""
        scope: Scope | None = self.scope
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name], False
            scope = scope.outer
        if name in self.parameters:
            return PARAM_WINDOW + self.parameters[name], False
        if name in self.shared:
            return self.shared[name], False
        variable = self.source.variables.get(name)
        if variable is None:
            return None
        if variable.space != "shared":
            return self.memory.address_of(name), False
        if variable.size == 0:
            self.dynamic_alignment = max(self.dynamic_alignment, variable.alignment)
            return 0, True
        return self._place_shared(name, variable.size, variable.alignment), False

    def _place_shared(self, name: str, size: int, alignment: int) -> int:
        at = -(-self.code.static_shared // alignment) * alignment
        self.shared[name] = at
        self.code.static_shared = at + size
        return at

    def _place_local(self, size: int, alignment: int) -> int:
        at = -(-self.code.local_bytes // alignment) * alignment
        self.code.local_bytes = at + size
        return LOCAL_WINDOW + at

    # Operands

    def operand(self, text: str, kind: str, *, wider: bool = False) -> Operand:
        """A register of a type's width, or that or `wider`; or a number or address as a constant of that type."""
        if text[0] == "!" and kind == "pred":
            return self.operand(text[1:], kind)._replace(negated=True)
        if text == "_":
            return NOTHING
        found = self._find_register(text)
        if found is None and text in SPECIAL:
            if text not in self.code.special:
                self.code.special[text] = self.register("b32").value
            found = Operand(Kind.REGISTER, self.code.special[text], 4)
        if found is not None:
            if found.width != SIZES[kind] and not (wider and found.width > SIZES[kind]):
                raise UnknownInstruction(f"{self.text} ({text} is no register for {kind})")
            return found
        number = _number(text, kind)
        if number is not None:
            return constant((-1 if number else 0) if kind == "pred" else number, SIZES[kind])
        name, offset = _sum(text)
        address = self._address_of(name)
        if address is None:
            raise UnknownInstruction(f"{self.text} ({name} is not known)")
        return constant(address[0] + offset, SIZES[kind], dynamic=address[1])

    def vector(self, text: str, kind: str, *, wider: bool = False) -> list[Operand]:
        """The operands in braces, or the one without."""
        parts = statements.split(text.strip("{} \n\t")) if text.startswith("{") else [text]
        return [self.operand(part, kind, wider=wider) for part in parts]

    def address(self, text: str) -> tuple[Operand, int]:
        """The register or constant in brackets, and the bytes that are added to it."""
        if not text.startswith("["):
            raise UnknownInstruction(self.text)
        name, offset = _sum(text[1:-1].strip())
        found = self.operand(name, "b32", wider=True)
        return found if found.kind == Kind.REGISTER else self.operand(name, "b64"), offset

    def label(self, instruction: Instruction, name: str) -> Instruction:
        """The instruction with the label of that name as its target, which may not have come yet."""
        instruction.target = Label()
        self.branches.append((instruction, self.scope, name))
        return instruction

    # Code

    def emit(self, instruction: Instruction) -> None:
        instruction.file, instruction.line = self.file, self.line
        instruction.text = instruction.text or self.text
        self.code.instructions.append(instruction)

    def _here(self, label: Label) -> None:
        label.place = len(self.code.instructions)

    def _body(self, function: Function, end: Label) -> None:
        if function.body is None:
            raise UnknownInstruction(f"{self.text} ({function.name} has no body)")
        if function.name in self.calls:
            raise UnknownInstruction(f"{self.text} ({function.name} calls itself)")
        self.calls.append(function.name)
        for statement in statements.statements(function.body):
            match statement:
                case statements.Instruction():
                    self._instruction(statement, end)
                case statements.Location(file, line):
                    self.file, self.line = file, line
                case statements.Label(name):
                    if name in self.scope.labels:
                        raise UnknownInstruction(f"{name}: (a label that stands twice)")
                    self._here(self.scope.labels.setdefault(name, Label()))
                case statements.Directive(text):
                    self._declare(text)
                case statements.Open():
                    self.scope = Scope(self.scope)
                case statements.Close():
                    assert self.scope.outer is not None
                    self.scope = self.scope.outer
        self.calls.pop()
        self._here(end)

    def _declare(self, text: str) -> None:
        registers = _REGISTERS.match(text)
        if registers is not None:
            for name in map(str.strip, registers[2].split(",")):
                family = re.match(r"([\w$%]+)<\d+>$", name)
                if family is not None:
                    self.scope.families[family[1]] = registers[1]
                else:
                    self.scope.registers[name] = self.register(registers[1])
            return
        variable = declared(text)
        if variable is not None and variable.space == "shared":
            self._place_shared(variable.name, variable.size, variable.alignment)
        elif variable is not None and variable.space in ("local", "param"):
            self.scope.variables[variable.name] = self._place_local(variable.size, variable.alignment)
        elif not text.startswith(".pragma"):
            raise UnknownInstruction(text)

    def _instruction(self, statement: statements.Instruction, end: Label) -> None:
        self.text = statement.text
        operation = statement.name[0]
        guard = self.operand(statement.guard, "pred") if statement.guard else None
        if operation == "call":
            self._call(statement, guard)
        elif operation == "ret":
            made = Instruction("exit", guard=guard) if len(self.calls) == 1 else Instruction("bra", target=end)
            made.guard = guard
            self.emit(made)
        else:
            for made in self.select(self, statement):
                made.guard = guard
                self.emit(made)

    def _call(self, statement: statements.Instruction, guard: Operand | None) -> None:
        found = _CALL.match(", ".join(statement.operands))
        callee = self.source.functions.get(found["name"]) if found else None
        if found is None or callee is None:
            raise UnknownInstruction(statement.text)
        if callee.name == "__assertfail":
            self.emit(Instruction("trap", guard=guard))
            return
        passed = [*_names(found["results"]), *_names(found["arguments"])]
        formal = [*callee.results, *callee.parameters]
        if len(passed) != len(formal):
            raise UnknownInstruction(statement.text)
        if guard is not None:
            raise UnknownInstruction(f"{statement.text} (a call with a guard)")
        inner = Scope()
        for parameter, name in zip(formal, passed, strict=True):
            place = self._address_of(name)
            if place is None:
                raise UnknownInstruction(statement.text)
            inner.variables[parameter.name] = place[0]
        outer, self.scope = self.scope, inner
        file, line = self.file, self.line
        self._body(callee, Label())
        self.scope, self.file, self.line = outer, file, line

    def _resolve(self) -> None:
        for instruction, scope, name in self.branches:
            at: Scope | None = scope
            while at is not None and name not in at.labels:
                at = at.outer
            if at is None:
                raise UnknownInstruction(f"{instruction.text} (no label {name})")
            instruction.target = at.labels[name]
        base = -(-self.code.static_shared // self.dynamic_alignment) * self.dynamic_alignment
        for instruction in self.code.instructions:
            if any(operand.dynamic for operand in instruction.operands):
                instruction.operands = tuple(
                    constant(operand.value + base, operand.width) if operand.dynamic else operand
                    for operand in instruction.operands
                )
        self.code.static_shared = base


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _sum(text: str) -> tuple[str, int]:
    found = _SUM.match(text)
    return (found[1].strip(), int(found[2], 0)) if found else (text, 0)


def _number(text: str, kind: str) -> int | None:
    """The bits of a number of that type, or None."""
    bits = _BITS.match(text)
    if bits is not None and len(bits[2]) == (8 if bits[1] in "fF" else 16):
        if SIZES[kind] not in (4, 8):
            return None
        single = bits[1] in "fF"
        value = struct.unpack(">f" if single else ">d", bytes.fromhex(bits[2]))[0]
        return int(bits[2], 16) if single == (SIZES[kind] == 4) else _float_bits(value, kind)
    if _NUMBER.match(text):
        digits = text.rstrip("U")
        octal = re.fullmatch(r"([+-]?)0([0-7]+)", digits)
        number = int(octal[1] + octal[2], 8) if octal else int(digits, 0)
        return _float_bits(float(number), kind) if kind in ("f32", "f64") else number
    if _DECIMAL.match(text) and is_float(kind):
        return _float_bits(float(text), kind)
    return None


def _float_bits(value: float, kind: str) -> int:
    if SIZES[kind] == 8:
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
