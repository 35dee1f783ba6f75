"""Imports of the lab point downward: its floors, and what only some of it may need."""

import ast
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "python" / "memformer_lab"
# A module imports from floors below its own, or from its own room. A new room gets a floor here.
FLOORS = ["tasks", "solvers", "runs", "reports", "profiling", "experiments", "cli", "__main__", "__init__"]
MODULES = {
    ".".join(("memformer_lab", *path.relative_to(LAB).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(LAB.rglob("*.py"))
}


def _imported(path: Path) -> set[str]:
    """The modules of the lab that a file imports, wherever in it that stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module or "")
    return {module for module in found if module.split(".")[0] == "memformer_lab"}


def _floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


def test_every_file_is_in_a_room() -> None:
    assert {path.relative_to(LAB).parts[0].removesuffix(".py") for path in MODULES.values()} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    for other in _imported(MODULES[module]):
        same_room = module.split(".")[:2] == other.split(".")[:2] and len(module.split(".")) > 1 and other != module
        assert same_room or _floor(other) < _floor(module), f"{module} imports {other}"


def test_imports_have_no_cycle() -> None:
    edges = {module: _imported(path) & MODULES.keys() for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " imports ".join((*trail, module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_the_lab_knows_neither_benchmarks_nor_tests() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"benchmarks", "tests", "pytest"}, module
