"""A copy of the project with small native sources, to build and to install without minutes of compiling."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = """
#include "core/number.h"
namespace memformer::MEMFORMER_ISA {
using Lanes = float __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
void scale(Lanes* lanes, long count) {
  for (long i = 0; i < count; ++i) lanes[i] *= core::factor;
}
}  // namespace memformer::MEMFORMER_ISA
"""
DRIVER = "namespace memformer { int answer() { return 42; } }\n"
HEADER = "#pragma once\nnamespace memformer::core { inline constexpr float factor = 2.0f; }\n"

Build = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A clone of the project, its native sources replaced by a kernel of one line, a driver and a header."""
    folder = tmp_path / "a clone"
    shutil.copytree(
        ROOT / "memformer_kernels",
        folder / "memformer_kernels",
        ignore=shutil.ignore_patterns("_lib", "__pycache__"),
    )
    shutil.copytree(ROOT / "python", folder / "python", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "native_build", folder / "native_build", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name, text in {"core/number.h": HEADER, "cpu/kernels/scale.cpp": KERNEL, "cpu/driver.cpp": DRIVER}.items():
        path = folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's environment without what changes a build, which leaves the CUDA library out."""
    changing = ("CXX", "CUDAHOSTCXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "PYTHONPATH")
    kept = {
        name: value for name, value in os.environ.items() if name not in changing and not name.startswith("MEMFORMER_")
    }
    return {**kept, "MEMFORMER_SKIP_CUDA": "1"}


@pytest.fixture
def setup(source: Path, environment: dict[str, str]) -> Build:
    """Runs setup.py in the copy, as a developer and as pip would, with variables set or (None) unset."""

    def run(*arguments: str, **variables: str | None) -> "subprocess.CompletedProcess[str]":
        changed = {name: value for name, value in {**environment, **variables}.items() if value is not None}
        return subprocess.run(
            [sys.executable, "setup.py", "-q", *arguments],
            cwd=source,
            env=changed,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
