"""FLOPs of the registered operations, for `torch.utils.flop_counter.FlopCounterMode`.

An operation counts as much as its formulas in plain PyTorch do, which the counter sees: two for every multiply-add of a
matrix product, nothing for what is done element by element. Kernels that use a Gram matrix's symmetry do less.

Importing the counter imports Triton, where there is one. So nothing here imports it: the formulas are registered as
soon as somebody else does.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[Any, Callable[..., int]] = {}


def define(packet: Any, kernel: Callable[..., Any], backend_at: int) -> None:
    """Gives an operation its formula: `kernel` on tensors that have sizes alone, by the PyTorch backend."""

    def formula(*arguments: Any, out_val: Any = None) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        sizes = [_without_data(argument) for argument in arguments]
        sizes[backend_at] = "torch"
        with FlopCounterMode(display=False) as counter:
            kernel(*sizes)
        total: int = counter.get_total_flops()
        return total

    _formulas[packet] = formula
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])


def _without_data(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return torch.empty(argument.shape, dtype=argument.dtype, device="meta")
    return [_without_data(x) for x in argument] if isinstance(argument, list | tuple) else argument


def _register(counter: ModuleType) -> None:
    for packet, formula in _formulas.items():
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet, get_raw=True)(formula)


class _OnImport(MetaPathFinder):
    """Registers the formulas behind the first import of the counter."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _OnImport())
