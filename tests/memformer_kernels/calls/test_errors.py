"""Bad arguments: the error's kind, and a message that names the argument, what came and what was expected."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import memformer_kernels
from memformer_kernels import (
    backends,
    context_gram,
    explain,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    memformer_stack,
)

B, N, D, L, H = 2, 7, 4, 3, 2
d = D - 1
z, q, p = torch.zeros(B, N, D), torch.zeros(L, H, d, d), torch.zeros(L, H, d, d)
target = torch.zeros(B, 1)
h, b, a = torch.zeros(B, d, d), torch.zeros(B, d), torch.zeros(L, d, d)
META = torch.device("meta")
Call = Callable[[], Any]


class _Untouched:
    """A backend that must not be reached."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} ran before its arguments were checked")


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error comes before any work."""
    for name in list(backends.BACKENDS):
        monkeypatch.setitem(backends.BACKENDS, name, _Untouched())
    for name in list(backends.PREFIX_BACKENDS):
        monkeypatch.setitem(backends.PREFIX_BACKENDS, name, _Untouched())
    for name in list(backends.PROXIMAL_BACKENDS):
        monkeypatch.setitem(backends.PROXIMAL_BACKENDS, name, _Untouched())


def _stack(**changed: Any) -> Call:
    return lambda: memformer_stack(**{"z": z, "q": q, **changed})


def _predict(**changed: Any) -> Call:
    return lambda: memformer_predict(**{"z": z, "q": q, **changed})


def _loss(**changed: Any) -> Call:
    return lambda: memformer_loss(**{"z": z, "target": target, "q": q, **changed})


def _prefixes(**changed: Any) -> Call:
    return lambda: memformer_prefix_predict(**{"z": z, "q": q, **changed})


def _prefix_loss(**changed: Any) -> Call:
    return lambda: memformer_prefix_loss(**{"z": z, "target": z[:, 1:, -1], "q": q, **changed})


def _layer(**changed: Any) -> Call:
    return lambda: memformer_layer(**{"z": z, "q": q[0], **changed})


def _gram(**changed: Any) -> Call:
    return lambda: context_gram(**{"z": z, **changed})


def _solve(**changed: Any) -> Call:
    return lambda: lfom_solve(**{"h": h, "b": b, "a": a, **changed})


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# The argument, the call, and what the message says of what came.
VALUE_ERRORS: list[tuple[str, Call, str]] = [
    ("z", _stack(z=_zeros(N, D)), "(7, 4)"),
    ("z", _stack(z=_zeros(B, 0, D)), "(2, 0, 4)"),
    ("z", _stack(z=_zeros(B, N, 0)), "(2, 7, 0)"),
    ("z", _gram(z=_zeros(B, N, D, 1)), "(2, 7, 4, 1)"),
    ("z", _prefixes(z=_zeros(N, D)), "(7, 4)"),
    ("z", _prefixes(z=_zeros(B, 1, D)), "(2, 1, 4)"),
    ("first", _prefixes(first=0), "0 (int)"),
    ("first", _prefixes(first=N), "7 (int)"),
    ("first", _prefix_loss(first=-1), "-1 (int)"),
    ("q", _prefixes(q=_zeros(L, H, d, D)), "(3, 2, 3, 4)"),
    ("gamma", _prefixes(gamma=_zeros(L, L, 1, N, 1)), "(3, 3, 1, 7, 1)"),
    ("gamma", _prefix_loss(gamma=_zeros(L, 1, N, D)), "(3, 1, 7, 4)"),
    ("beta", _prefixes(beta=_zeros(N, 1)), "(7, 1)"),
    ("target", _prefix_loss(target=_zeros(B, N)), "(2, 7)"),
    ("target", _prefix_loss(first=3), "(2, 6)"),
    ("q", _stack(q=_zeros(H, d, d)), "(2, 3, 3)"),
    ("q", _stack(q=_zeros(L, H, d, D)), "(3, 2, 3, 4)"),
    ("q", _stack(q=_zeros(L, H, d - 1, d - 1)), "(3, 2, 2, 2)"),
    ("q", _stack(q=_zeros(0, H, d, d)), "(0, 2, 3, 3)"),
    ("q", _stack(q=_zeros(L, 0, d, d)), "(3, 0, 3, 3)"),
    # Without a feature there is no block of them.
    *(("q", call(z=_zeros(B, N, 1), q=_zeros(L, H, 0, 0)), "(3, 2, 0, 0)") for call in (_stack, _predict, _loss)),
    ("q", _layer(z=_zeros(B, N, 1), q=_zeros(H, 0, 0)), "(2, 0, 0)"),
    ("p", _stack(z=_zeros(B, N, 1), q=_zeros(L, H, 1, 1), p=_zeros(L, H, 0, 0)), "(3, 2, 0, 0)"),
    ("h", _solve(h=_zeros(B, 0, 0), b=_zeros(B, 0), a=_zeros(L, 0, 0)), "(2, 0, 0)"),
    ("q", lambda: explain(_zeros(B, N, 1), _zeros(L, H, 0, 0)), "(3, 2, 0, 0)"),
    ("h", lambda: explain(_zeros(B, 0, 0), _zeros(B, 0), _zeros(L, 0, 0)), "(2, 0, 0)"),
    ("p", _stack(p=_zeros(1, H, d, d)), "(1, 2, 3, 3)"),
    ("p", _stack(p=_zeros(L, 1, d, d)), "(3, 1, 3, 3)"),
    ("p", _stack(p=_zeros(L, H, d)), "(3, 2, 3)"),
    ("gamma", _stack(gamma=_zeros(D)), "(4,)"),
    ("gamma", _stack(gamma=_zeros(L, H, N)), "(3, 2, 7)"),
    ("gamma", _stack(gamma=_zeros(L, H, N, D - 1)), "(3, 2, 7, 3)"),
    ("gamma", _stack(gamma=_zeros(2, H, 1, 1)), "(2, 2, 1, 1)"),
    ("gamma", _stack(gamma=_zeros(L, 2, H, 1, 1)), "(3, 2, 2, 1, 1)"),
    ("gamma", _stack(gamma=_zeros(L, L, 3, 1, 1)), "(3, 3, 3, 1, 1)"),
    ("gamma", _stack(gamma=_zeros(1, L, L, H, N, D)), "(1, 3, 3, 2, 7, 4)"),
    ("beta", _stack(beta=_zeros(D - 1)), "(3,)"),
    ("beta", _stack(beta=_zeros(L, H, 1, N, D)), "(3, 2, 1, 7, 4)"),
    ("beta", _stack(beta=_zeros(N, 1, 1)), "(7, 1, 1)"),
    ("gate", _stack(gate=_zeros(L)), "(3,)"),
    ("gate", _stack(gate=_zeros(1, H)), "(1, 2)"),
    ("gate", _stack(gate=torch.tensor(1.0)), "()"),
    ("context", _stack(context=0), "0 (int)"),
    ("context", _stack(context=N + 1), "8 (int)"),
    ("context", _stack(context=-1), "-1 (int)"),
    ("context", _gram(context=N + 1), "8 (int)"),
    ("context", _layer(context=N + 1), "8 (int)"),
    ("context", _stack(z=_zeros(B, 1, D)), "None"),
    ("context", _stack(context=torch.ones(B + 1, dtype=torch.int64)), "(3,)"),
    ("context", _stack(context=torch.tensor(3)), "()"),
    ("context", _stack(context=torch.ones(B, 1, dtype=torch.int64)), "(2, 1)"),
    ("context", _stack(context=torch.tensor([3, 8])), "from 3 to 8"),
    ("context", _predict(context=torch.tensor([0, 3])), "from 0 to 3"),
    ("context", _predict(context=torch.tensor([1, 6]), queries=2), "from 1 to 6"),
    ("context", _loss(context=torch.tensor([7, 1])), "from 1 to 7"),
    ("context", _gram(context=torch.tensor([0, 1])), "from 0 to 1"),
    ("context", _layer(context=torch.tensor([1, 8])), "from 1 to 8"),
    ("queries", _predict(queries=-1), "-1 (int)"),
    ("queries", _predict(queries=2), "2 (int)"),
    ("queries", _predict(context=4, queries=4), "4 (int)"),
    ("queries", _predict(context=torch.tensor([3, 3]), queries=7), "7 (int)"),
    ("queries", _loss(context=4, queries=4), "4 (int)"),
    ("target", _loss(target=_zeros(B, 2)), "(2, 2)"),
    ("target", _loss(target=_zeros(B)), "(2,)"),
    ("target", _loss(target=_zeros(1, 1)), "(1, 1)"),
    ("target", _loss(context=4), "(2, 1)"),
    ("algorithm", _stack(algorithm="fast"), "'fast'"),
    ("algorithm", _stack(algorithm="gram", gamma=_zeros(L, 1, N, 1)), "token axis"),
    ("algorithm", _predict(algorithm="gram", gamma=_zeros(L, L, 1, N, D)), "token axis"),
    ("algorithm", _loss(algorithm="gram", beta=_zeros(N, D)), "token axis"),
    ("backend", _stack(backend="jax"), "'jax'"),
    ("backend", _predict(backend=""), "''"),
    ("backend", _layer(backend="gpu"), "'gpu'"),
    ("backend", _prefixes(backend="gpu"), "'gpu'"),
    ("backend", _solve(backend="gpu"), "'gpu'"),
    ("q", _layer(q=q), "(3, 2, 3, 3)"),
    ("q", _layer(q=_zeros(H, d, D)), "(2, 3, 4)"),
    ("q", _layer(q=_zeros(0, d, d)), "(0, 3, 3)"),
    ("p", _layer(p=p), "(3, 2, 3, 3)"),
    ("gamma", _layer(gamma=_zeros(2, 1, 1, 1)), "(2, 1, 1, 1)"),
    ("gamma", _layer(gamma=_zeros(D)), "(4,)"),
    ("gamma", _layer(gamma=_zeros(1, H, N, D - 1)), "(1, 2, 7, 3)"),
    ("beta", _layer(beta=_zeros(1, H, N, D)), "(1, 2, 7, 4)"),
    ("registers[0]", _layer(registers=[_zeros(B, H, N, D)]), "(2, 2, 7, 4)"),
    ("registers[0]", _layer(registers=[_zeros(B, N, D)]), "(2, 7, 4)"),
    ("registers[1]", _layer(registers=[_zeros(B, 1, N, D), _zeros(1, 1, N, D)]), "(1, 1, 7, 4)"),
    ("registers[0]", _layer(registers=[_zeros(B, 1, N, D)], gamma=_zeros(2, H, 1, 1)), "(2, 1, 7, 4)"),
    ("registers[0]", _layer(registers=[_zeros(B, 1, N, D)], beta=_zeros(H, 1, 1)), "(2, 1, 7, 4)"),
    ("h", _solve(h=_zeros(d, d)), "(3, 3)"),
    ("h", _solve(h=_zeros(B, d, D)), "(2, 3, 4)"),
    ("b", _solve(b=_zeros(B, D)), "(2, 4)"),
    ("b", _solve(b=_zeros(B, d, 0)), "(2, 3, 0)"),
    ("b", _solve(b=_zeros(B, D, 1)), "(2, 4, 1)"),
    ("b", _solve(b=_zeros(B, d, 1, 1)), "(2, 3, 1, 1)"),
    ("a", _solve(a=_zeros(d, d)), "(3, 3)"),
    ("a", _solve(a=_zeros(0, d, d)), "(0, 3, 3)"),
    ("a", _solve(a=_zeros(L, D, D)), "(3, 4, 4)"),
    ("gamma", _solve(gamma=_zeros(L, L)), "(3, 3)"),
    ("gamma", _solve(gamma=_zeros(L, 2, d)), "(3, 2, 3)"),
    ("beta", _solve(beta=_zeros(2, d)), "(2, 3)"),
    ("beta", _solve(beta=_zeros(L, L, d)), "(3, 3, 3)"),
    ("w0", _solve(w0=_zeros(d)), "(3,)"),
    ("level", _solve(level=_zeros(L, d + 1)), "(3, 4)"),
    ("level", _solve(level=_zeros(L, L, d)), "(3, 3, 3)"),
    ("level", _solve(level=-0.5), "-0.5 (float)"),
    ("level", _solve(level=math.nan), "nan (float)"),
    ("lower", _solve(lower=_zeros(2, d)), "(2, 3)"),
    ("lower", _solve(lower=1, upper=0.5), "1 (int)"),
    ("upper", _solve(upper=_zeros(B, L, d)), "(2, 3, 3)"),
    ("radius", _solve(radius=_zeros(L, d)), "(3, 3)"),
    ("radius", _solve(radius=-1), "-1 (int)"),
    ("radius", _solve(radius=1.0, level=0.5), "1.0 (float)"),
    ("radius", _solve(radius=1.0, lower=0.5), "1.0 (float)"),
    ("backend", _solve(level=0.5, backend="cuda"), '"cuda"'),
    ("backend", _solve(lower=0.0, backend="triton"), '"triton"'),
    ("backend", _solve(level=0.5, b=_zeros(B, d, 1), backend="cpu"), '"cpu"'),
    ("backend", _solve(radius=1.0, backend="gpu"), "'gpu'"),
    ("level", lambda: explain(h, b, a, level=-1.0), "-1.0 (float)"),
    ("w0", _solve(b=_zeros(B, d, 2), w0=_zeros(B, d)), "(2, 3)"),
    ("backend", _solve(b=_zeros(B, d, 1), backend="cpu"), '"cpu"'),
    *(
        row
        for call in (_stack, _predict, _loss)
        for row in (
            ("responses", call(responses=0), "0 (int)"),
            ("responses", call(responses=D + 1), "5 (int)"),
            ("q", call(responses=2), "(3, 2, 3, 3)"),
            ("q", call(responses=D, q=_zeros(L, H, 0, 0)), "(3, 2, 0, 0)"),
        )
    ),
    ("backend", _stack(responses=2, q=_zeros(L, H, 2, 2), backend="triton"), '"triton"'),
    ("target", _loss(responses=2, q=_zeros(L, H, 2, 2)), "(2, 1)"),
    ("target", _loss(target=_zeros(B, 1, 1)), "(2, 1, 1)"),
    # Every tensor lives where the tasks do.
    ("q", _stack(q=q.to(META)), "meta"),
    ("p", _stack(p=p.to(META)), "meta"),
    ("gamma", _stack(gamma=_zeros(L, H, 1, 1).to(META)), "meta"),
    ("beta", _stack(beta=_zeros(D).to(META)), "meta"),
    ("gate", _stack(gate=_zeros(H).to(META)), "meta"),
    ("context", _stack(context=torch.ones(B, dtype=torch.int64, device=META)), "meta"),
    ("q", _stack(z=z.to(META)), "cpu"),
    ("target", _loss(target=target.to(META)), "meta"),
    ("registers[0]", _layer(registers=[_zeros(B, 1, N, D).to(META)]), "meta"),
    ("q", _layer(q=q[0].to(META)), "meta"),
    ("context", _gram(context=torch.ones(B, dtype=torch.int64, device=META)), "meta"),
    ("b", _solve(b=b.to(META)), "meta"),
    ("w0", _solve(w0=b.to(META)), "meta"),
    ("upper", _solve(upper=b[:1].to(META)), "meta"),
]

NOT_TOKENS: list[tuple[Any, str]] = [
    (torch.zeros(B, N, D, dtype=torch.int64), "int64"),
    (torch.zeros(B, N, D, dtype=torch.complex64), "complex64"),
    (torch.zeros(B, N, D, dtype=torch.bool), "bool"),
    (torch.zeros(B, N, D).to_sparse(), "sparse"),
    (np.zeros((1, 1, 1)), "ndarray"),
    ([[[0.0]]], "list"),
    (None, "NoneType"),
]
TYPE_ERRORS: list[tuple[str, Call, str]] = [
    *(("z", call(z=value), came) for value, came in NOT_TOKENS for call in (_stack, _predict, _loss, _gram, _layer)),
    ("q", _stack(q=None), "NoneType"),
    ("q", _stack(q=q.long()), "int64"),
    ("q", _predict(q=q.to(torch.complex64)), "complex64"),
    ("q", _stack(q=q.to_sparse()), "sparse"),
    ("p", _stack(p=p.int()), "int32"),
    ("p", _stack(p=1.0), "1.0 (float)"),
    ("gamma", _stack(gamma=0.5), "0.5 (float)"),
    ("gamma", _stack(gamma=_zeros(L, H, 1, 1).bool()), "bool"),
    ("beta", _stack(beta=0.5), "0.5 (float)"),
    ("beta", _stack(beta=_zeros(D).long()), "int64"),
    ("gate", _stack(gate=[1.0, 1.0]), "[1.0, 1.0] (list)"),
    ("gate", _stack(gate=torch.ones(H, dtype=torch.int32)), "int32"),
    ("context", _stack(context=True), "True (bool)"),
    ("context", _stack(context=3.0), "3.0 (float)"),
    ("context", _stack(context="3"), "'3' (str)"),
    ("context", _stack(context=[3, 3]), "[3, 3] (list)"),
    ("context", _stack(context=torch.ones(B)), "float32"),
    ("context", _gram(context=torch.ones(B, dtype=torch.bool)), "bool"),
    ("context", _layer(context=torch.ones(B, dtype=torch.complex64)), "complex64"),
    ("queries", _predict(queries=True), "True (bool)"),
    ("queries", _predict(queries=1.0), "1.0 (float)"),
    ("queries", _loss(queries=torch.tensor(1)), "int64"),
    ("layers", _predict(layers=1), "1 (int)"),
    *(("responses", call(responses=2.0), "2.0 (float)") for call in (_stack, _predict, _loss)),
    ("responses", _stack(responses=True), "True (bool)"),
    ("layers", _solve(layers=None), "None (NoneType)"),
    ("target", _loss(target=None), "NoneType"),
    ("target", _loss(target=target.long()), "int64"),
    ("target", _loss(target=[[0.0], [0.0]]), "(list)"),
    ("first", _prefixes(first="1"), "'1' (str)"),
    ("first", _prefix_loss(first=2.0), "2.0 (float)"),
    ("first", _prefixes(first=True), "True (bool)"),
    ("layers", _prefixes(layers=1), "1 (int)"),
    ("target", _prefix_loss(target=None), "NoneType"),
    ("algorithm", _stack(algorithm=None), "None (NoneType)"),
    ("backend", _stack(backend=torch), "(module)"),
    ("backend", _layer(backend=0), "0 (int)"),
    ("registers", _layer(registers=_zeros(1, B, 1, N, D)), "(1, 2, 1, 7, 4)"),
    ("registers", _layer(registers=None), "None (NoneType)"),
    ("registers", _layer(registers=iter([])), "iterator"),
    ("registers[0]", _layer(registers=[None]), "None (NoneType)"),
    ("registers[0]", _layer(registers=[_zeros(B, 1, N, D).long()]), "int64"),
    ("h", _solve(h=None), "NoneType"),
    ("h", _solve(h=h.long()), "int64"),
    ("a", _solve(a=a.to(torch.complex64)), "complex64"),
    ("w0", _solve(w0=0.0), "0.0 (float)"),
    ("level", _solve(level=b[:1].double()), "float64"),
    ("lower", _solve(lower=True), "True (bool)"),
    ("upper", _solve(upper="1"), "'1' (str)"),
    ("radius", _solve(radius=a[0, :1, :1].long()), "int64"),
]


def _assert_names(message: str, argument: str, came: str) -> None:
    """ARGUMENT: expected ..., got CAME."""
    assert message.startswith(f"{argument}: expected "), message
    assert came in message, message
    assert "got " in message, message


@pytest.mark.parametrize(
    ("argument", "call", "came"), VALUE_ERRORS, ids=[f"{i}-{e[0]}-{e[2]}" for i, e in enumerate(VALUE_ERRORS)]
)
def test_shapes_and_values(argument: str, call: Call, came: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    _assert_names(str(caught.value), argument, came)


@pytest.mark.parametrize(
    ("argument", "call", "came"), TYPE_ERRORS, ids=[f"{i}-{e[0]}-{e[2]}" for i, e in enumerate(TYPE_ERRORS)]
)
def test_kinds(argument: str, call: Call, came: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    _assert_names(str(caught.value), argument, came)


@pytest.mark.parametrize(
    "call", [_stack, _predict, _loss, _prefixes, _prefix_loss, _layer, _solve], ids=lambda f: f.__name__[1:]
)
@pytest.mark.parametrize("backend", [n for n, i in memformer_kernels.build_info().backends.items() if not i.available])
def test_a_missing_backend_names_the_mend(call: Callable[..., Call], backend: str) -> None:
    reason = memformer_kernels.build_info().backends[backend].reason
    with pytest.raises(RuntimeError, match=re.escape(reason)) as caught:
        call(backend=backend)()
    assert backend in str(caught.value)
    assert "build_info" in str(caught.value)


def test_messages_say_what_was_expected() -> None:
    expected = {
        r"q: .*\(3, 2, 3, 3\).*\(3, 2, 4, 4\)": _stack(q=_zeros(L, H, 2, 2)),
        r"gamma: .*\(3, 3, 2, 7, 4\)": _stack(gamma=_zeros(2, 2, 1, 1, 1)),
        r"beta: .*\(3, 2, 7, 4\)": _stack(beta=_zeros(5)),
        r"gate: .*\(2,\).*\(3, 2\)": _stack(gate=_zeros(5)),
        r"context: .*1 to N = 7": _stack(context=9),
        r"queries: .*0 to 3": _predict(context=4, queries=5),
        r"target: .*\(2, 3\)": _loss(context=4),
        r"backend: .*auto, torch, cpu, cuda, triton": _stack(backend="none"),
        r"algorithm: .*auto, gram, token": _stack(algorithm="none"),
        r"registers\[0\]: .*\(2, 1, 7, 4\)": _layer(registers=[_zeros(1)]),
    }
    for pattern, call in expected.items():
        with pytest.raises(ValueError, match=pattern):
            call()


def test_mixed_dtypes_on_a_device_without_autocast() -> None:
    with pytest.raises(TypeError, match=r"q: expected .*float32"):
        memformer_stack(z.to(META), q.double().to(META))


def test_too_many_arguments() -> None:
    with pytest.raises(TypeError):
        memformer_stack(z, q, None, None, None, None, 6)  # type: ignore[misc]
    with pytest.raises(TypeError):
        memformer_stack(z, q, heads=2)  # type: ignore[call-arg]
