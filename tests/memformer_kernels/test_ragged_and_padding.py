"""Ragged contexts, padding between context and queries, and entries of gamma that no layer reads."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import Case
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_backend, on_every_path

TOKENS = 9
LENGTHS = [1, 6, 3, 8]
STRUCTURES = pytest.mark.parametrize("structure", ["response-only", "block", "dense"])


def _case(**options: Any) -> Case:
    return make_case(**{"tasks": len(LENGTHS), "tokens": TOKENS, **options})


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)


def _paths_and_granularities() -> list[Any]:
    return [
        pytest.param(path, granularity, id=f"{path}-{granularity}")
        for path in PATHS
        for granularity in ("feature", "full")
        if path.serves(_case(granularity=granularity))
    ]


EVERY_PATH_AND_GRANULARITY = pytest.mark.parametrize(("path", "granularity"), _paths_and_granularities())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
@STRUCTURES
@EVERY_PATH_AND_GRANULARITY
def test_ragged_contexts_equal_calls_task_by_task(
    path: Path, granularity: str, structure: str, dtype: torch.dtype
) -> None:
    case = _case(structure=structure, granularity=granularity, rule="recursive")
    lengths = torch.tensor(LENGTHS, dtype=dtype)
    network = (case.q, *case.parameters)
    tokens = memformer_stack(case.z, *network, context=lengths, **path.options)
    predictions = memformer_predict(case.z, *network, context=lengths, layers=True, **path.options)
    assert predictions.shape == (3, 4, 1)
    for task, n in enumerate(LENGTHS):
        z = case.z[task : task + 1]
        _close(tokens[task], memformer_stack(z, *network, context=n, **path.options)[0])
        alone = memformer_predict(z, *network, context=n, queries=1, layers=True, **path.options)
        _close(predictions[:, task], alone[:, 0])


@STRUCTURES
@EVERY_PATH_AND_GRANULARITY
def test_ragged_gradients_equal_calls_task_by_task(path: Path, granularity: str, structure: str) -> None:
    case = _case(structure=structure, granularity=granularity)
    inputs = [value.requires_grad_() for value in leaves(case).values()]
    target = normal(seeded(1), 4, 1)
    network = (case.q, *case.parameters)
    together = memformer_loss(case.z, target, *network, context=torch.tensor(LENGTHS), **path.options)
    one_by_one = [
        memformer_loss(case.z[i : i + 1], target[i : i + 1], *network, context=n, queries=1, **path.options)
        for i, n in enumerate(LENGTHS)
    ]
    total = torch.stack(one_by_one).mean()
    _close(together, total)
    _close(torch.autograd.grad(together, inputs), torch.autograd.grad(total, inputs))


@on_every_backend
def test_ragged_layer_and_gram(backend: str) -> None:
    case = _case()
    assert case.p is not None
    lengths = torch.tensor(LENGTHS)
    gram = context_gram(case.z, lengths)
    moved, register = memformer_layer(case.z, case.q[0], case.p[0], context=lengths, backend=backend)
    for task, n in enumerate(LENGTHS):
        z = case.z[task : task + 1]
        _close(gram[task], context_gram(z, n)[0])
        alone, own = memformer_layer(z, case.q[0], case.p[0], context=n, backend=backend)
        _close(moved[task], alone[0])
        _close(register[task], own[0])


def test_equal_lengths_equal_an_int() -> None:
    case = _case()
    lengths = torch.full((4,), 5)
    for path in PATHS:
        ragged = memformer_stack(case.z, case.q, *case.parameters, context=lengths, **path.options)
        _close(ragged, memformer_stack(case.z, case.q, *case.parameters, context=5, **path.options))


CONTEXTS: dict[str, tuple[int | Tensor, int, list[range]]] = {
    "int": (4, 2, [range(4, 7)] * 4),
    "ragged": (torch.tensor([1, 6, 3, 7]), 2, [range(1, 7), range(6, 7), range(3, 7), range(7, 7)]),
    "no queries": (4, 0, [range(4, 9)] * 4),
}


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("filling", [torch.nan, torch.inf, 1e30])
@STRUCTURES
@EVERY_PATH_AND_GRANULARITY
def test_padding_is_dropped_by_selection(
    path: Path, granularity: str, structure: str, filling: float, kind: str
) -> None:
    """Whatever the padding holds, no bit of a prediction or gradient changes, and its own gradient is exactly zero."""
    context, queries, padding = CONTEXTS[kind]
    case = _case(structure=structure, granularity=granularity)
    filled = case.z.clone()
    for task, rows in enumerate(padding):
        filled[task, list(rows)] = filling
    target = normal(seeded(2), 4, queries)

    def run(z: Tensor) -> tuple[Tensor, ...]:
        own = replace(case, z=z.clone())
        inputs = [value.detach().requires_grad_() for value in leaves(own).values()]
        own = replace(own, **dict(zip(leaves(own), inputs, strict=True)))
        network = (own.q, *own.parameters)
        predictions = memformer_predict(own.z, *network, context=context, queries=queries, layers=True, **path.options)
        loss = memformer_loss(own.z, target, *network, context=context, queries=queries, **path.options)
        scalar = predictions.square().sum() + (loss if queries else 0.0 * loss.nan_to_num())
        return predictions.detach(), *torch.autograd.grad(scalar, inputs)

    clean, made = run(case.z), run(filled)
    for expected, value in zip(clean, made, strict=True):
        assert torch.equal(value, expected)
        assert value.isfinite().all()
    for task, rows in enumerate(padding):
        assert not made[1][task, list(rows)].any()


@pytest.mark.parametrize("kind", CONTEXTS)
@STRUCTURES
@EVERY_PATH_AND_GRANULARITY
def test_padding_of_a_spoilt_task_has_zero_gradient(path: Path, granularity: str, structure: str, kind: str) -> None:
    """A gradient of zero by multiplication would be NaN where the rest of the task is."""
    context, queries, padding = CONTEXTS[kind]
    case = _case(structure=structure, granularity=granularity)
    z = case.z.clone()
    z[:, 0] = torch.nan
    z.requires_grad_()
    predictions = memformer_predict(
        z, case.q, *case.parameters, context=context, queries=queries, layers=True, **path.options
    )
    loss = memformer_loss(
        z, predictions[0].detach(), case.q, *case.parameters, context=context, queries=queries, **path.options
    )
    (gradient,) = torch.autograd.grad(predictions.sum() + loss, z)
    for task, rows in enumerate(padding):
        assert not gradient[task, list(rows)].any()
    if queries:
        assert gradient[:, 0].isnan().any()


@pytest.mark.parametrize("granularity", ["feature", "full"])
@pytest.mark.parametrize("axes", ["(L, L)", "(L, 1)", "(1, L)"])
@pytest.mark.parametrize("gates", [None, 1, 2])
@pytest.mark.parametrize("momentum", [False, True])
@STRUCTURES
def test_entries_above_the_diagonal_are_never_read(
    structure: str, momentum: bool, gates: int | None, axes: str, granularity: str
) -> None:
    """gamma[l, j] with j > l may hold anything, NaN too, and gets exactly zero gradient; gates do not change that."""
    generator = seeded(3)
    case = _case(structure=structure, granularity=granularity, context=4)
    assert case.gamma is not None
    gamma = {"(L, L)": case.gamma, "(L, 1)": case.gamma[:, :1], "(1, L)": case.gamma[:1]}[axes].clone()
    unread = torch.ones(3, 3, dtype=torch.bool).triu(1) if axes == "(L, L)" else torch.zeros(3, 3, dtype=torch.bool)
    gate = None if gates is None else 1 + normal(generator, *(3, 2)[2 - gates :], scale=0.3)
    beta = normal(generator, 3, 2, 1, 4, scale=0.3) if momentum else None
    target = normal(generator, 4, 5)
    zero, holed = gamma.clone(), gamma.clone()
    if axes == "(L, L)":
        zero[unread], holed[unread] = 0.0, torch.nan
    for path in PATHS:
        if not path.serves(case):
            continue

        def run(gamma: Tensor, path: Path = path) -> tuple[Tensor, ...]:
            named = {"q": case.q, "gamma": gamma, "gate": gate, "beta": beta, "z": case.z}
            inputs = {name: x.detach().clone().requires_grad_() for name, x in named.items() if x is not None}
            network = (inputs["q"], case.p, inputs["gamma"], inputs.get("beta"), inputs.get("gate"))
            tokens = memformer_stack(inputs["z"], *network, context=4, **path.options)
            loss = memformer_loss(inputs["z"], target, *network, context=4, **path.options)
            return tokens.detach(), *torch.autograd.grad(tokens.square().sum() + loss, list(inputs.values()))

        made, expected = run(holed), run(zero)
        for value, exact in zip(made, expected, strict=True):
            assert torch.equal(value, exact)
        if axes == "(L, L)":
            assert not made[2][unread].any()
            assert made[2][~unread].any()


def test_default_queries() -> None:
    case = _case()
    assert memformer_predict(case.z, case.q).shape == (4, 1)
    assert memformer_predict(case.z, case.q, context=3).shape == (4, 6)
    assert memformer_predict(case.z, case.q, context=9).shape == (4, 0)
    assert memformer_predict(case.z, case.q, context=torch.tensor(LENGTHS)).shape == (4, 1)
    assert memformer_predict(case.z, case.q, context=3, queries=2).shape == (4, 2)
    _close(memformer_predict(case.z, case.q), memformer_predict(case.z, case.q, context=8, queries=1))


def test_queries_are_the_last_tokens() -> None:
    case = _case(context=3)
    for path in PATHS:
        everything = memformer_predict(case.z, case.q, *case.parameters, context=3, **path.options)
        for queries in range(1, 7):
            some = memformer_predict(case.z, case.q, *case.parameters, context=3, queries=queries, **path.options)
            _close(some, everything[:, -queries:])


@on_every_path
def test_ragged_ranges_are_checked(path: Path) -> None:
    case = _case()
    network = {"q": case.q, **path.options}
    for lengths, queries in (([0, 1, 1, 1], 1), ([1, 9, 1, 1], 1), ([1, 1, 8, 1], 2), ([1, 1, 1, -1], 0)):
        context = torch.tensor(lengths)
        low, high = min(lengths), max(lengths)
        with pytest.raises(ValueError, match=rf"context: .* 1 to {9 - queries} .* from {low} to {high}"):
            memformer_predict(case.z, **network, context=context, queries=queries)
        with pytest.raises(ValueError, match="context: "):
            memformer_loss(case.z, torch.zeros(4, queries).double(), **network, context=context, queries=queries)
    for context in (torch.tensor([0, 1, 1, 1]), torch.tensor([1, 1, 1, 10])):
        with pytest.raises(ValueError, match="context: "):
            memformer_stack(case.z, **network, context=context)
        with pytest.raises(ValueError, match="context: "):
            memformer_layer(case.z, case.q[0], context=context, backend=path.backend)
        with pytest.raises(ValueError, match="context: "):
            context_gram(case.z, context)
    whole = torch.full((4,), 9)
    assert memformer_stack(case.z, **network, context=whole).shape == (4, 9, 4)
    assert memformer_predict(case.z, **network, context=whole, queries=0).shape == (4, 0)
