"""What random calls launch compiles for GPUs: the interpreter has Python's types and runs what no compiler takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _compile(architecture: int, first: int, calls: int, widths: str) -> None:
    """In a process of its own, since this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = "tests.memformer_kernels.triton.compile_calls"
    command = [sys.executable, "-m", script, str(architecture), str(first), str(calls), widths]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines() == [f"{calls} of {calls} calls compile for sm_{architecture}"]


def test_a_dozen_calls() -> None:
    _compile(90, 20, 12, "narrow")


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
