"""A PTX file taken apart: its functions with their bodies as text, its variables, the names of its source files."""

import math
import re
from dataclasses import dataclass, field

from virtual_gpu.ptx.types import SIZES


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function: where it lies among the others, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Variable:
    """A variable of the module or of a function; `size` is 0 for shared memory that the launch sizes."""

    name: str
    space: str
    alignment: int
    size: int
    value: bytes = b""


@dataclass
class Function:
    """An entry or a function; one that is only declared has no body.

    `threads` is the largest number of a block's; `block` and `cluster` are the only extents that a launch may have.
    """

    name: str
    entry: bool
    parameters: tuple[Parameter, ...] = ()
    results: tuple[Parameter, ...] = ()
    threads: int | None = None
    block: tuple[int, ...] | None = None
    cluster: tuple[int, ...] | None = None
    body: str | None = None


@dataclass
class Source:
    """What a file holds. `specific`: its target runs on no other architecture (sm_90a, sm_100f)."""

    target: int
    specific: bool
    files: dict[int, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_SECTION = re.compile(r"^\s*\.section\b.*", re.S | re.M)
_FUNCTION = re.compile(r"\.(entry|func)\b")
_NAME = re.compile(r"\s*([\w$]+)\s*")
_BRACE = re.compile(r"[{}]")
_PARENTHESIS = re.compile(r"[()]")
_DECLARED = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\b(?P<qualifiers>[^=]*?)\.(?P<type>[busf]\d+)\s+"
    r"(?P<name>[\w$]+)\s*(?P<array>\[\s*(?P<count>\d*)\s*\])?\s*(?:=\s*(?P<value>.*))?$",
    re.S,
)


def read(text: str) -> Source:
    """The parts of a file; raises ValueError for text that is not PTX."""
    target = re.search(r"\.target\s+sm_(\d+)([af]?)", text)
    if target is None:
        raise ValueError("PTX names its target, as in `.target sm_90`")
    files = {int(number): name.rsplit("/", 1)[-1] for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)}
    source = Source(int(target[1]), target[2] != "", files)
    text = _SECTION.sub("", _COMMENT.sub("", text))
    at = 0
    while True:
        found = _FUNCTION.search(text, at)
        between = text[at : found.start() if found else len(text)]
        for statement in between.split(";"):
            variable = declared(statement)
            if variable is not None:
                source.variables[variable.name] = variable
        if found is None:
            return source
        function, at = _function(text, found.end(), found[1] == "entry")
        if function.body is not None or function.name not in source.functions:
            source.functions[function.name] = function


def declared(statement: str) -> Variable | None:
    """The variable that a statement declares, or None."""
    found = _DECLARED.search(statement)
    if found is None:
        return None
    element = SIZES[found["type"]]
    count = int(found["count"] or 0) if found["array"] else 1
    alignment = re.search(r"\.align\s+(\d+)", found["qualifiers"])
    value = _initial(found["value"], found["type"]) if found["value"] else b""
    return Variable(found["name"], found["space"], int(alignment[1]) if alignment else element, element * count, value)


def _initial(text: str, kind: str) -> bytes:
    """The bytes of an initialiser of numbers."""
    out = bytearray()
    for word in re.findall(r"[\w$.+-]+", text):
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", word):
            out += bytes.fromhex(word[2:])[::-1]
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", word):
            out += (int(word.rstrip("U"), 0) & ((1 << 8 * SIZES[kind]) - 1)).to_bytes(SIZES[kind], "little")
        else:
            raise ValueError(f"a variable's initial value of {word} is not supported")
    return bytes(out)


def _function(text: str, at: int, entry: bool) -> tuple[Function, int]:
    """The function whose header goes on at `at`, and where the text after it starts."""
    results: tuple[Parameter, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    while text[at : at + 1].isspace():
        at += 1
    if text.startswith("(", at):
        inside, at = _closed(text, at, _PARENTHESIS)
        results = _parameters(inside)
    name = _NAME.match(text, at)
    if name is None:
        raise ValueError(f"a function without a name: {text[at : at + 40]!r}")
    at = name.end()
    if text.startswith("(", at):
        inside, at = _closed(text, at, _PARENTHESIS)
        parameters = _parameters(inside)
    opening, semicolon = text.find("{", at), text.find(";", at)
    if max(opening, semicolon) < 0:
        raise ValueError(f"the function {name[1]} does not end")
    if opening < 0 or 0 <= semicolon < opening:
        return Function(name[1], entry, parameters, results), semicolon + 1
    required, most, cluster = (
        _extents(text[at:opening], directive) for directive in ("reqntid", "maxntid", "reqnctapercluster")
    )
    bound = required or most
    body, at = _closed(text, opening, _BRACE)
    return Function(
        name[1], entry, parameters, results, math.prod(bound) if bound else None, required, cluster, body
    ), at


def _extents(directives: str, name: str) -> tuple[int, ...] | None:
    """The three extents that a directive gives, or None."""
    found = re.search(rf"\.{name}\s+([\d\s,]+)", directives)
    return (*map(int, re.findall(r"\d+", found[1])), 1, 1)[:3] if found is not None else None


def _closed(text: str, at: int, bracket: re.Pattern[str]) -> tuple[str, int]:
    """What a bracket that opens at `at` encloses, and the place behind it."""
    depth, place = 0, at
    while True:
        found = bracket.search(text, place)
        if found is None:
            raise ValueError("a bracket is not closed")
        depth += 1 if found[0] in "({" else -1
        place = found.end()
        if depth == 0:
            return text[at + 1 : place - 1], place


def _parameters(text: str) -> tuple[Parameter, ...]:
    out: list[Parameter] = []
    offset = 0
    for declaration in filter(None, map(str.strip, text.split(","))):
        kind = re.search(r"\.([busf]\d+)\b(?!.*\.[busf]\d+\b)", declaration, re.S)
        name = re.search(r"([\w$]+)\s*(?:\[\s*(\d+)\s*\])?$", declaration)
        if kind is None or name is None:
            raise ValueError(f"a parameter that is not understood: {declaration}")
        array = name[2] is not None
        alignment = re.search(r"\.align\s+(\d+)\s+\.b8", declaration) if array else None
        aligned = int(alignment[1]) if alignment else SIZES[kind[1]]
        offset = -(-offset // aligned) * aligned
        out.append(Parameter(name[1], offset, SIZES[kind[1]] * int(name[2] or 1)))
        offset += out[-1].size
    return tuple(out)
