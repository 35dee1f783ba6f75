"""Where there is a GPU, tests of refusals still see a refusal, and tensors of the others move: rehearsed."""

import os
import subprocess
import sys

import pytest

from memformer_kernels import availability
from memformer_kernels.library import status

REHEARSED = (
    "test_moving.py",
    "calls/test_plan.py",
    "training/test_cuda.py",
    "own_models/test_register_update.py",
)


@pytest.mark.skipif(not availability.available("cpu"), reason=status("cpu").reason)
def test_tensors_move_to_a_gpu_and_refusals_are_seen() -> None:
    files = [f"tests/memformer_kernels/{name}" for name in REHEARSED]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.memformer_kernels.pretended_gpu", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert " passed" in ended.stdout
