"""Linear attention on the Triton kernels: parts of heads, splits of sequences, and the sums that gradients share."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import linear_attention
from memformer_kernels.backends.triton import attention, launch
from memformer_kernels.backends.triton.attention_kernels import Constants
from memformer_kernels.testing import FLOAT64_ERROR, relative_error
from tests.memformer_kernels.cases import normal, seeded


def _leaves(tokens: int, width: int, value_width: int) -> list[Tensor]:
    generator = seeded(3)
    shapes = [(1, tokens, 1, width), (1, tokens, 1, width), (1, tokens, 1, value_width)]
    return [normal(generator, *shape, scale=width**-0.5).requires_grad_() for shape in shapes]


def _made(backend: str, leaves: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    out = linear_attention(*leaves, backend=backend, **options)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "a part of the tokens": {"context": 9},
    "causal": {"causal": True},
    "causal, masked": {"causal": True, "mask": (torch.arange(300) % 5 != 0)[None]},
    "packed": {"cu_seqlens": torch.tensor([0, 7, 20])},
    "packed, causal": {"cu_seqlens": torch.tensor([0, 7, 20]), "causal": True},
}


def _agree(leaves: list[Tensor], options: dict[str, Any]) -> None:
    for ours, theirs in zip(_made("triton", leaves, options), _made("torch", leaves, options), strict=True):
        assert relative_error(ours, theirs) <= FLOAT64_ERROR


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("packed")])
def test_splits_are_right_with_gradients(name: str) -> None:
    _agree(_leaves(300, 5, 9), OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("widths", [(70, 20), (20, 140)])
def test_parts_are_right_with_gradients(name: str, widths: tuple[int, int]) -> None:
    options = dict(OPTIONS[name])
    if "mask" in options:
        options["mask"] = options["mask"][:, :20]
    _agree(_leaves(20, *widths), options)


def _launched(leaves: list[Tensor], causal: bool) -> list[str]:
    """The kernels of a backward."""
    found: list[str] = []
    out = linear_attention(*leaves, causal=causal, backend="triton")
    with (
        torch.autograd.set_multithreading_enabled(False),
        launch.observed(lambda kernel, _, arguments: found.append(kernel.__name__)),
    ):
        torch.autograd.grad(out.sum(), [x for x in leaves if x.requires_grad])
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_keys_and_values_share_their_sums(causal: bool) -> None:
    q, k, v = _leaves(300, 5, 9)
    assert sorted(_launched([q, k, v], causal)) == ["attend_kernel"] * 3 + ["state_kernel"] * 2
    assert sorted(_launched([q.detach(), k, v.detach()], causal)) == ["attend_kernel", "state_kernel"]


def test_no_sums_are_made_where_nothing_lies_before() -> None:
    assert _launched(_leaves(40, 5, 9), causal=True) == ["attend_kernel"] * 3


def test_what_a_head_is_cut_into() -> None:
    def cut(width: int, dtype: torch.dtype, capability: int) -> Constants:
        q = torch.empty(1, 8, 1, width, dtype=dtype)
        with launch.compiling_for(capability):
            return attention._constants(q, width, "causal")[0]

    widths = (1, 16, 17, 64, 65, 129, 192, 256)
    assert [cut(width, torch.float32, 90).PARTS for width in widths] == [1, 1, 1, 1, 2, 3, 3, 4]
    assert cut(256, torch.float32, 90).PART == cut(256, torch.bfloat16, 80).PART == 64
    # As many as a product by wgmma has rows, where there is one; by what a GPU has, not by its number.
    assert [cut(64, torch.bfloat16, capability).CHUNK for capability in (80, 89, 90, 100, 120)] == [32, 32, 64, 32, 32]
