"""Kernels for machines that are not here: they compile, which says nothing of how they run."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from native_build import cpu
from native_build.tools import KERNEL_STANDARD

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "csrc" / "cpu" / "kernels").glob("*.cpp"))
ARM_COMPILER = shutil.which("aarch64-linux-gnu-g++")
HOST_COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.slow


def _compile(compiler: str, source: Path, target: cpu.InstructionSet, output: Path) -> str:
    """Compiles one kernel as the build does, with warnings as errors, and returns its assembly."""
    flags = [*cpu.COMMON_FLAGS, *target.flags, *target.defines(), KERNEL_STANDARD]
    done = subprocess.run(
        [compiler, *flags, "-O2", "-Werror", "-I", str(ROOT / "csrc"), "-S", str(source), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output.read_text()


@pytest.mark.skipif(ARM_COMPILER is None, reason="not compiled for NEON: there is no aarch64-linux-gnu-g++ here")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile_for_neon(source: Path, tmp_path: Path) -> None:
    assert ARM_COMPILER is not None
    (baseline,) = cpu.instruction_sets("aarch64")
    text = _compile(ARM_COMPILER, source, baseline, tmp_path / "kernel.s")
    assert "fmla\tv" in text


@pytest.mark.skipif(
    HOST_COMPILER is None or platform.machine() != "x86_64",
    reason="not compiled for AVX-512: there is no compiler for x86 here",
)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile_for_avx512(source: Path, tmp_path: Path) -> None:
    assert HOST_COMPILER is not None
    avx512 = cpu.instruction_sets("x86_64")[-1]
    text = _compile(HOST_COMPILER, source, avx512, tmp_path / "kernel.s")
    assert "%zmm" in text
