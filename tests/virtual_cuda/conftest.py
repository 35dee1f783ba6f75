"""Public functions on virtual devices: where a test asks for `virtual`, tensors of the host count as a GPU's.

A test passes only if its kernels made no report and every result was written.
"""

from collections.abc import Iterator

import pytest

from benchmarks.gpu.virtual_cuda.virtual import Virtual
from tests.virtual_cuda.virtual import clean_devices


@pytest.fixture
def virtual() -> Iterator[Virtual]:
    """Virtual devices under memformer_kernels, whose backend "cuda" takes tensors of the host."""
    with clean_devices() as found:
        yield found
