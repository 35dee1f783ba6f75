"""The short way of plain eager calls: who else listens still hears the operation, and results stay the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from memformer_kernels import (
    build_info,
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.functional import linear_attention, register_update
from memformer_kernels.torch_ops import fast_path
from tests.memformer_kernels.cases import normal, seeded

pytestmark = pytest.mark.skipif(not build_info().backends["cpu"].available, reason="the native library is not built")

Function = Callable[..., Any]


def _random(seed: int, *shape: int) -> Tensor:
    return normal(seeded(seed), *shape, scale=0.5)


Z, TARGET, GAMMA = _random(1, 3, 6, 4), _random(2, 3, 2), _random(3, 2, 2, 1, 1, 4)
Q, P = _random(4, 2, 1, 3, 3), _random(5, 2, 1, 3, 3)
H, B, A, W0 = _random(6, 3, 2, 2), _random(7, 3, 2), _random(8, 2, 2, 2), _random(9, 3, 2)
R, WEIGHTS = _random(10, 3, 1, 6, 4), _random(11, 2, 1, 1, 4)
HEADS = tuple(_random(12 + k, 2, 5, 2, 3) for k in range(3))

# Operation: the public function of its tensors, and these.
CALLS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "stack": (lambda z, q, p, gamma: memformer_stack(z, q, p, gamma, context=4), (Z, Q, P, GAMMA)),
    "predict": (lambda z, q, p, gamma: memformer_predict(z, q, p, gamma, context=4), (Z, Q, P, GAMMA)),
    "loss": (
        lambda z, target, q, p, gamma: memformer_loss(z, target, q, p, gamma, context=4),
        (Z, TARGET, Q, P, GAMMA),
    ),
    "layer": (
        lambda z, q, p, register, gamma: memformer_layer(z, q, p, [register], gamma, context=4)[0],
        (Z, Q[0], P[0], R, WEIGHTS),
    ),
    "context_gram": (lambda z: context_gram(z, 4), (Z,)),
    "lfom_solve": (lambda h, b, a, w0: lfom_solve(h, b, a, w0=w0), (H, B, A, W0)),
    "linear_attention": (lambda q, k, v: linear_attention(q, k, v, causal=True), HEADS),
    "register_update": (
        lambda z, r, gamma: register_update(z, [r, r], gamma),
        (Z, _random(15, 3, 6, 4), GAMMA[0, :, 0]),
    ),
}
on_every_operation = pytest.mark.parametrize("name", CALLS)
quiet_traces = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


class _Listener(TorchDispatchMode):
    """The names of the operations that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


class _FunctionListener(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


def _leaves(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def _both_ways(name: str, seed: Tensor | None = None) -> list[Tensor]:
    """The result of a call and the gradients of all tensors."""
    function, tensors = CALLS[name]
    leaves = _leaves(tensors)
    result = function(*leaves)
    grad = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape) if seed is None else seed
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def _same(made: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other)


@on_every_operation
def test_a_mode_entered_between_two_calls_sees_the_operations(name: str) -> None:
    before = _both_ways(name)
    with _Listener() as listener:
        inside = _both_ways(name)
    after = _both_ways(name)
    assert f"memformer_kernels.{name}.default" in listener.heard
    if name != "loss":
        assert f"memformer_kernels.{name}_backward.default" in listener.heard
    _same(inside, before)
    _same(after, before)


@on_every_operation
def test_a_mode_entered_for_the_backward_alone_sees_it(name: str) -> None:
    function, tensors = CALLS[name]
    expected = _both_ways(name, torch.ones_like(function(*tensors)))[1:]
    leaves = _leaves(tensors)
    result = function(*leaves)
    with _Listener() as listener:
        made = torch.autograd.grad(result, leaves, torch.ones_like(result))
    _same(list(made), expected)
    assert name == "loss" or f"memformer_kernels.{name}_backward.default" in listener.heard


@on_every_operation
@pytest.mark.parametrize("differentiated", [False, True])
def test_function_modes_and_profilers_see_the_operations(name: str, differentiated: bool) -> None:
    function, tensors = CALLS[name]
    given = _leaves(tensors) if differentiated else list(tensors)
    function(*given)
    with profile() as found:
        function(*given)
    assert f"memformer_kernels::{name}" in {event.name for event in found.events()}
    with _FunctionListener() as listener:
        function(*given)
    assert f"memformer_kernels.{name}.default" in listener.heard


class _Subclass(Tensor):
    """A tensor that says which functions it came to."""

    heard: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.heard.append(str(func))
        return super().__torch_function__(func, types, args, kwargs)


@on_every_operation
def test_a_subclass_among_the_arguments_sees_the_operation(name: str) -> None:
    function, tensors = CALLS[name]
    expected = function(*tensors)
    for place in range(len(tensors)):
        _Subclass.heard.clear()
        given = [x.as_subclass(_Subclass) if k == place else x for k, x in enumerate(tensors)]
        result = function(*given)
        assert torch.equal(torch.Tensor(result), expected)
        assert f"memformer_kernels.{name}.default" in _Subclass.heard


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "dispatch mode": _Listener,
    "function mode": _FunctionListener,
    "default device": lambda: torch.device("cpu"),
    "profiler": profile,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward-mode AD": forward_ad.dual_level,
}


@pytest.mark.parametrize("state", STATES)
def test_nothing_goes_directly_where_someone_listens(state: str) -> None:
    given = (Z, [Z], torch.nn.Parameter(Q), None, 4, "gram", True, (False,))
    assert fast_path.applies("cpu", given)
    with STATES[state]():
        assert not fast_path.applies("cpu", given)
    assert fast_path.applies("cpu", given)


@quiet_traces
def test_nothing_goes_directly_inside_transforms_and_traces() -> None:
    seen = []

    def function(z: Tensor) -> Tensor:
        seen.append(fast_path.applies("cpu", (z, 4)))
        return z.sum()

    torch.func.vmap(function)(Z)
    torch.func.grad(function)(Z)
    torch.jit.trace(function, (Z,), check_trace=False)
    assert seen == [False, False, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_other_backends_are_reached_through_the_operation(backend: str) -> None:
    assert not fast_path.applies(backend, (Z,))


@pytest.mark.parametrize("other", [Z.as_subclass(_Subclass), [Z, Z.as_subclass(_Subclass)], 1.0, {}])
def test_only_plain_arguments_go_directly(other: Any) -> None:
    assert not fast_path.applies("cpu", (Z, other))


@quiet_traces
def test_a_trace_holds_the_operation() -> None:
    function, tensors = CALLS["predict"]
    function(*tensors)
    traced = torch.jit.trace(function, tensors, check_trace=False)
    assert "memformer_kernels::predict" in str(traced.graph)


def test_a_loss_keeps_its_graph_and_gives_the_same_gradients_again() -> None:
    function, tensors = CALLS["loss"]
    leaves = _leaves(tensors)
    loss = function(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [grad.clone() for grad in first]
    for grad in first:
        grad.mul_(0.0)  # a caller may do what it likes with a gradient
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    _same(list(second), kept)
    doubled = torch.autograd.grad(loss, leaves, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    _same(list(doubled), [2 * grad for grad in kept])
    alone = torch.autograd.grad(loss, leaves[2])
    _same(list(alone), kept[2:3])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("way", [nullcontext, profile, lambda: torch.device("cpu")])
@on_every_operation
def test_a_parameter_changed_before_the_backward_raises(name: str, way: Callable[[], Any]) -> None:
    """On the short way and on every other, though a loss has its gradients ready. An update reads no tokens again."""
    function, tensors = CALLS[name]
    for place in range(name == "register_update", len(tensors)):
        leaves = _leaves(tensors)
        with way():
            result = function(*leaves).sum()
        with torch.no_grad():
            leaves[place].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(result, leaves)


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0, float("nan")])
def test_a_loss_scales_its_gradients(scale: float) -> None:
    seed = torch.tensor(scale, dtype=torch.float64)
    expected = [grad * seed for grad in _both_ways("loss", torch.ones_like(seed))[1:]]
    torch.testing.assert_close(_both_ways("loss", seed)[1:], expected, rtol=0, atol=0, equal_nan=True)


def test_gradients_accumulate_step_by_step() -> None:
    function, tensors = CALLS["loss"]
    expected = _both_ways("loss", torch.ones((), dtype=torch.float64))[1:]
    leaves = _leaves(tensors)
    seen: list[Tensor] = []
    leaves[2].register_hook(lambda grad: seen.append(grad.clone()))
    for _ in range(3):
        function(*leaves).backward()
    _same([leaf.grad for leaf in leaves if leaf.grad is not None], [grad + grad + grad for grad in expected])
    _same(seen, [expected[2]] * 3)


def test_batched_gradients_of_a_loss() -> None:
    function, tensors = CALLS["loss"]
    expected = _both_ways("loss", torch.ones((), dtype=torch.float64))[1:]
    leaves = _leaves(tensors)
    scales = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    made = torch.autograd.grad(function(*leaves), leaves, scales, is_grads_batched=True)
    for grad, one in zip(made, expected, strict=True):
        torch.testing.assert_close(grad, scales.reshape(-1, *[1] * one.ndim) * one, rtol=1e-14, atol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_tokens(half: torch.dtype) -> None:
    z, target, q = (tensor.to(half) for tensor in (Z, TARGET, Q))
    leaves = [z.requires_grad_(), q.float().requires_grad_()]
    with _Listener():
        expected = torch.autograd.grad(memformer_loss(leaves[0], target, leaves[1], context=4), leaves)
    made = torch.autograd.grad(memformer_loss(leaves[0], target, leaves[1], context=4), leaves)
    assert [grad.dtype for grad in made] == [half, torch.float32]
    _same(list(made), list(expected))


@pytest.mark.parametrize("name", ["loss", "predict"])
def test_forward_mode_over_the_backward(name: str) -> None:
    # The seed of the backward is a dual number whose value is 1: its tangent must not be lost.
    function, tensors = CALLS[name]
    leaves = _leaves(tensors)
    result = function(*leaves)
    expected = torch.autograd.grad(result, leaves, torch.full_like(result, 3.0), retain_graph=True)
    with forward_ad.dual_level():
        seed = forward_ad.make_dual(torch.ones_like(result), torch.full_like(result, 3.0))
        made = torch.autograd.grad(result, leaves, seed)
        tangents = [forward_ad.unpack_dual(grad).tangent for grad in made]
    for tangent, grad in zip(tangents, expected, strict=True):
        assert tangent is not None
        torch.testing.assert_close(tangent, grad, rtol=1e-11, atol=1e-13)


@on_every_operation
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(name: str, reentrant: bool) -> None:
    function, tensors = CALLS[name]
    result = function(*tensors)
    expected = _both_ways(name, torch.ones_like(result))[1:]
    leaves = _leaves(tensors)
    made = checkpoint(function, *leaves, use_reentrant=reentrant)
    made.backward(torch.ones_like(result))
    _same([leaf.grad for leaf in leaves if leaf.grad is not None], expected)


@pytest.mark.parametrize("only", ["forward", "recompute"])
@pytest.mark.parametrize("state", ["dispatch mode", "function mode", "profiler"])
@on_every_operation
def test_checkpoints_under_a_listener_on_one_side(name: str, state: str, only: str) -> None:
    """Whoever listens, an operation saves the same tensors: checkpointing compares them."""
    function, tensors = CALLS[name]
    result = function(*tensors)
    expected = _both_ways(name, torch.ones_like(result))[1:]
    leaves = _leaves(tensors)
    with STATES[state]() if only == "forward" else nullcontext():
        made = checkpoint(function, *leaves, use_reentrant=False)
    with STATES[state]() if only == "recompute" else nullcontext():
        made.backward(torch.ones_like(result))
    _same([leaf.grad for leaf in leaves if leaf.grad is not None], expected)


@on_every_operation
def test_a_negated_view_is_read_as_what_it_stands_for(name: str) -> None:
    function, tensors = CALLS[name]
    first, *others = tensors
    negated = torch.complex(torch.zeros_like(first), -first).conj().imag
    assert negated.is_neg()
    assert torch.equal(function(negated, *others), function(first, *others))


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode, nullcontext])
@on_every_operation
def test_nothing_is_kept_where_no_gradient_is_required(name: str, inference: Callable[[], Any]) -> None:
    function, tensors = CALLS[name]
    given = list(tensors) if inference is nullcontext else _leaves(tensors)
    with inference():
        result = function(*given)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert torch.equal(result, function(*tensors))
