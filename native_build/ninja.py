"""Pieces of a build.ninja: rules, what they make, and the words of their commands."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Object:
    """One object file: its source, relative to the root, its place in the build's folder, and flags of its own."""

    source: Path
    output: str
    flags: tuple[str, ...] = ()


def compile_rule(name: str, words: list[str]) -> list[str]:
    """A rule for one source with `$flags`. -MD also follows the headers of torch and of the compiler: a new version of
    either builds again."""
    return [
        f"rule {name}",
        f"  command = {command(words)} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
    ]


def link_rule(name: str, words: list[str], libraries: list[str]) -> list[str]:
    return [
        f"rule {name}",
        f"  command = {command(words)} $in {command(libraries)} -o $out",
        "  description = link $out",
    ]


def made(
    rule: str, output: Path, sources: Iterable[Path], implicit: Iterable[Path] = (), flags: tuple[str, ...] = ()
) -> list[str]:
    """One file made by a rule; a change of anything implicit makes it again."""
    behind = [_escaped(path) for path in implicit]
    needs = " ".join([*map(_escaped, sources), *(["|", *behind] if behind else [])])
    own = [f"  flags = {command(flags)}"] if flags else []
    return [f"build {_escaped(output)}: {rule} {needs}", *own]


def header(folder: Path) -> list[str]:
    return ["ninja_required_version = 1.5", f"builddir = {_escaped(folder)}"]


def _escaped(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def command(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def sources(root: Path, folder: str, pattern: str = "*.cpp") -> list[Path]:
    """Sources are relative to the root, so that objects do not name where they were built."""
    return [path.relative_to(root) for path in sorted((root / folder).glob(pattern))]
