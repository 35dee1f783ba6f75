"""Whatever the number of tasks, a call finds the code that warmup has compiled, by Triton's keys of such code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from memformer_kernels import memformer_layer, memformer_loss, memformer_predict, warmup
from memformer_kernels.backends.triton import launch
from tests.virtual_triton.gpus import clean_gpu

pytestmark = pytest.mark.compiled

TASKS = (1, 2, 3, 4, 5, 8, 12, 16, 40, 128, 300, 1000, 1024, 5000)

Call = tuple[Callable[..., Any], dict[str, Any]]
"""A public function and its arguments."""


def _key(kernel: Any, arguments: dict[str, Any]) -> tuple[str, str]:
    """A kernel's name, and what Triton tells apart the code by that it has compiled of it."""
    *_, binder = kernel.device_caches[triton.runtime.driver.active.get_current_device()]
    _, specialization, options = binder(**arguments, debug=False, instrumentation_mode="")
    return kernel.__name__, f"{specialization} {options}"


def _keys(call: Callable[[], object]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    with launch.observed(lambda kernel, _, arguments: found.add(_key(kernel, arguments))):
        call()
    return found


def _loss(tasks: int, *, width: int, tokens: int, block: bool, by_token: bool = False) -> Call:
    q = torch.zeros(2, 1, width - 1, width - 1, requires_grad=True)
    gamma = torch.ones(2, 2, 1, tokens if by_token else 1, width, requires_grad=True)
    arguments = {"z": torch.ones(tasks, tokens, width), "target": torch.ones(tasks, 1), "q": q, "gamma": gamma}
    return memformer_loss, arguments | ({"p": q} if block else {})


def _tiny(tasks: int) -> Call:
    return _loss(tasks, width=6, tokens=21, block=False)


def _wide(tasks: int) -> Call:
    return _loss(tasks, width=65, tokens=70, block=False)


def _matrices(tasks: int) -> Call:
    return _loss(tasks, width=6, tokens=21, block=True)


def _on_tokens(tasks: int) -> Call:
    return _loss(tasks, width=5, tokens=7, block=False, by_token=True)


def _matrices_on_tokens(tasks: int) -> Call:
    return _loss(tasks, width=5, tokens=7, block=True, by_token=True)


def _large(tasks: int) -> Call:
    return _loss(min(tasks, 40), width=131, tokens=3, block=True, by_token=True)


def _every_layer(tasks: int) -> Call:
    """Of few tasks, over many programs; the gradient of the tokens too."""
    z = torch.ones(min(tasks, 300), 600, 6, requires_grad=True)
    return memformer_predict, {"z": z, "q": torch.zeros(2, 1, 5, 5, requires_grad=True), "layers": True}


def _layer(tasks: int) -> Call:
    z, q = torch.ones(tasks, 5, 5, requires_grad=True), torch.zeros(1, 5, 5, requires_grad=True)
    past = [torch.ones(tasks, 1, 5, 5, requires_grad=True) for _ in range(3)]
    return memformer_layer, {"z": z, "q": q, "registers": past, "gamma": torch.ones(4, 1, 1, 1, requires_grad=True)}


def _forward_and_backward(call: Call) -> None:
    function, arguments = call
    made = function(**arguments, backend="triton")
    results = [made] if isinstance(made, Tensor) else list(made)
    given = [x for value in arguments.values() for x in (value if isinstance(value, list) else [value])]
    leaves = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    torch.autograd.grad(results, leaves, [torch.ones_like(x) for x in results])


@pytest.mark.parametrize(
    "make", [_tiny, _wide, _matrices, _on_tokens, _matrices_on_tokens, _large, _every_layer, _layer]
)
def test_any_number_of_tasks(make: Callable[[int], Call], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: set[tuple[str, str]] = set()
    monkeypatch.setattr(
        launch,
        "compile_only",
        lambda: launch.observed(lambda kernel, _, arguments: compiled.add(_key(kernel, arguments))),
    )
    with clean_gpu(90):
        warmup(**make(5)[1], backend="triton")
        for tasks in TASKS:
            missing = _keys(lambda tasks=tasks: _forward_and_backward(make(tasks))) - compiled
            assert missing == set(), tasks
