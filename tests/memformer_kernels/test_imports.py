"""Imports point downward: the floors of the package, and who may use what of it."""

import ast
import sys
from pathlib import Path

import pytest

import memformer_kernels
from memformer_kernels import torch_internals
from tests.imports import assert_no_cycle, imported, modules, own_imports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "memformer_kernels"
# A module imports from floors below its own, or from its own folder. New modules get a floor here.
FLOORS = [
    {"version", "reference", "torch_internals", "library", "triton_support"},
    {"availability"},
    {"calls"},
    {"backends"},
    {"torch_ops"},
    {"functional"},
    {"explain", "nn", "testing", "training"},
    {"__init__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = modules(PACKAGE)


def _top(module: str) -> str:
    """The file or folder of the package that a module is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    top = _top(module)
    assert top in FLOOR, f"give {top} a floor"
    for other in own_imports(MODULES[module], MODULES):
        allowed = FLOOR[_top(other)] < FLOOR[top] or (_top(other) == top and other != module)
        assert allowed, f"{module} (floor {FLOOR[top]}) imports {other} (floor {FLOOR[_top(other)]})"


def test_imports_have_no_cycle() -> None:
    assert_no_cycle({module: own_imports(path, MODULES) for module, path in MODULES.items()})


def test_the_reference_stands_alone() -> None:
    """It is what everything is checked against: it shares no code with what it checks."""
    assert {module.split(".")[0] for module, _ in imported(PACKAGE / "reference.py")} <= {"collections", "torch"}
    users = {module for module, path in MODULES.items() if "memformer_kernels.reference" in own_imports(path, MODULES)}
    assert users == {"memformer_kernels.testing"}


PRIVATE = "memformer_kernels.torch_internals"


def _private_names(path: Path) -> list[str]:
    """What a file takes from PyTorch that begins with an underscore, by import or as an attribute of a module of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, modules = [], {"torch"}
    for module, name in imported(path):
        if module.split(".")[0] == "torch":
            words = [*module.split("."), *([name] if name else [])]
            found += [".".join(words)] if any(word.startswith("_") for word in words) else []
            modules |= {name} if name and name.islower() else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).split(".")
            private = any(word.startswith("_") and not word.startswith("__") for word in words[1:])
            found += [ast.unparse(node)] if words[0] in modules and private else []
        if isinstance(node, ast.Attribute) and node.attr in ("_schema", "_dynamo_marked_constant"):
            found.append(ast.unparse(node))
    return found


def test_one_file_uses_private_names_of_pytorch() -> None:
    """Nor does the lab, nor do the benchmarks."""
    others = [path for folder in ("benchmarks", "python/memformer_lab") for path in (ROOT / folder).rglob("*.py")]
    users = {module for module, path in MODULES.items() if _private_names(path)}
    assert users <= {PRIVATE}
    assert not [path for path in others if _private_names(path)]


def test_private_names_are_seen(tmp_path: Path) -> None:
    for line in (
        "import torch; torch._C._is_tracing()",
        "from torch._C import _is_tracing",
        "from torch.autograd import forward_ad; forward_ad._current_level",
        "def f(op): return op._schema",
    ):
        (tmp_path / "line.py").write_text(line)
        assert _private_names(tmp_path / "line.py"), line
    (tmp_path / "line.py").write_text("import torch; torch.__version__; torch.autograd.grad; self._x")
    assert not _private_names(tmp_path / "line.py")


def test_a_missing_private_name_is_told_at_import() -> None:
    with pytest.raises(ImportError, match=r"needs torch\._C\._no_such_thing, which torch"):
        torch_internals._find("_C._no_such_thing")


@pytest.mark.parametrize("module", MODULES)
def test_the_package_knows_neither_lab_nor_benchmarks_nor_tests(module: str) -> None:
    tops = {name.split(".")[0] for name, _ in imported(MODULES[module])}
    assert not tops & {"memformer_lab", "benchmarks", "tests", "pytest", "hypothesis"}


def test_the_package_needs_nothing_but_its_dependencies() -> None:
    known = {*sys.stdlib_module_names, "torch", "numpy", "triton", "memformer_kernels"}
    for module, path in MODULES.items():
        assert {name.split(".")[0] for name, _ in imported(path)} <= known, module


@pytest.mark.parametrize("path", sorted((ROOT / "python" / "memformer_lab").rglob("*.py")), ids=lambda p: p.name)
def test_the_lab_uses_public_names_alone(path: Path) -> None:
    public = set(memformer_kernels.__all__)
    for module, name in imported(path):
        if module.split(".")[0] == "memformer_kernels":
            assert module in ("memformer_kernels", "memformer_kernels.nn"), module
            assert name is None or not name.startswith("_") or name in public
            if module == "memformer_kernels" and name is not None:
                assert name in public, name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "memformer_kernels" or node.attr in public, node.attr


@pytest.mark.parametrize("path", sorted((ROOT / "python" / "virtual_gpu").rglob("*.py")), ids=lambda p: p.name)
def test_the_virtual_gpu_knows_neither_package(path: Path) -> None:
    tops = {name.split(".")[0] for name, _ in imported(path)}
    assert not tops & {"memformer_kernels", "memformer_lab", "benchmarks", "tests", "native_build"}


def test_nothing_is_unpickled() -> None:
    """Neither the package nor the lab calls what runs code from a file; `worker` packs for the lab's own pipes."""
    for folder in (PACKAGE, ROOT / "python" / "memformer_lab"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path == ROOT / "python" / "memformer_lab" / "runs" / "worker.py":
                assert text.count("pickle.") == 2
                assert "pickle.load(" not in text
                continue
            assert not any(module.split(".")[0] in ("pickle", "dill", "joblib") for module, _ in imported(path))
            for call in ("torch.load(", "torch.save(", "allow_pickle=True", "pickle"):
                assert call not in text, (path.name, call)
