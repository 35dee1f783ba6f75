"""The walk of a call: the functions that tokens go through from a public function to a native operator."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memformer_kernels
from memformer_kernels import availability, memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends import BACKENDS

PACKAGE = Path(memformer_kernels.__file__).parent
DOORS = 6
"""Functions on the way to an operator of the native library. The check of the arguments comes before it; the operator,
the packing of pointers and the kernel after it."""

Z, TARGET = torch.randn(8, 9, 5), torch.randn(8, 1)
Q = torch.randn(2, 1, 4, 4, requires_grad=True)
CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    "stack": ("forward", lambda: memformer_stack(Z, Q)),
    "predict": ("forward", lambda: memformer_predict(Z, Q)),
    "loss": ("loss", lambda: memformer_loss(Z, TARGET, Q)),
    "layer": ("layer", lambda: memformer_layer(Z, Q[0])),
}


@pytest.mark.skipif(not availability.available("cpu"), reason="the native library is not built")
@pytest.mark.parametrize("name", CALLS)
def test_few_doors_lead_to_a_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, call = CALLS[name]
    operators: Any = BACKENDS["cpu"]._operators  # type: ignore[attr-defined]
    right = getattr(operators, operator)
    walked: list[str] = []

    def seen(*arguments: Tensor) -> Any:
        frames = inspect.stack()
        walked.extend(f"{Path(x.filename).name}:{x.function}" for x in frames if PACKAGE in Path(x.filename).parents)
        return right(*arguments)

    monkeypatch.setattr(operators, operator, seen)
    call()
    assert 3 < len(walked) <= DOORS, walked
    assert walked[-1] == f"functional.py:{CALLS[name][1].__code__.co_names[0]}"
