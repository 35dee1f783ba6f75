"""The Triton kernels compile for GPUs that are not here, in a process of their own: this one may interpret kernels."""

import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("triton", reason="triton is not installed: pip install 'memformer_kernels[triton]'")

from benchmarks.gpu import aot
from benchmarks.gpu.aot_cases import HOT, cases

ROOT = Path(__file__).parents[3]


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_committed_record_is_green_on_every_architecture() -> None:
    kernels = aot.read_record(aot.RECORD)
    assert all(map(aot.is_green, kernels))
    assert {made.architecture for made in kernels} == set(aot.ARCHITECTURES)
    assert {made.case for made in kernels} <= set(cases())
    for architecture in aot.ARCHITECTURES:
        assert set(HOT) <= {made.case for made in kernels if made.architecture == architecture}
    table = Console(width=140, file=StringIO())
    table.print(aot.as_table(kernels))
    assert "90 / 100" in table.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_not_green() -> None:
    fine = aot.Compiled("loss, W", "kernel", 90, registers=255, spills=0, shared=1000, tensor_core=1, fma=1)
    assert aot.is_green(fine)
    assert not aot.is_green(replace(fine, spills=1))
    assert aot.is_green(replace(fine, spills=2, case="loss, tile D=128", architecture=80))
    assert not aot.is_green(replace(fine, spills=2, case="loss, tile D=128"))
    assert not aot.is_green(replace(fine, spills=1, architecture=80))
    assert aot.is_green(replace(fine, spills=3, case="block, tokens, D=64 fp32"))
    assert not aot.is_green(replace(fine, shared=200_000, architecture=80))
    assert aot.is_green(replace(fine, shared=200_000))


def test_hot_kernels_for_sm_90_neither_spill_nor_overflow_shared_memory() -> None:
    finished = _compile(*HOT, "--architecture", "90")
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
