"""What `make gpu` does first: it installs nothing, and builds for the GPUs that are here or leaves no library."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu import build as gpu_build
from benchmarks.measure.machine import ROOT

SETUP = "import os, pathlib, sys\npathlib.Path('asked').write_text(os.environ.get('TORCH_CUDA_ARCH_LIST', ''))\n"


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A source tree with libraries of other sources, and no GPU; `asked` is what a build is told to build for."""
    libraries = tmp_path / "memformer_kernels" / "_lib"
    libraries.mkdir(parents=True)
    for name in ("memformer_cpu", "memformer_cuda"):
        (libraries / f"{name}.so").write_text("of other sources")
    (tmp_path / "setup.py").write_text(SETUP)
    monkeypatch.setattr(gpu_build, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_build, "LIBRARIES", libraries)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_library_is_built_for_the_gpus_that_are_here(tree: Path) -> None:
    gpu_build.main()
    assert (tree / "asked").read_text() == "9.0"
    driver = tree / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 9.0\necho 8.9\necho 9.0\n")
    driver.chmod(0o755)
    gpu_build.main()
    assert (tree / "asked").read_text() == "8.9+PTX;9.0+PTX"
    driver.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert gpu_build.capabilities() == ""


def test_a_build_that_fails_leaves_no_library_of_other_sources(tree: Path) -> None:
    (tree / "setup.py").write_text(SETUP + "sys.exit(1)\n")
    with pytest.raises(SystemExit) as ended:
        gpu_build.main()
    assert ended.value.code == 1
    assert list(gpu_build.LIBRARIES.glob("*.so")) == []
    records = [json.loads(path.read_text()) for path in gpu_build.LIBRARIES.glob("*.json")]
    assert [record["reason"] for record in records] == ["`setup.py -q build_native --inplace` failed here"] * 2


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_the_command_builds_and_measures_and_nothing_else() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "gpu", "GPU_PYTHON=python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "python -m benchmarks.gpu.build",
        "PYTHONPATH=python python -m benchmarks.gpu",
    ]
