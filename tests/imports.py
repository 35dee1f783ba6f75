"""Who imports whom, read from the text of a package's files; what holds of it is each package's own test."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by name, with its folders' `__init__` as the folder."""
    return {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def imported(path: Path) -> list[tuple[str, str | None]]:
    """(module, name taken from it or None) of every import, wherever in the file it stands."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.extend((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.extend((node.module or "", alias.name) for alias in node.names)
    return found


def own_imports(path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of a file's own package that it imports."""
    packages = {module.split(".")[0] for module in known}
    found = set()
    for module, name in imported(path):
        if module.split(".")[0] in packages:
            inner = f"{module}.{name}"
            found.add(inner if inner in known else module)
    return found


def assert_no_cycle(edges: Mapping[str, Iterable[str]]) -> None:
    """Whether no module comes to itself again by what it imports."""
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " imports ".join((*trail, module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())
    assert done == set(edges)
