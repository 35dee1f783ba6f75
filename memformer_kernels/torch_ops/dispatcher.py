"""What PyTorch's dispatcher is told of the operations, once in a process, however often modules are loaded.

The dispatcher takes a schema, and a kernel for a key, once; and graphs, compiled or not, hold operators that must not
vanish under them. So registrations outlive the modules that made them: what is registered asks here for the function to
run, and a module that is loaded again, as notebooks do, replaces that function.
"""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "memformer_kernels"


class Registrations:
    """`torch.library.Library` for operators whose functions may be given again; schemas may not change."""

    def __init__(self) -> None:
        self._library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
        self._schemas: set[str] = set()
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {}

    def define(self, schema: str) -> None:
        """Makes the operator."""
        if schema not in self._schemas:
            self._library.define(schema)
            self._schemas.add(schema)

    def impl(self, name: str, function: Callable[..., Any], key: str, *, with_keyset: bool = False) -> None:
        """Makes `function` the operator's kernel for a dispatch key."""
        self._give(name, key, function, lambda run: self._library.impl(name, run, key, with_keyset=with_keyset))

    def fake(self, op: Any, function: Callable[..., Any]) -> None:
        """Makes `function` what says the shapes of the operator's results."""
        self._give(str(op), "fake", function, lambda run: torch.library.register_fake(op, run, lib=self._library))

    def vmap(self, op: Any, function: Callable[..., Any]) -> None:
        """Makes `function` the operator's rule for torch.func.vmap."""
        self._give(str(op), "vmap", function, lambda run: torch.library.register_vmap(op, run, lib=self._library))

    def _give(
        self, name: str, part: str, function: Callable[..., Any], register: Callable[[Callable[..., Any]], object]
    ) -> None:
        functions, place = self._functions, (name, part)
        known = place in functions
        functions[place] = function
        if not known:
            register(lambda *arguments: functions[place](*arguments))


def registrations() -> Registrations:
    """Those of this process, which the operators' namespace keeps."""
    kept = vars(getattr(torch.ops, NAMESPACE))
    if "registrations" not in kept:
        kept["registrations"] = Registrations()
    found: Registrations = kept["registrations"]
    return found
