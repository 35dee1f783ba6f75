"""What random calls launch compiles for GPUs: the interpreter has Python's types and runs what no compiler takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.memformer_kernels.backends.triton.compile_calls import fused_exchanges, narrow_strides

ROOT = Path(__file__).parents[4]


def _compile(architecture: int, first: int, calls: int, widths: str) -> None:
    """In a process of its own, since this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python"), *filter(None, sys.path)])
    script = "tests.memformer_kernels.backends.triton.compile_calls"
    command = [sys.executable, "-m", script, str(architecture), str(first), str(calls), widths]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines() == [f"{calls} of {calls} calls compile for sm_{architecture}"]


def test_half_a_dozen_calls() -> None:
    _compile(90, 25, 6, "narrow")


def test_a_narrow_stride_would_be_found() -> None:
    head = "tt.func public @kernel(%t: !tt.ptr<f32>, %batch: i32, %strides: i64, %strides_2: i32, %strides_3: i32) {"
    wide = "  %a=arith.extsi %strides_2 : i32 to i64\n  %b=arith.muli %batch, %c : i32\n  %d=tt.splat %strides : i64"
    assert narrow_strides(f"{head}\n{wide}\n") == []
    assert narrow_strides(f"{head}\n{wide}\n  %e = tt.splat %strides_3 : i32 -> tensor<1x4xi32>\n") == ["strides_3"]


def test_a_product_fused_into_the_sum_of_another_lane_would_be_found() -> None:
    exchanged = "shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;\n"
    assert fused_exchanges(f"mul.f32 %r1, %r3, %r4;\n{exchanged}add.f32 %r5, %r1, %r2;\n") == []
    assert fused_exchanges(f"{exchanged}fma.rn.f32 %r5, %r3, %r4, %r1;\n") == []
    fused = "fma.rn.f32 %r5, %r3, %r4, %r2;"
    assert fused_exchanges(f"{exchanged}{fused}\n") == [fused]
    wide = "fma.rn.f64 %rd4, %rd2, %rd3, %rd1;"
    assert fused_exchanges(f"{exchanged}mov.b64 %rd1, {{%r2, %r6}};\n{wide}\n") == [wide]
    assert fused_exchanges(f"{exchanged}ld.global.b32 %r2, [%rd5];\n{fused}\n") == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 300, 20))
def test_a_few_hundred_calls(first: int) -> None:
    _compile(90, first, 20, "all")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(300, 400, 20))
def test_calls_for_ampere(first: int) -> None:
    _compile(80, first, 20, "all")
