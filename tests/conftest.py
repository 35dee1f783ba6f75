"""What all tests share: uninitialised memory holds NaN, so a result that was never written cannot look right."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch.utils import deterministic

from tests.compiled import run_elsewhere

# Without a GPU Triton's kernels run in its interpreter, which must be chosen before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts tests in the background makes them ignore Ctrl-C, and with them what they start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported and collected lives until the end: Python need not walk through it at each collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Tests with the mark `compiled` run where kernels are compiled."""
    return run_elsewhere(item, nextitem)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN (or the largest integer).

    PyTorch poisons fresh memory only in its deterministic mode. `warn_only`, since a CUDA operation without a
    deterministic form is not what a test of this project is about.
    """
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    deterministic.fill_uninitialized_memory = fill
