"""Imports of the benchmarks point downward: the rooms, from the peers up to the commands."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("peers", "measure", "reports", "gpu")
"""A file imports from its own room and those before it; the files outside the rooms import from all."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
}


def _floor(module: str) -> int:
    room = [*module.split("."), ""][1]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def _imported(module: str) -> set[str]:
    """The modules of the benchmarks that one imports, wherever in its file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "benchmarks":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if name in MODULES else name.rsplit(".", 1)[0] for name in found}


def test_every_file_is_in_a_room_or_a_command() -> None:
    outside = {module for module in MODULES if _floor(module) == len(ROOMS)}
    names = ("", ".__main__", ".readme", ".test_registry")
    assert outside == {f"benchmarks{name}" for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    for other in _imported(module):
        assert _floor(other) <= _floor(module), f"{module} imports {other}"
        assert other in MODULES, f"{module} imports {other}"


def test_imports_have_no_cycle() -> None:
    left = {module: _imported(module) for module in MODULES}
    while left:
        free = {module for module, others in left.items() if not others & left.keys() - {module}}
        assert free, f"a circle among {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in free}
