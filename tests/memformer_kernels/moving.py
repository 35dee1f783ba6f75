"""A backend of the tests: tensors come on the CPU, another backend works on them on its device, results come back.

So the contract's tests, whose tensors all lie on the CPU, run on a GPU's kernels through the package's own operations.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import availability


def served() -> list[str]:
    """The backends that take the tests' CPU tensors where there is a GPU: cuda, and triton where that is asked for."""
    asked = ["cuda"]
    if os.environ.get("MEMFORMER_TEST_TRITON") == "1" and not availability.INTERPRETS:
        asked.append("triton")
    return [name for name in asked if torch.cuda.is_available() and availability.available(name)]


def moved(value: Any, device: str) -> Any:
    """A tensor, or those in tuples and lists, on a device, strides and storage as they are; anything else as it is."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage().to(device=torch.device(device))
        place = torch.empty(0, dtype=value.dtype, device=device)
        return place.set_(storage, value.storage_offset(), value.shape, value.stride())
    if isinstance(value, tuple | list):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class MovingBackend:
    """Every operation of a backend, on tensors of its device."""

    def __init__(self, backend: Any, device: str) -> None:
        self._backend, self._device = backend, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._backend, name)

        def run(*arguments: Any) -> Any:
            return moved(operation(*moved(list(arguments), self._device)), "cpu")

        return run
