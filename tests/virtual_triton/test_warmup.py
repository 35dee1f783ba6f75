"""Whatever the number of tasks, a call finds the code that warmup has compiled, by Triton's keys of such code.

And what is compiled ahead of time is what a call would compile.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.gpu import aot
from benchmarks.gpu.aot_cases import HOT, cases
from memformer_kernels import (
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
    warmup,
)
from memformer_kernels.backends.pytorch import backend as pytorch
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
    """A batch of these is cut in two on a CPU, and its second piece begins where no allocation does."""
    return _loss(min(tasks, 128), width=131, tokens=3, block=True, by_token=True)


def _large_matrices(tasks: int) -> Call:
    return _loss(min(tasks, 40), width=131, tokens=3, block=True)


def _every_layer(tasks: int) -> Call:
    """Of few tasks, over many programs; the gradient of the tokens too."""
    z = torch.ones(min(tasks, 130), 600, 6, requires_grad=True)
    return memformer_predict, {"z": z, "q": torch.zeros(2, 1, 5, 5, requires_grad=True), "layers": True}


def _every_layer_of_matrices(tasks: int) -> Call:
    z = torch.ones(min(tasks, 130), 600, 6, requires_grad=True)
    q = torch.zeros(2, 1, 5, 5, requires_grad=True)
    return memformer_predict, {"z": z, "q": q, "p": q, "layers": True}


def _long_wide(tasks: int) -> Call:
    """Contexts of which a few are divided, in a kernel of its own, and many are not."""
    z = torch.ones(min(tasks, 130), 601, 40, requires_grad=True)
    return memformer_stack, {"z": z, "q": torch.zeros(2, 1, 39, 39, requires_grad=True)}


def _attention(tasks: int) -> Call:
    """Of fewer than 16 sequences, divided into 3 or 2 parts."""
    q, k, v = (torch.ones(min(tasks, 16), 520, 64, 5, requires_grad=True) for _ in range(3))
    return linear_attention, {"q": q, "k": k, "v": v}


def _causal_attention(tasks: int) -> Call:
    function, arguments = _attention(tasks)
    return function, arguments | {"causal": True}


def _quadratics(tasks: int) -> Call:
    h, b, w0 = torch.ones(tasks, 3, 3), torch.ones(tasks, 3), torch.ones(tasks, 3, requires_grad=True)
    return lfom_solve, {"h": h, "b": b, "a": torch.zeros(2, 3, 3, requires_grad=True), "w0": w0}


def _update(tasks: int) -> Call:
    """By a weight for each feature: rows are tasks and tokens."""
    z, *registers = (torch.ones(tasks, 3, 7, requires_grad=True) for _ in range(3))
    return register_update, {"z": z, "registers": registers, "gamma": torch.ones(2, 7, requires_grad=True)}


def _update_by_tokens(tasks: int) -> Call:
    """By a weight for each token: a feature's weights repeat from task to task."""
    z, *registers = (torch.ones(tasks, 3, 7, requires_grad=True) for _ in range(3))
    return register_update, {"z": z, "registers": registers, "gamma": torch.ones(2, 3, 1, requires_grad=True)}


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


MAKERS = (
    *(_tiny, _wide, _long_wide, _matrices, _on_tokens, _matrices_on_tokens, _large, _large_matrices),
    *(_every_layer, _every_layer_of_matrices, _layer, _attention, _causal_attention, _quadratics),
    *(_update, _update_by_tokens),
)


@pytest.mark.parametrize("make", MAKERS)
def test_any_number_of_tasks(make: Callable[[int], Call], monkeypatch: pytest.MonkeyPatch) -> None:
    # Products of large tasks run in torch, here on a CPU: pieces of a batch as on a GPU.
    monkeypatch.setattr(pytorch, "_PART_ELEMENTS", pytorch._DEVICE_ELEMENTS)
    compiled: list[tuple[str, str]] = []
    monkeypatch.setattr(
        launch,
        "compile_only",
        lambda: launch.observed(lambda kernel, _, arguments: compiled.append(_key(kernel, arguments))),
    )
    with clean_gpu(90):
        warmup(**make(5)[1], backend="triton")
        needed: set[tuple[str, str]] = set()
        for tasks in TASKS:
            keys = _keys(lambda tasks=tasks: _forward_and_backward(make(tasks)))
            assert keys - set(compiled) == set(), tasks
            needed |= keys
    # What is compiled for nothing: a prediction stands for a stack, and one task for a batch of one stride.
    assert len(set(compiled)) <= 3 * len(needed)


def test_a_loss_of_tiny_tasks_compiles_three_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss, the sums over tasks, and nothing for any number of tasks."""
    compiled: set[tuple[str, str]] = set()
    monkeypatch.setattr(
        launch,
        "compile_only",
        lambda: launch.observed(lambda kernel, _, arguments: compiled.add(_key(kernel, arguments))),
    )
    with clean_gpu(90):
        warmup(**_tiny(5)[1], backend="triton")
    assert sorted(name for name, _ in compiled) == ["solve_backward_kernel", "sum_kernel"]


AHEAD = (
    *HOT,
    "few tasks, response-only, D=6",
    "few tasks, block, D=6",
    "large tasks, recursive, D=256",
    "attention, causal, E=64 fp32",
    "attention, full, packed",
    "register update, per feature",
    "quadratics, d=6",
    "layer backward, D=6 bf16",
    "unaligned, block, token, D=6",
    "one number a token",
)


@pytest.mark.parametrize("name", AHEAD)
def test_what_is_compiled_ahead_of_time_is_what_a_launch_compiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source, types, constants and assumptions, and the same options."""
    asked: list[tuple[str, str]] = []

    def note(
        self: Any, key: str, signature: Any, device: Any, constants: Any, options: Any, attributes: Any, _: Any
    ) -> None:
        asked.append((ASTSource(self, signature, constants, attributes).hash(), options.hash()))

    monkeypatch.setattr(JITFunction, "_do_compile", note)
    with clean_gpu(90):
        launches = aot.launches_of(cases()[name]())
        assert launches
        for made in launches:
            # What other tests have compiled in this process would not be compiled again.
            made.kernel.device_caches.clear()
            made.kernel.warmup(grid=(1,), **made.arguments)
            assert asked.pop() == aot.identity(made, 90)
    assert asked == []


def test_numbers_that_a_kernel_is_not_compiled_for_make_no_other_code() -> None:
    with clean_gpu(90):
        z, q = torch.ones(3, 9, 7), torch.zeros(1, 1, 6, 6)
        (found,) = aot.launches_of(lambda: memformer_predict(z, q, backend="triton", algorithm="gram"))
    names = [x.name for x in found.kernel.params if x.do_not_specialize]
    assert set(names) > {"batch", "tokens", "context"}
    for name in names:
        for value in (1, 16, 17):
            other = found._replace(arguments={**found.arguments, name: value})
            assert aot.identity(other, 90) == aot.identity(found, 90)
    assert aot.identity(found._replace(arguments={**found.arguments, "scratch_size": 17}), 90) != aot.identity(
        found, 90
    )
