"""The package as it is shipped: names, metadata, what importing it does, and builds without torch."""

import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import memformer_kernels
from memformer_kernels import nn
from tests import source

ROOT = Path(__file__).parents[2]
CONTRACT = {
    "memformer_stack",
    "memformer_predict",
    "memformer_loss",
    "memformer_layer",
    "context_gram",
    "lfom_solve",
    "explain",
    "build_info",
    "warmup",
    "nn",
}
# Joined here, so that this file does not hold them.
MACHINE_PATHS = ["/".join(parts) for parts in (("", "work", ""), ("", "home", ""), ("", "root", ""), ("", "tmp", ""))]
TEXTS = {".py", ".md", ".toml", ".txt", ".cfg", ".json", ".yml", ".yaml", ".in", ".sh", ".h", ".cpp", ".cu", ".cuh"}
GENERATED = {"__pycache__", "results", "build", "dist", "_lib"}


def test_public_names() -> None:
    assert set(memformer_kernels.__all__) >= CONTRACT
    assert len(set(memformer_kernels.__all__)) == len(memformer_kernels.__all__)
    assert {name for name in vars(nn) if name.startswith("Memformer")} == {
        "Memformer",
        "MemformerAttention",
        "MemformerLayer",
    }


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_public_names_are_documented(name: str) -> None:
    documented = inspect.getdoc(getattr(memformer_kernels, name))
    assert documented
    assert len(documented) > 60


def test_signatures_are_the_contract() -> None:
    parameters = "z, q, p, gamma, beta, gate, *, context, responses, weights, backend, algorithm"
    signatures = {
        "memformer_stack": parameters,
        "memformer_predict": parameters.replace("context,", "context, queries, layers,"),
        "memformer_loss": parameters.replace("z,", "z, target,").replace("context,", "context, queries,"),
        "memformer_layer": "z, q, p, registers, gamma, beta, *, context, weights, backend",
        "context_gram": "z, context",
        "lfom_solve": "h, b, a, gamma, beta, *, w0, level, lower, upper, radius, layers, backend",
    }
    for name, expected in signatures.items():
        signature = inspect.signature(getattr(memformer_kernels, name))
        kinds = [parameter.kind for parameter in signature.parameters.values()]
        names = list(signature.parameters)
        if inspect.Parameter.KEYWORD_ONLY in kinds:
            names.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
        assert ", ".join(names) == expected
        defaults = {p.name: p.default for p in signature.parameters.values()}
        assert defaults.get("backend", "auto") == "auto"
        assert defaults.get("context") is None


def _python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMFORMER_")}
    environment |= {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT = """
import json, sys
import torch
events = []
watched = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "ctypes.dlopen", "socket.connect")
sys.addaudithook(lambda event, values: events.append([event, str(values)]) if event in watched else None)
written = []
def watch(event, values):
    if event == "open" and isinstance(values[1], str) and set(values[1]) & set("wax+"):
        written.append(str(values[0]))
sys.addaudithook(watch)
sys.dont_write_bytecode = True
before = set(sys.modules)
import memformer_kernels
new = sorted(name for name in set(sys.modules) - before if not name.startswith("memformer_kernels"))
print(json.dumps({"events": events, "written": written, "new": new, "cuda": torch.cuda.is_initialized()}))
"""


def test_importing_compiles_nothing_and_touches_no_gpu() -> None:
    seen = json.loads(_python(IMPORT))
    assert seen["events"] == []
    assert seen["written"] == []
    assert not seen["cuda"]
    heavy = ("triton", "torch._inductor", "numpy.testing", "scipy", "matplotlib", "memformer_lab")
    assert [name for name in seen["new"] if name.startswith(heavy)] == []


def test_asking_what_is_built_touches_no_gpu() -> None:
    code = "import torch, memformer_kernels as m; m.build_info(); print(torch.cuda.is_initialized())"
    assert _python(code).strip() == "False"


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("memformer_kernels")
    assert metadata["Version"] == memformer_kernels.__version__ == memformer_kernels.build_info().version
    assert metadata["Requires-Python"] == ">=3.10"
    needs = {re.split(r"[^\w-]", line)[0] for line in metadata.get_all("Requires-Dist") or [] if "extra" not in line}
    assert needs == {"torch", "numpy"}


SETUP = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["setup.py", *sys.argv[1:]]
runpy.run_path("setup.py", run_name="__main__")
"""


LABS = ("memformer_lab", "virtual_gpu")


def _copy_of_the_source(folder: Path) -> Path:
    """What a clone holds, without what a build leaves behind."""
    for name in source.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_metadata_needs_no_torch(tmp_path: Path) -> None:
    clone = _copy_of_the_source(tmp_path)
    printed = _python(SETUP, "--name", "--version", cwd=clone).split()
    assert printed[-2:] == ["memformer_kernels", memformer_kernels.__version__]


def test_source_distribution_and_wheel_need_no_torch(tmp_path: Path) -> None:
    """A wheel is built from the source distribution alone; both hold the type marks, all modules, and the sources that
    the virtual GPU is compiled from.

    The source distribution holds what the clone does; a wheel built without torch holds the reason why it has no native
    libraries.
    """
    clone = _copy_of_the_source(tmp_path / "clone")
    (clone / "memformer_kernels" / "_lib").mkdir()
    (clone / "memformer_kernels" / "_lib" / "memformer_cpu.so").write_text("of another build")
    _python(SETUP, "-q", "sdist", "-d", str(tmp_path), cwd=clone)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {"csrc/core/gram.h", "tests/conftest.py", "benchmarks/results/cpu-w.json", ".ci/run"} < set(source.files())
    assert [path for path in source.files() if not (unpacked / path).is_file()] == []
    assert list(unpacked.rglob("*.so")) == []
    modules = {
        str(path.relative_to(base))
        for base, package in ((ROOT, "memformer_kernels"), *((ROOT / "python", name) for name in LABS))
        for path in (base / package).rglob("*.py")
    }
    typed = {f"{package}/py.typed" for package in ("memformer_kernels", *LABS)}
    machine = {
        str(path.relative_to(ROOT / "python"))
        for path in (ROOT / "python" / "virtual_gpu").rglob("*")
        if path.suffix in (".cpp", ".h")
    }
    assert machine
    _python(SETUP, "-q", "bdist_wheel", "-d", str(tmp_path), cwd=unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed_wheel:
        names = set(packed_wheel.namelist())
        record = json.loads(packed_wheel.read("memformer_kernels/_lib/memformer_cpu.json"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "torch" in record["reason"]
    assert "--no-build-isolation" in record["reason"]
    assert not any(name.endswith(".so") for name in names)
    assert modules | typed | machine <= names
    assert any(name.endswith("entry_points.txt") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def _texts() -> list[Path]:
    """Every text file of the project, wherever it is built from."""
    tops = [path for path in ROOT.iterdir() if path.name not in GENERATED]
    files = [path for path in tops if path.is_file()]
    for folder in (path for path in tops if path.is_dir() and not path.name.startswith(".")):
        files.extend(path for path in folder.rglob("*") if not GENERATED & set(path.parts) and path.is_file())
    files.append(ROOT / ".ci" / "run")
    return [path for path in files if path.suffix in TEXTS or path.name in ("Makefile", "run", ".gitignore")]


def test_no_file_names_a_path_of_one_machine() -> None:
    files = _texts()
    assert ROOT / "pyproject.toml" in files
    assert Path(__file__) in files
    naming = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := [name for name in MACHINE_PATHS if name in path.read_text(encoding="utf-8")])
    }
    assert naming == {}


def test_no_file_names_an_index_of_packages() -> None:
    """Where packages come from is a setting of pip, not of the project."""
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "Makefile", ROOT / "setup.py"):
        text = re.sub(r"(?ms)^\[project\.urls\]$.*?^\[", "[", path.read_text(encoding="utf-8"))
        assert "http" not in text, path.name
        assert "index-url" not in text, path.name
