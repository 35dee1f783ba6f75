"""The Triton kernels compile for GPUs that are not here, in a process of their own: this one may interpret kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'memformer_kernels[triton]'")

ROOT = Path(__file__).parents[2]


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_hot_kernels_for_sm_90_neither_spill_nor_overflow_shared_memory() -> None:
    finished = _compile("loss", "layer, D=64", "--architecture", "90")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name in ("solve_backward_kernel", "network_kernel", "sum_kernel", "loss, W", "D=128", "layer, D=64"):
        assert name in finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_every_kernel(architecture: str) -> None:
    finished = _compile("--architecture", architecture)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "network_backward_kernel" in finished.stdout
    assert "gram_backward_kernel" in finished.stdout


def test_a_name_that_no_case_has_is_an_error() -> None:
    finished = _compile("no such case")
    assert finished.returncode == 2
    assert "no such case" in finished.stderr
