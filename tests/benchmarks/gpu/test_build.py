"""What `make gpu` does first: it installs nothing, and builds for the GPUs that are here or leaves no library."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import build as gpu_build
from benchmarks.measure.sources import ROOT

CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
STUB = "import os, pathlib, sys\npathlib.Path('wanted').write_text(os.environ.get('TORCH_CUDA_ARCH_LIST', ''))\n"


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A source tree with libraries of other sources, and no GPU; `wanted` is what a build is told to build for."""
    libraries = tmp_path / "memformer_kernels" / "_lib"
    libraries.mkdir(parents=True)
    for name in ("memformer_cpu", "memformer_cuda"):
        (libraries / f"{name}.so").write_text("of other sources")
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(gpu_build, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_build, "LIBRARIES", libraries)
    monkeypatch.setattr(gpu_build, "COMMAND", (sys.executable, "stub.py"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_library_is_built_for_the_gpus_that_are_here(tree: Path) -> None:
    gpu_build.main()
    assert (tree / "wanted").read_text() == "9.0"
    driver = tree / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 9.0\necho 8.9\necho 9.0\n")
    driver.chmod(0o755)
    gpu_build.main()
    assert (tree / "wanted").read_text() == "8.9+PTX;9.0+PTX"
    driver.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert gpu_build.capabilities() == ""


def test_a_build_that_fails_leaves_no_library_of_other_sources(tree: Path) -> None:
    (tree / "stub.py").write_text(STUB + "sys.exit(1)\n")
    with pytest.raises(SystemExit) as ended:
        gpu_build.main()
    assert ended.value.code == 1
    assert list(gpu_build.LIBRARIES.glob("*.so")) == []
    records = [json.loads(path.read_text()) for path in gpu_build.LIBRARIES.glob("*.json")]
    assert [record["reason"] for record in records] == ["the build of the native libraries failed here"] * 2


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_the_command_builds_and_measures_and_nothing_else() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "gpu", "GPU_PYTHON=python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "end=$(($(date +%s) + 450)); python -m benchmarks.gpu.build --until $end; \\",
        "PYTHONPATH=python python -m benchmarks.gpu --until $end --records benchmarks/results ",
    ]


def test_a_build_whose_time_is_over_is_ended_and_leaves_its_reason(tree: Path) -> None:
    (tree / "stub.py").write_text(STUB + "import time\ntime.sleep(60)\n")
    begun = time.monotonic()
    with pytest.raises(SystemExit):
        gpu_build.main(until=time.time() + 2)
    assert time.monotonic() - begun < 30
    assert (tree / "wanted").exists()
    assert list(gpu_build.LIBRARIES.glob("*.so")) == []
    assert all("the next run goes on" in path.read_text() for path in gpu_build.LIBRARIES.glob("*.json"))


def test_packages_that_were_copied_come_after_the_interpreters_own(tmp_path: Path) -> None:
    """A tree with a pytest of its own, which nobody is to import, and a module that only it has."""
    for name in ("benchmarks/__init__.py", "benchmarks/gpu/__init__.py"):
        copied = tmp_path / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copied)
    packages = tmp_path / ".gpu-packages"
    packages.mkdir()
    (packages / "pytest.py").write_text("raise AssertionError\n")
    (packages / "only_copied.py").write_text("")
    code = "import benchmarks.gpu, pytest, only_copied; print(only_copied.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, **CAPTURED)
    assert done.stdout.strip() == str(packages / "only_copied.py"), done.stderr
