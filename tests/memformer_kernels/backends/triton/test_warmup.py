"""warmup compiles what a call would launch and launches nothing. Here compiling is only noted down."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, lfom_solve, memformer_layer, memformer_loss, memformer_stack, warmup
from memformer_kernels.backends.triton import launch
from tests.memformer_kernels.cases import leaves, make_case

Noted = list[tuple[str, dict[str, Any]]]


def _constants(arguments: dict[str, Any]) -> dict[str, Any]:
    """What is compiled in, as it is printed, and Triton's options."""
    return {name: str(x) for name, x in arguments.items() if name.isupper() or name.startswith(("num_", "max"))}


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """Kernels compiled by warmup, with their constants, as if kernels were compiled here."""
    found: Noted = []

    def compile_only() -> AbstractContextManager[None]:
        return launch.observed(lambda kernel, _, arguments: found.append((kernel.__name__, _constants(arguments))))

    monkeypatch.setattr(launch, "compile_only", compile_only)
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "check_device", lambda tensor: None)
    return found


def _launched(call: Callable[[], object]) -> Noted:
    found: Noted = []
    with launch.observed(lambda kernel, _, arguments: found.append((kernel.__name__, _constants(arguments)))):
        call()
    return found


def _tokens() -> tuple[Tensor, Tensor]:
    case = make_case(structure="response-only", layers=2, heads=1).to(torch.float64)
    return case.z, case.q


def test_a_loss(noted: Noted) -> None:
    z, q = _tokens()
    target = torch.zeros(3, 1, dtype=torch.float64)
    assert warmup(z, target, q, backend="triton").backend == "triton"
    assert noted == _launched(lambda: memformer_loss(z, target, q, backend="triton"))
    assert [name for name, _ in noted] == ["solve_backward_kernel", "sum_kernel"]


def test_a_stack_forward_and_backward(noted: Noted) -> None:
    case = make_case(structure="block", layers=2).to(torch.float64)
    arguments = (case.z, case.q, *case.parameters)
    warmup(*arguments, backend="triton", algorithm="token")

    def call() -> None:
        tokens = memformer_stack(*arguments, backend="triton", algorithm="token")
        torch.autograd.grad(tokens.sum(), list(leaves(case).values()))

    launched = _launched(call)
    assert len(launched) == 3
    assert all(one in noted for one in launched)


def test_without_gradients_only_the_forward(noted: Noted) -> None:
    z, q = (x.detach() for x in _tokens())
    warmup(z, q, backend="triton")
    assert {name for name, _ in noted} == {"solve_kernel"}


def test_a_gate_counts_as_what_it_is_folded_into(noted: Noted) -> None:
    z, q = (x.detach() for x in _tokens())
    warmup(z, q, gate=torch.ones(1, dtype=torch.float64, requires_grad=True), backend="triton")
    assert "solve_backward_kernel" in {name for name, _ in noted}


def test_a_layer_and_a_first_order_method(noted: Noted) -> None:
    z, q = (x.detach().requires_grad_() for x in _tokens())
    warmup(z, q[0], registers=[], backend="triton")
    assert noted[0] == _launched(lambda: memformer_layer(z, q[0], backend="triton"))[0]
    assert "network_backward_kernel" in {name for name, _ in noted}
    noted.clear()
    h, b = torch.eye(3).expand(2, 3, 3), torch.ones(2, 3)
    a = torch.eye(3).expand(2, 3, 3).clone().requires_grad_()
    warmup(h, b, a, backend="triton")
    assert noted[0] == _launched(lambda: lfom_solve(h, b, a, backend="triton"))[0]
    assert "solve_backward_kernel" in {name for name, _ in noted}


def test_what_is_compiled_is_loaded_too() -> None:
    """A capture of a CUDA graph must not load code. Triton does when the attribute `run` is first read."""
    events: list[str] = []

    class Compiled:
        @property
        def run(self) -> None:
            events.append("loaded")

    class Kernel:
        def warmup(self, grid: tuple[int, ...], **arguments: object) -> Compiled:
            events.append("compiled")
            return Compiled()

    with launch.compile_only():
        launch.launch(Kernel(), 3, z=torch.zeros(1), BLOCK=2)
    assert events == ["compiled", "loaded"]


def test_nothing_to_compile_where_kernels_are_interpreted_or_another_backend_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> AbstractContextManager[None]:
        raise AssertionError("compiled")

    monkeypatch.setattr(launch, "compile_only", refuse)
    z, q = _tokens()
    for backend in ("torch", "triton"):
        assert warmup(z, q, backend=backend).backend == backend
    context_gram(z)
