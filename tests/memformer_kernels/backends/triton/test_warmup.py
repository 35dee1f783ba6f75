"""warmup compiles what a call would launch and launches nothing. Here compiling is only noted down."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_stack,
    register_update,
    warmup,
)
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
    monkeypatch.setattr(launch, "check_tensor", lambda tensor: None)
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
    assert all(one in noted for one in _launched(lambda: memformer_loss(z, target, q, backend="triton")))
    assert {name for name, _ in noted} == {"solve_backward_kernel", "sum_kernel"}


@pytest.mark.parametrize("given", [0, 1, 128, 1000])
@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_a_loss_of_any_number_of_tasks(noted: Noted, given: int, structure: str) -> None:
    """Contexts of 600 tokens: a few tasks are spread over programs, by other kernels than many are run by."""

    def arguments(tasks: int) -> list[Tensor]:
        q = -torch.eye(5).expand(2, 1, 5, 5).clone().requires_grad_()
        p = [q] if structure == "block" else []
        return [torch.ones(tasks, 601, 6), torch.zeros(tasks, 1), q, *p]

    warmup(*arguments(given), backend="triton")
    for tasks in (1, 2, 128, 1000, 5000):
        launched = _launched(lambda tasks=tasks: memformer_loss(*arguments(tasks), backend="triton"))
        assert ("across_kernel" in {name for name, _ in launched}) == (tasks < 256)
        assert all(one in noted for one in launched)


@pytest.mark.parametrize("given", [1, 300])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_any_number_of_sequences(noted: Noted, given: int, causal: bool) -> None:
    def leaves(batch: int) -> list[Tensor]:
        return [torch.ones(batch, 600, 4, 8, requires_grad=True) for _ in range(3)]

    warmup(*leaves(given), causal=causal, backend="triton")
    for batch in (1, 300):
        q, k, v = leaves(batch)
        launched = _launched(lambda q=q, k=k, v=v: linear_attention(q, k, v, causal=causal, backend="triton"))
        assert launched[-1][0] == "attend_kernel"
        assert (launched[0][0] == "state_kernel") == (batch == 1 or not causal)
        assert all(one in noted for one in launched)


@pytest.mark.parametrize("gamma", [(1,), (1, 8), (1, 30, 1)])
def test_register_updates_of_any_number_of_tokens(noted: Noted, gamma: tuple[int, ...]) -> None:
    weights = torch.ones(gamma)
    z = torch.ones(2, 30, 8)
    warmup(z, [z], weights, backend="triton")
    for batch in (1, 3, 200):
        z = torch.ones(batch, 30, 8)
        assert all(one in noted for one in _launched(lambda z=z: register_update(z, [z], weights, backend="triton")))


def test_a_rehearsal_has_few_tasks_whatever_the_call_has(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results would else take the memory of the call's."""
    sizes = set()

    def compile_only() -> AbstractContextManager[None]:
        def note(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
            sizes.update(x.shape[0] for x in launch.tensors(arguments.values()) if x.shape[1:] == (601, 6))

        return launch.observed(note)

    monkeypatch.setattr(launch, "compile_only", compile_only)
    q = torch.eye(5).expand(2, 1, 5, 5)
    warmup(torch.ones(1).expand(500, 601, 6), torch.zeros(500, 1), q, backend="triton")
    assert sizes == {1, 2}


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
