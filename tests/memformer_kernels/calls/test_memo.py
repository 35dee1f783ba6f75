"""Checks and plans are asked once for arguments that look alike, and again for all that differ in anything they see."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memformer_kernels import availability, memformer_layer, memformer_loss, memformer_predict
from memformer_kernels.calls import call, memo
from memformer_kernels.calls.arguments import Call, Plan
from memformer_kernels.calls.memo import remembered
from tests.memformer_kernels.cases import normal, seeded

Z, Q = normal(seeded(1), 3, 6, 4), normal(seeded(2), 2, 1, 3, 3)
TARGET = normal(seeded(3), 3, 2)


class Counted:
    """A function that settles nothing, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.recall = remembered(self._settle)

    def _settle(self, *arguments: Any) -> Call:
        self.asked.append(arguments)
        lengths = next((x for x in arguments if isinstance(x, Tensor) and x.dtype == torch.int64), None)
        return Call(1, lengths, 0, "", "torch", Plan("torch", "gram", "large", "asked for"))

    def asks(self, *arguments: Any) -> bool:
        before = len(self.asked)
        self.recall(*arguments)
        return len(self.asked) > before


def test_arguments_that_look_alike_are_settled_once() -> None:
    counted = Counted()
    assert counted.asks(Z, None, 4, "auto", True)
    assert not counted.asks(Z, None, 4, "auto", True)
    assert not counted.asks(Z + 1, None, 4, "auto", True)
    assert not counted.asks(Z.transpose(0, 1).contiguous().transpose(0, 1), None, 4, "auto", True)


@pytest.mark.parametrize(
    "other",
    [
        (Z[:2], 1),
        (Z.float(), 1),
        (Z.to("meta"), 1),
        (Z.to_sparse(), 1),
        (torch.nn.Parameter(Z), 1),
        (Z, 2),
        (Z, True),
        (Z, 1.0),
        (Z, None),
        (Z, "1"),
        (Z, 1, None),
        (1, Z),
    ],
    ids=repr,
)
def test_whatever_checks_may_see_is_told_apart(other: tuple[Any, ...]) -> None:
    counted = Counted()
    assert counted.asks(Z, 1)
    assert counted.asks(*other)
    assert not counted.asks(Z, 1)


@pytest.mark.parametrize(
    "option",
    [[4], {}, torch.zeros(3, dtype=torch.int64), 1.0, (1,), object()],
    ids=lambda option: type(option).__name__,
)
def test_what_is_no_plain_option_is_settled_each_time(option: Any) -> None:
    counted = Counted()
    assert counted.asks(Z, option)
    assert counted.asks(Z, option)


def test_subclasses_are_settled_each_time() -> None:
    class Subclass(Tensor):
        pass

    counted = Counted()
    for _ in range(2):
        assert counted.asks(Z.as_subclass(Subclass), 1)


def test_what_autocast_allows_is_not_remembered() -> None:
    memformer_predict(Z.float(), Q.float())
    with torch.autocast("cpu", torch.bfloat16):
        memformer_predict(Z.bfloat16(), Q.bfloat16(), Q.float())
    with pytest.raises(TypeError, match=r"q: expected torch.float32"):
        memformer_predict(Z.float(), Q.bfloat16())


def test_another_build_is_another_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    assert counted.asks(Z, 1)
    with monkeypatch.context() as patch:
        patch.setitem(availability._faults, "cpu", None if availability.fault("cpu") else "not today")
        assert counted.asks(Z, 1)
    assert not counted.asks(Z, 1)


def test_a_library_that_disappears_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backends(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "memformer_kernels" in str(func):
                chosen.append(args[-1])
            return func(*args, **(kwargs or {}))

    chosen: list[str] = []
    monkeypatch.setitem(availability._faults, "cpu", None)
    call.predict(Z, Q, None, None, None, None, 4, None, False, 1, None, "auto", "auto")
    monkeypatch.setitem(availability._faults, "cpu", "not today")
    with Backends():
        memformer_predict(Z, Q, context=4)
    assert chosen == ["torch"]
    with pytest.raises(RuntimeError, match="backend='cpu' is not available"):
        memformer_predict(Z, Q, context=4, backend="cpu")


def test_lengths_are_not_kept_alive() -> None:
    lengths = torch.tensor([4, 3, 4])
    gone = weakref.ref(lengths)
    memformer_predict(Z, Q, context=lengths)
    del lengths
    gc.collect()
    assert gone() is None


def test_arguments_are_not_kept_alive() -> None:
    z, q = Z.clone(), Q.clone().requires_grad_()
    gone = [weakref.ref(z), weakref.ref(q)]
    memformer_loss(z, TARGET, q, context=4).backward()
    del z, q
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_few_outcomes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "LIMIT", 3)
    counted = Counted()
    assert all(counted.asks(Z, option) for option in (1, 2, 3))
    assert not counted.asks(Z, 1)
    assert counted.asks(Z, 4)
    assert counted.asks(Z, 1)


def test_errors_are_raised_every_time_and_after_calls_that_were_right() -> None:
    for _ in range(2):
        memformer_loss(Z, TARGET, Q, context=4, queries=2)
        memformer_predict(Z, Q, context=1)
        with pytest.raises(TypeError, match="context: expected an int, got True"):
            memformer_predict(Z, Q, context=True)
        with pytest.raises(TypeError, match=r"context: expected an int, got 1\.0"):
            memformer_predict(Z, Q, context=1.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="layers: expected a bool, got 0"):
            memformer_predict(Z, Q, context=1, layers=0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"z: expected a dense tensor .* got a torch.sparse_coo"):
            memformer_predict(Z.to_sparse(), Q, context=1)
        with pytest.raises(ValueError, match=r"target: expected shape \(B, queries\) = \(3, 2\)"):
            memformer_loss(Z, TARGET[:, :1], Q, context=4, queries=2)
        with pytest.raises(TypeError, match="registers: expected a sequence of tensors"):
            memformer_layer(Z, Q[0], None, Z)  # type: ignore[arg-type]


def test_a_ragged_call_is_checked_by_its_own_lengths() -> None:
    memformer_predict(Z, Q, context=torch.tensor([4, 3, 4]))
    with pytest.raises(ValueError, match="got lengths from 3 to 9"):
        memformer_predict(Z, Q, context=torch.tensor([4, 3, 9]))
