"""Runs something under other defaults of torch than its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

DEFAULTS = ("float64", "meta")
under_other_defaults = pytest.mark.parametrize("default", DEFAULTS)


@contextmanager
def _default(name: str) -> Iterator[None]:
    dtype = torch.get_default_dtype()
    try:
        if name == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, name))
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


def assert_same_under(default: str, run: Callable[[], Any]) -> None:
    """`run` makes the same tensors, of the same kinds and on the same devices, whatever torch's defaults are."""
    torch.manual_seed(0)
    expected = run()
    torch.manual_seed(0)
    with _default(default):
        made = run()
    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)
