"""explain, warmup and build_info: what would run, and why."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    backends,
    build_info,
    context_gram,
    explain,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    warmup,
)
from memformer_kernels.calls.arguments import Form, form_name, form_named
from tests.memformer_kernels.paths import BACKENDS, PATHS, Path, on_every_path

B, N, D, L, H = 2, 7, 4, 3, 2


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


z, q, p = _zeros(B, N, D), _zeros(L, H, D - 1, D - 1), _zeros(L, H, D - 1, D - 1)
target = _zeros(B, 1)
past = _zeros(B, 1, N, D)
h, b, a = _zeros(B, 3, 3), _zeros(B, 3), _zeros(L, 3, 3)
TOKEN_GAMMA = _zeros(L, L, 1, N, 1)

NETWORK = "all layers run on D-by-D matrices"
LAYER = "one layer reads and writes tokens"
GRAM = "one pass over the context"
SOLVER = "quadratics are in Gram space"
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    (NETWORK, (z, q), {}),
    (NETWORK, (z, q, p), {}),
    (NETWORK, (z, q), {"context": 3}),
    (NETWORK, (z,), {"q": q, "p": p, "queries": 0}),
    (NETWORK, (), {"z": z, "q": q, "layers": True}),
    (NETWORK, (z, target, q), {}),
    (NETWORK, (z, target, q, p), {"context": 6, "queries": 1}),
    (NETWORK, (z, target), {"q": q}),
    (NETWORK, (z,), {"target": target, "q": q}),
    (NETWORK, (), {"z": z, "target": target, "q": q}),
    (LAYER, (z, q[0]), {}),
    (LAYER, (z, q[0], p[0]), {"context": 3}),
    (LAYER, (z, q[0], None, [past]), {}),
    (LAYER, (z, q[0]), {"registers": [past]}),
    (LAYER, (), {"z": z, "q": q[0]}),
    (GRAM, (z,), {}),
    (GRAM, (z, 3), {}),
    (GRAM, (z,), {"context": 3}),
    (GRAM, (), {"z": z}),
    (GRAM, (z, torch.tensor([3, 4])), {}),
    (SOLVER, (h, b, a), {}),
    (SOLVER, (h, b, a, _zeros(L, L, 1)), {"w0": b}),
    (SOLVER, (h, b), {"a": a}),
    (SOLVER, (h,), {"b": b, "a": a}),
    (SOLVER, (), {"h": h, "b": b, "a": a, "layers": True}),
]


@pytest.mark.parametrize(("reason", "arguments", "options"), CALLS, ids=range(len(CALLS)))
def test_the_function_is_recognised(reason: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    plan = explain(*arguments, **options)
    assert reason in plan.reason
    assert plan.backend in BACKENDS
    assert warmup(*arguments, **options) == plan


@on_every_path
def test_what_was_asked_for_is_what_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names the backend that is called, and the algorithm that it is told."""
    seen: list[Any] = []
    backend = backends.BACKENDS[path.backend]

    class Recorder:
        def stack(self, network: Any) -> Tensor:
            seen.append(network.form.space)
            return backend.stack(network)

    plan = explain(z, q, **path.options)
    assert (plan.backend, plan.algorithm) == path
    assert "asked for" in plan.reason
    monkeypatch.setitem(backends.BACKENDS, path.backend, Recorder())
    memformer_stack(z, q, **path.options)
    assert seen == [path.algorithm]


def test_rules_of_the_algorithm() -> None:
    assert explain(z, q).algorithm == "gram"
    assert explain(z, q, gamma=_zeros(L, L, 1, 1, D)).algorithm == "gram"
    for options in ({"gamma": TOKEN_GAMMA}, {"beta": _zeros(N, 1)}, {"gamma": _zeros(L, 1, N, D)}):
        plan = explain(z, q, **options)
        assert plan.algorithm == "token"
        assert "token axis" in plan.reason
    few = explain(_zeros(B, 3, 9), _zeros(L, H, 8, 8))
    assert few.algorithm == "token"
    assert "fewer tokens than features" in few.reason
    assert explain(_zeros(B, 3, 9), _zeros(L, H, 8, 8), algorithm="gram").algorithm == "gram"
    assert explain(z, q[0]).algorithm == "token"


def test_rules_of_the_regime() -> None:
    def regime(width: int, tokens: int, p: Tensor | None = None, **options: Any) -> str:
        return explain(_zeros(B, tokens, width), _zeros(1, 1, width - 1, width - 1), p, **options).regime

    assert regime(6, 21) == "tiny Gram"
    assert regime(17, 600) == "tiny Gram"
    assert regime(18, 21) == "wide Gram"
    assert regime(512, 600) == "wide Gram"
    assert regime(513, 600) == "large"
    assert regime(16, 128, algorithm="token") == "tiny token"
    assert regime(17, 128, algorithm="token") == "wide token"
    assert regime(16, 129, algorithm="token") == "wide token"
    assert regime(513, 21) == "large"
    assert regime(16, 600, _zeros(1, 1, 15, 15)) == "tiny Gram"
    assert regime(17, 600, _zeros(1, 1, 16, 16)) == regime(256, 600, _zeros(1, 1, 255, 255)) == "wide Gram"
    assert regime(257, 600, _zeros(1, 1, 256, 256)) == "large"
    assert regime(16, 129, _zeros(1, 1, 15, 15), algorithm="token") == "tile"


def test_rules_do_not_depend_on_the_number_of_tasks_or_on_values() -> None:
    for options in ({}, {"gamma": TOKEN_GAMMA}, {"algorithm": "token"}):
        for tokens, width in ((N, D), (3, 9), (200, 40)):
            network = _zeros(L, H, width - 1, width - 1)
            weights = {"gamma": _zeros(L, L, 1, tokens, 1)} if "gamma" in options else options
            plans = {explain(z.new_empty(tasks, tokens, width), network, **weights) for tasks in (0, 1, 7, 1000, 5000)}
            assert len(plans) == 1
    assert explain(torch.full_like(z, torch.nan), torch.full_like(q, torch.nan)) == explain(z, q)
    assert explain(z, q, gamma=torch.eye(L)[:, :, None, None, None]) == explain(z, q, gamma=_zeros(L, L, 1, 1, 1))


def test_a_plan_prints_its_parts() -> None:
    plan = explain(z, q)
    for part in (plan.backend, "gram", "tiny Gram", "D-by-D"):
        assert part in str(plan)


FUNCTIONS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (memformer_stack, (z, _zeros(L, H, 2, 2)), {}),
    (memformer_predict, (z, q), {"queries": 9}),
    (memformer_predict, (z, q), {"layers": 1}),
    (memformer_stack, (z, q), {"context": torch.tensor([0, 3])}),
    (memformer_loss, (z, _zeros(B, 3), q), {}),
    (memformer_layer, (z, q[0], None, [_zeros(1, 1)]), {}),
    (memformer_layer, (z, q), {"registers": [past]}),
    (context_gram, (z, 99), {}),
    (context_gram, (z, torch.tensor([3, 99])), {}),
    (lfom_solve, (h, b, a, _zeros(L, L)), {}),
    (lfom_solve, (h, b, a), {"layers": "all"}),
    (memformer_stack, (z, q), {"backend": "none"}),
    (memformer_stack, (z, q), {"algorithm": "gram", "gamma": TOKEN_GAMMA}),
    (memformer_stack, (z, q), {"heads": 2}),
]


@pytest.mark.parametrize(("function", "arguments", "options"), FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_errors_are_those_of_the_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)) as of_the_call:
        function(*arguments, **options)
    for ask in (explain, warmup):
        with pytest.raises(of_the_call.type) as caught:
            ask(*arguments, **options)
        if "heads" not in options:
            assert str(caught.value) == str(of_the_call.value)


def test_build_info_names_every_backend() -> None:
    info = build_info()
    assert list(info.backends) == ["torch", "cpu", "cuda", "triton"]
    assert info.backends["torch"].available
    assert set(BACKENDS) <= {name for name, backend in info.backends.items() if backend.available}
    for name, backend in info.backends.items():
        assert backend.name == name
        assert backend.reason
        assert not backend.available or name in backends.BACKENDS
        assert backend.available == bool(backend.architectures)
    assert info.torch == torch.__version__


def test_build_info_reads_well() -> None:
    info = build_info()
    lines = str(info).splitlines()
    assert info.version in lines[0]
    assert info.torch in lines[0]
    assert len(lines) == 1 + len(info.backends)
    for line, (name, backend) in zip(lines[1:], info.backends.items(), strict=True):
        assert line.split()[0] == name
        assert ("available" if backend.available else "missing") in line
        assert backend.reason in line


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to have built the native library")
def test_where_there_is_a_compiler_there_is_the_native_library() -> None:
    """Else every test of the native paths would be missing without a word."""
    assert {path.backend for path in PATHS} >= {"torch", "cpu"}
    assert explain(z, q).backend == "cpu"
    assert explain(z, q, backend="torch").backend == "torch"


def test_a_register_update_is_told_from_attention_and_from_a_layer() -> None:
    """By its list of registers, whatever the number of axes, in place or by name."""
    tokens = _zeros(2, 3, 4, 5)
    for call in (lambda: explain(tokens, [tokens], _zeros(1)), lambda: explain(z, registers=[z], gamma=_zeros(1))):
        assert "every register is read once" in call().reason
    assert "one layer" in explain(z, q[0], registers=[]).reason


def test_a_form_has_a_name_that_says_it() -> None:
    for per_head in (False, True):
        for responses in (1, 12):
            form = Form("gram", "block", "full", per_head, responses)
            assert form_named(form_name(*form)) == form
    for name in ("gram", "gram, block, full, per token", "gram, block, full, some responses", ""):
        with pytest.raises(ValueError, match="form: expected"):
            form_named(name)
