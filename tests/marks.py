"""Marks of many cases: those that `make test` runs, and those that only `make test-all` does."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[Any] | Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, or tuples of several: slow but for those in `fast`, or where that is true."""
    made = []
    for value in values:
        parts = value if type(value) is tuple else (value,)
        quick = fast(*parts) if callable(fast) else value in fast
        made.append(pytest.param(*parts, marks=() if quick else pytest.mark.slow))
    return made
