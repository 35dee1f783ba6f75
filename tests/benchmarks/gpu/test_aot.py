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


LAUNCHES = """
from benchmarks.gpu.aot import launches_of
from benchmarks.gpu.aot_cases import cases
from memformer_kernels.backends.triton.launch import compiling_for

with compiling_for(90):
    print(sum(len(launches_of(case())) for case in cases().values()))
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("-m", "benchmarks.gpu.aot", *arguments)


def test_the_committed_record_is_green_on_every_architecture() -> None:
    record = aot.read_record(aot.RECORD)
    assert all(map(aot.is_green, record.kernels))
    assert set(aot.RECORDED) <= {made.architecture for made in record.kernels} <= set(aot.ARCHITECTURES)
    assert {made.case for made in record.kernels} <= set(cases())
    for architecture in aot.RECORDED:
        assert set(HOT) <= {made.case for made in record.kernels if made.architecture == architecture}
        assert set(HOT).isdisjoint(record.missing[architecture])
    table = Console(width=140, file=StringIO())
    table.print(aot.as_table(record.kernels))
    assert "90 / 100" in table.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_not_green() -> None:
    fine = aot.Compiled("loss, W", "kernel", 90, registers=255, spills=0, shared=1000, tensor_core=1, fma=1)
    assert aot.is_green(fine)
    assert not aot.is_green(replace(fine, spills=1))
    assert aot.is_green(replace(fine, spills=2, case="loss, tile D=64", architecture=80))
    assert not aot.is_green(replace(fine, spills=2, case="loss, tile D=64"))
    assert not aot.is_green(replace(fine, spills=1, architecture=80))
    assert not aot.is_green(replace(fine, broken=("a product turned in registers",)))
    assert not aot.is_green(replace(fine, shared=200_000, architecture=80))
    assert not aot.is_green(replace(fine, shared=102_000, architecture=120))
    assert aot.is_green(replace(fine, shared=200_000))


def test_kernels_that_are_not_hot_may_spill_what_they_are_known_to() -> None:
    for kernel, allowed in aot.SPILLING.items():
        made = aot.Compiled("block, tokens, D=64 fp32", kernel, 90, 255, allowed, 1000, 1, 1)
        assert aot.is_green(made)
        assert not aot.is_green(replace(made, spills=allowed + 1))
    assert not aot.is_green(aot.Compiled("block, tokens, D=64 fp32", "sum_kernel", 90, 255, 1, 1000, 1, 1))


def test_a_record_takes_cases_one_by_one(tmp_path: Path) -> None:
    first, second = list(cases())[:2]
    path = tmp_path / "record.json"
    assert aot.read_record(path).kernels == []
    made = aot.Compiled(first, "kernel", 90, 255, 0, 1000, 1, 1, broken=("a reason",))
    record = aot.read_record(path).replaced(second, (80, 90), []).replaced(first, (90,), [made])
    record.write(path)
    again = aot.read_record(path)
    assert again.kernels == [made]
    assert second not in again.missing[80]
    assert first in again.missing[80]
    assert {first, second}.isdisjoint(again.missing[90])
    better = replace(made, broken=())
    assert again.replaced(first, (90,), [better]).kernels == [better]
    assert again.replaced("no such case", (90,), [better]).kernels == [made, better]


@pytest.mark.slow
def test_hot_kernels_for_sm_90_fit_and_spill_no_more_than_is_known() -> None:
    finished = _compile(*HOT, "--architecture", "90")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name in ("solve_backward_kernel", "network_kernel", "sum_kernel", "loss, W", "D=128", "layer, D=64"):
        assert name in finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", [str(number) for number in aot.ARCHITECTURES])
def test_every_kernel(architecture: str) -> None:
    finished = _compile("--architecture", architecture)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "network_backward_kernel" in finished.stdout
    assert "gram_backward_kernel" in finished.stdout


def test_every_case_launches_without_a_gpu() -> None:
    """What a case makes is made where launches are seen and nothing runs, its Gram matrices too."""
    finished = _run("-c", LAUNCHES)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert int(finished.stdout) >= len(cases())


def test_a_name_that_no_case_has_is_an_error() -> None:
    finished = _compile("no such case")
    assert finished.returncode == 2
    assert "no such case" in finished.stderr
