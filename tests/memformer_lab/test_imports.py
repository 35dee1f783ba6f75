"""Imports of the lab point downward: its floors, and what only some of it may need."""

from pathlib import Path

import pytest

from tests.imports import assert_no_cycle, imported, modules, own_imports

LAB = Path(__file__).parents[2] / "python" / "memformer_lab"
# A module imports from floors below its own, or from its own room. A new room gets a floor here.
FLOORS = ["tasks", "solvers", "runs", "reports", "profiling", "spectrum", "experiments", "cli", "__main__", "__init__"]
MODULES = modules(LAB)


def _floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


def test_every_file_is_in_a_room() -> None:
    assert {path.relative_to(LAB).parts[0].removesuffix(".py") for path in MODULES.values()} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    for other in own_imports(MODULES[module], MODULES):
        same_room = module.split(".")[:2] == other.split(".")[:2] and len(module.split(".")) > 1 and other != module
        assert same_room or _floor(other) < _floor(module), f"{module} imports {other}"


def test_imports_have_no_cycle() -> None:
    assert_no_cycle({module: own_imports(path, MODULES) for module, path in MODULES.items()})


def test_the_lab_knows_neither_benchmarks_nor_tests() -> None:
    for module, path in MODULES.items():
        assert not {name.split(".")[0] for name, _ in imported(path)} & {"benchmarks", "tests", "pytest"}, module
