"""The body of a function as statements."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Open:
    """A scope of names begins."""


@dataclass(frozen=True)
class Close:
    """A scope of names ends."""


@dataclass(frozen=True)
class Location:
    """What follows comes from this line of this file."""

    file: int
    line: int


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Directive:
    """A declaration, as it is written, without the semicolon."""

    text: str


@dataclass(frozen=True)
class Instruction:
    """One instruction: its guard as it is written ("" for none), its name split at dots, its operands."""

    guard: str
    name: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


Statement = Open | Close | Location | Label | Directive | Instruction

_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)[^\n]*|(?P<label>[\w$]+)\s*:(?!:)"
    r"|(?P<text>[^;]+);)"
)
_INSTRUCTION = re.compile(r"(?:@(?P<guard>!?[\w%$]+)\s+)?(?P<name>[a-z][\w.:]*)\s*(?P<operands>.*)$", re.S)


def statements(body: str) -> Iterator[Statement]:
    """The statements in their order; raises ValueError for what is none."""
    end = 0
    for found in _STATEMENT.finditer(body):
        if found.start() != end:
            break
        end = found.end()
        if found["text"] is not None:
            text = found["text"].strip()
            yield Directive(text) if text[0] == "." else _instruction(text)
        elif found["file"] is not None:
            yield Location(int(found["file"]), int(found["line"]))
        elif found["label"] is not None:
            yield Label(found["label"])
        else:
            yield Open() if found["open"] else Close()
    if body[end:].strip():
        raise ValueError(f"not a statement: {body[end:].strip()[:80]}")


def _instruction(text: str) -> Instruction:
    found = _INSTRUCTION.match(text)
    if found is None:
        raise ValueError(f"not an instruction: {text}")
    return Instruction(found["guard"] or "", tuple(found["name"].split(".")), tuple(split(found["operands"])), text)


def split(text: str) -> list[str]:
    """The operands between commas that stand in no bracket."""
    if "{" not in text and "(" not in text:
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return parts
