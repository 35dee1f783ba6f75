"""Sizes beyond what the native libraries count: refused by name there, and served by torch where it can.

Tensors are expanded views of a number or two: sizes of 2^32 and more take no memory.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, explain, memformer_predict
from memformer_kernels.calls import plan
from memformer_kernels.calls.limits import LARGEST_TASK
from memformer_kernels.calls.problem import Problem
from tests.memformer_kernels.native import NATIVE

HUGE = 2**32 + 3
"""As an int: 3."""


def _ones(*shape: int) -> Tensor:
    return torch.ones(()).expand(shape)


def _network(**changed: Any) -> tuple[Any, ...]:
    given: dict[str, Any] = {
        "z": _ones(2, 4, 3),
        "q": _ones(1, 1, 2, 2),
        "p": None,
        "gamma": None,
        "beta": None,
        "lengths": None,
        "context": 3,
        "gram_space": True,
        "queries": 1,
    }
    assert changed.keys() <= given.keys()
    return tuple({**given, **changed}.values())


NETWORKS = {
    "z": [{"z": _ones(2, HUGE, 3)}, {"z": _ones(2, 4, HUGE)}, {"z": _ones(0, HUGE, 3)}],
    "z's numbers a task": [{"z": _ones(2, 2**29, 3)}],
    "context": [{"context": HUGE}, {"context": -HUGE}],
    "queries": [{"queries": HUGE}],
    "q": [{"q": _ones(HUGE, 1, 2, 2)}, {"q": _ones(1, HUGE, 2, 2)}],
    "the numbers of q": [{"q": _ones(2**29, 1, 2, 2)}],
    "the numbers of gamma": [{"q": _ones(2**15, 1, 2, 2), "gamma": _ones(2**15, 2**15, 1, 1, 1), "gram_space": False}],
    "the numbers that a task's layers leave": [{"q": _ones(2**26, 1, 2, 2), "gram_space": False}],
    "the tokens of ragged contexts": [{"z": _ones(1, 2**24 + 1, 3), "lengths": torch.tensor([2])}],
}


@pytest.mark.parametrize(("name", "changed"), [(name, one) for name, ones in NETWORKS.items() for one in ones])
def test_a_network_beyond_an_int_is_refused_by_name(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at most"):
        NATIVE.forward(*_network(**changed), torch.empty(1, 2, 1))


def test_a_result_of_more_layers_than_an_int_is_refused() -> None:
    for operator in (NATIVE.forward, lambda *a: NATIVE.backward(a[-1], *a[:-1], None, None, None, None, None)):
        with pytest.raises(ValueError, match=r"^(result|grad): expected at most"):
            operator(*_network(), _ones(HUGE, 2, 1))


LAYERS = {
    "z": [{"z": _ones(1, HUGE, 3)}, {"z": _ones(1, 4, HUGE)}],
    "z's numbers a task": [{"z": _ones(1, 2**29, 3)}],
    "q": [{"q": _ones(HUGE, 3, 3)}],
    "context": [{"context": HUGE}],
    "the numbers of q": [{"q": _ones(2**28, 3, 3)}],
}


@pytest.mark.parametrize(("name", "changed"), [(name, one) for name, ones in LAYERS.items() for one in ones])
def test_a_layer_beyond_an_int_is_refused_by_name(name: str, changed: dict[str, Any]) -> None:
    given = {"z": _ones(1, 4, 3), "q": _ones(1, 3, 3), "context": 2, **changed}
    with pytest.raises(ValueError, match=f"^{name}: expected at most"):
        NATIVE.layer(
            given["z"], given["q"], None, [], None, None, None, given["context"], torch.empty(1), _ones(1, 1, 1, 1)
        )


@pytest.mark.parametrize(
    ("name", "a", "layers"),
    [
        ("a", _ones(HUGE, 2, 2), 1),
        ("a", _ones(1, HUGE, 1), 1),
        ("result", _ones(1, 2, 2), HUGE),
        ("the numbers of a", _ones(2**29, 2, 2), 1),
        ("the numbers of gamma", _ones(2**15, 2, 2), 1),
    ],
)
def test_quadratics_beyond_an_int_are_refused_by_name(name: str, a: Tensor, layers: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at most"):
        NATIVE.lfom_solve(_ones(1, 2, 2), _ones(1, 2), a, None, None, None, _ones(layers, 1, 2))


@pytest.mark.parametrize("which", ["q", "v"])
def test_heads_wider_than_an_int_are_refused_by_name(which: str) -> None:
    narrow, wide = _ones(1, 4, 1, 2), _ones(1, 4, 1, HUGE)
    q, v = (wide, narrow) if which == "q" else (narrow, wide)
    with pytest.raises(ValueError, match=f"^{which}: expected at most"):
        NATIVE.attention(q, q, v, None, None, None, True, _ones(1, 4, 1, 2))


@pytest.mark.parametrize(
    ("name", "tokens", "width", "context"),
    [("z", HUGE, 1, 2), ("z", 4, HUGE, 2), ("context", 4, 1, HUGE), ("z's numbers a task", 2**29, 3, 2)],
)
def test_a_context_beyond_an_int_is_refused_by_name(name: str, tokens: int, width: int, context: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at most"):
        NATIVE.context_gram(_ones(1, tokens, width), None, context, torch.empty(1, 1, 1))


def test_the_library_and_the_package_count_as_far() -> None:
    """The limit that each of the library's checks names is the one that the package plans by."""
    q, none = torch.zeros(1, 1, 1, 1, 1), [None] * 5
    counters = [torch.zeros(1, dtype=torch.int64)] * 2
    active, sums = torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, 2, dtype=torch.float64)
    task = ("tokens", 1, 1, HUGE, HUGE - 1, 1, False, 0.0, 0.0)
    calls = [
        lambda: NATIVE.context_gram(_ones(1, HUGE, 1), None, 2, torch.empty(1, 1, 1)),
        lambda: NATIVE.train_gradients(q, None, None, None, active, 0, 1, *counters, *task, *none, 0, sums),
    ]
    for call in calls:
        with pytest.raises((ValueError, RuntimeError), match=rf"expected at most {LARGEST_TASK}\b"):
            call()


def test_negative_strides_zero_axes_and_null_pointers_are_read_as_what_they_are() -> None:
    """What an expanded or an empty tensor reports of itself goes through the binding unharmed."""
    empty = torch.empty(0, 4, 3)
    assert context_gram(empty, 3).shape == (0, 3, 3)
    assert memformer_predict(empty, torch.ones(1, 1, 2, 2), backend="cpu").shape == (0, 1)
    z = torch.randn(3, 4, 3)
    mine = memformer_predict(z, torch.ones(1, 1, 2, 2), queries=0, context=4, backend="cpu")
    assert mine.shape == (3, 0)


def test_what_the_library_does_not_count_goes_to_torch() -> None:
    long, ragged = _ones(1, HUGE, 2), _ones(1, 2**24 + 1, 2)
    q = torch.ones(1, 1, 1, 1)
    assert explain(long).backend == "torch"
    assert explain(long, q).backend == "torch"
    assert explain(long, q, backend="cpu").backend == "torch"
    assert explain(ragged, context=torch.tensor([5])).backend == "torch"
    assert explain(ragged[:, 1:], context=torch.tensor([5])).backend == "cpu"
    at_the_edge = Problem(2**29, 2, 1, 1, "response-only", "linear", False, 5, None, "cpu")
    assert plan.plan_network(at_the_edge, "auto", "auto").backend == "cpu"
    assert plan.plan_network(at_the_edge._replace(tokens=2**29 + 1), "auto", "auto").backend == "torch"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_context_of_more_rows_than_an_int_is_summed_in_full() -> None:
    assert float(context_gram(_ones(1, HUGE, 1), HUGE)) == pytest.approx(HUGE, rel=1e-5)


def test_ragged_contexts_of_more_tokens_than_a_float_counts_are_summed_in_full() -> None:
    """One task more than a lane's worth: contexts are not cut, so that lanes compare tokens with lengths."""
    tokens = 2**24 + 1
    lengths = torch.full((2,), tokens)
    assert context_gram(_ones(2, tokens, 1), lengths).flatten().tolist() == pytest.approx([tokens] * 2, rel=1e-6)
