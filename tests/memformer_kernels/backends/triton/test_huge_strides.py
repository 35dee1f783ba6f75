"""Views that span more than 2^31 numbers: an offset is 64-bit whatever axis it goes along."""

import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import linear_attention, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.backend import TritonBackend
from memformer_kernels.calls import plan
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case, normal, seeded
from tests.memformer_kernels.own_models.options import OPTIONS, heads

RESERVE_NOTHING = 0x4000
"""Linux's MAP_NORESERVE, which Python names from 3.13 on: only pages that are written take memory."""

BATCH_LAST = "batch last"
TASKS_IN_ALL = 20_000_000
"""Of a tensor (N, D, B), of which the first few tasks are used as z."""


def _strides(shape: torch.Size, layout: int | str) -> list[int]:
    """Of a view whose last entry along one axis lies past 2^31 numbers, or of (N, D, 20M) with its tasks in front."""
    if layout == BATCH_LAST:
        return [1, shape[2] * TASKS_IN_ALL, TASKS_IN_ALL]
    strides, size = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if axis != layout:
            strides[axis], size = size, size * shape[axis]
    strides[int(layout)] = 2**31 // (shape[int(layout)] - 1) + 1
    return strides


def _spread(tensor: Tensor, layout: int | str) -> Tensor:
    """The same numbers far apart; an offset that wraps around lands on zeros in front of them."""
    strides = _strides(tensor.shape, layout)
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    assert numbers > 2**31
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | RESERVE_NOTHING
    room = torch.frombuffer(mmap.mmap(-1, (2**31 + numbers) * tensor.itemsize, flags=flags), dtype=tensor.dtype)
    return room.as_strided(tensor.shape, strides, 2**31).copy_(tensor)


NETWORKS: dict[str, tuple[str, str]] = {
    "response-only": ("response-only", "gram"),
    "response column": ("response-only", "token"),
    "matrices": ("block", "gram"),
    "tokens": ("block", "token"),
}


def _same_results(structure: str, algorithm: str, layout: int | str, shape: tuple[int, int, int]) -> None:
    """Tokens, predictions after every layer, the loss and gradients, of tokens side by side and of tokens far apart."""
    tasks, tokens, width = shape
    case = make_case(structure=structure, tasks=tasks, tokens=tokens, width=width, layers=2, heads=1).to(torch.float32)
    options: dict[str, Any] = {"context": tokens - 2, "backend": "triton", "algorithm": algorithm}
    target = normal(seeded(1), tasks, 2).float()

    def run(z: Tensor) -> tuple[Tensor, ...]:
        z = z.detach().requires_grad_()
        network = (case.q, *case.parameters)
        stack = memformer_stack(z, *network, **options)
        every = memformer_predict(z, *network, layers=True, **options)
        loss = memformer_loss(z, target, *network, **options)
        total = stack.square().sum() + every.square().sum() + loss
        return stack.detach(), every.detach(), loss.detach(), *torch.autograd.grad(total, [z, case.q])

    near = case.z.detach()
    for made, expected in zip(run(_spread(near, layout)), run(near), strict=True):
        assert torch.equal(made, expected)


TOKEN_AXES = [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2]


@pytest.mark.parametrize("layout", TOKEN_AXES)
@pytest.mark.parametrize("name", slow_but(["response-only", "response column"], NETWORKS))
def test_networks(name: str, layout: int) -> None:
    _same_results(*NETWORKS[name], layout, (3, 5, 4))


@pytest.mark.parametrize(
    "name",
    ["response-only", "response column", *(pytest.param(x, marks=pytest.mark.slow) for x in ("matrices", "tokens"))],
)
def test_a_few_tasks_of_a_large_batch_that_lies_last(name: str) -> None:
    _same_results(*NETWORKS[name], BATCH_LAST, (4, 21, 6))


@pytest.mark.parametrize("layout", TOKEN_AXES)
@pytest.mark.parametrize("structure", ["response-only", pytest.param("block", marks=pytest.mark.slow)])
def test_contexts_spread_over_programs(structure: str, layout: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "gram_splits", lambda tasks, tokens: 2)
    _same_results(structure, "gram", layout, (3, 40, 3))


@pytest.mark.parametrize("layout", TOKEN_AXES)
@pytest.mark.parametrize("algorithm", [pytest.param("gram", marks=pytest.mark.slow), "token"])
def test_large_tasks(algorithm: str, layout: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDEST_MATRICES", 0)
    _same_results("block", algorithm, layout, (3, 5, 4))


@pytest.mark.parametrize("layout", [0, 1, 2, BATCH_LAST])
def test_context_gram(layout: int | str) -> None:
    z, backend = normal(seeded(5), 4, 21, 6).float(), TritonBackend()
    far = _spread(z, layout)
    assert torch.equal(backend.context_gram(far, None, 20), backend.context_gram(z, None, 20))
    grad = normal(seeded(6), 4, 6, 6).float()
    made, expected = (backend.context_gram_backward(grad, x, None, 20) for x in (far, z))
    assert torch.equal(made, expected)


@pytest.mark.parametrize("layout", [*(pytest.param(x, marks=pytest.mark.slow) for x in range(3)), 3])
@pytest.mark.parametrize("name", ["whole", "causal", "packed"])
def test_attention(name: str, layout: int) -> None:
    q, k, v = (x.detach().float() for x in heads(3, 20, 4, heads=3))
    grad = normal(seeded(7), *v.shape).float()

    def run(place: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        leaves = [place(x).detach().requires_grad_() for x in (q, k, v)]
        out = linear_attention(*leaves, backend="triton", **OPTIONS[name](3, 20))
        return out.detach(), *torch.autograd.grad(out, leaves, place(grad))

    for made, expected in zip(run(lambda x: _spread(x, layout)), run(lambda x: x), strict=True):
        assert torch.equal(made, expected)
