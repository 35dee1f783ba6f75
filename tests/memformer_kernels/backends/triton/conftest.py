"""The Triton kernels in Triton's interpreter, which runs them on CPU tensors, one program after another.

The interpreter must be chosen before triton is first imported by anything in the process.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'memformer_kernels[triton]'")
    from memformer_kernels.backends.triton.launch import interpreted

    if not interpreted():
        pytest.skip("triton was imported without TRITON_INTERPRET=1, so that its kernels need a GPU")
