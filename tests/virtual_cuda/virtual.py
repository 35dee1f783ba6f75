"""Virtual devices for a test, which passes only if its kernels made no report and every result was written."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.gpu.virtual_cuda import library
from benchmarks.gpu.virtual_cuda.virtual import Virtual, serving


@contextmanager
def clean_devices() -> Iterator[Virtual]:
    """Virtual devices under memformer_kernels while a test lasts: AssertionError where a kernel made a report or left a
    result unwritten. Skips the test where the library cannot be linked anew."""
    reason = library.missing()
    if reason is not None:
        pytest.skip(reason)
    with serving(_devices()) as virtual:
        yield virtual
        assert virtual.take_reports() == []


@functools.cache
def _devices() -> Virtual:
    return Virtual(library.load())
