"""Public functions on virtual devices: where a test asks for `virtual`, tensors of the host count as a GPU's.

A test passes only if its kernels made no report and every result was written.
"""

from collections.abc import Iterator

import pytest

from benchmarks.virtual_cuda import library
from benchmarks.virtual_cuda.virtual import Virtual, serving


@pytest.fixture(scope="session")
def _virtual() -> Virtual:
    reason = library.missing()
    if reason is not None:
        pytest.skip(reason)
    return Virtual(library.load())


@pytest.fixture
def virtual(_virtual: Virtual) -> Iterator[Virtual]:
    """Virtual devices under memformer_kernels, whose backend "cuda" takes tensors of the host."""
    with serving(_virtual):
        yield _virtual
        assert _virtual.take_reports() == []
