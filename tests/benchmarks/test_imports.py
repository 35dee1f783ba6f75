"""Imports of the benchmarks point downward: the rooms, from the peers up to the commands."""

from pathlib import Path

import pytest

from tests.imports import assert_no_cycle, modules, own_imports

ROOT = Path(__file__).parents[2]
ROOMS = ("peers", "measure", "reports", "gpu")
"""A file imports from its own room and those before it; the files outside the rooms import from all."""

MODULES = modules(ROOT / "benchmarks")


def _floor(module: str) -> int:
    room = [*module.split("."), ""][1]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def test_every_file_is_in_a_room_or_a_command() -> None:
    outside = {module for module in MODULES if _floor(module) == len(ROOMS)}
    names = ("", ".__main__", ".readme", ".test_registry")
    assert outside == {f"benchmarks{name}" for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    for other in own_imports(MODULES[module], MODULES):
        assert _floor(other) <= _floor(module), f"{module} imports {other}"
        assert other in MODULES, f"{module} imports {other}"


def test_imports_have_no_cycle() -> None:
    assert_no_cycle({module: own_imports(path, MODULES) for module, path in MODULES.items()})
