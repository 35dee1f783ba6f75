"""Calls of linear attention and of the register update, one for every option, in float64."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import build_info, library
from tests.memformer_kernels.cases import normal, seeded

BACKENDS = [name for name in ("torch", "cpu") if build_info().backends[name].available]

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)
needs_native = pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is missing")


def each_instruction_set() -> Iterator[str]:
    """The native library's instruction sets that this processor has, each in use while it is the loop's turn."""
    library.load("cpu")
    native = torch.ops.memformer_native
    before = native.instruction_set()
    try:
        for name in library.status("cpu").instruction_sets:
            try:
                native.use_instruction_set(name)
            except RuntimeError:
                continue
            yield name
    finally:
        native.use_instruction_set(before)


def bounds(tokens: int) -> Tensor:
    """Sequences that are long, empty, short and of one token."""
    return torch.tensor([0, tokens // 2, tokens // 2, tokens - 1, tokens])


def _some(batch: int, tokens: int) -> Tensor:
    kept = torch.rand(batch, tokens, generator=seeded(7)) < 0.6
    kept[:, 0] = True
    return kept


OPTIONS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "whole": lambda batch, tokens: {},
    "context": lambda batch, tokens: {"context": tokens // 2 + 1},
    "ragged": lambda batch, tokens: {"context": torch.arange(batch) % tokens + 1},
    "mask": lambda batch, tokens: {"mask": _some(batch, tokens)},
    "mask and context": lambda batch, tokens: {"mask": _some(batch, tokens), "context": tokens // 2 + 1},
    "mask and ragged": lambda batch, tokens: {
        "mask": _some(batch, tokens),
        "context": torch.arange(batch) % tokens + 1,
    },
    "packed": lambda batch, tokens: {"cu_seqlens": bounds(tokens)},
    "causal": lambda batch, tokens: {"causal": True},
    "causal mask": lambda batch, tokens: {"causal": True, "mask": _some(batch, tokens)},
    "causal packed": lambda batch, tokens: {"causal": True, "cu_seqlens": bounds(tokens).int()},
}

SHAPES = ((4,), (4, 1), (4, 33), (4, 7, 1), (4, 7, 33), (4, 3, 1, 1), (4, 3, 1, 33), (4, 3, 7, 33))
"""Of gamma, for four registers of tokens (3, 7, 33)."""


def heads(batch: int, tokens: int, width: int, value_width: int | None = None, heads: int = 2) -> list[Tensor]:
    """q, k, v as leaves."""
    generator = seeded(tokens + width)
    shape = (batch, tokens, heads)
    widths = (width, width, width if value_width is None else value_width)
    return [normal(generator, *shape, size, scale=width**-0.25).requires_grad_() for size in widths]


def tokens_and_registers(shape: tuple[int, ...], gamma: tuple[int, ...]) -> tuple[Tensor, list[Tensor], Tensor]:
    """z, the registers and gamma as leaves."""
    generator = seeded(len(shape))
    z, weights = normal(generator, *shape).requires_grad_(), normal(generator, *gamma).requires_grad_()
    return z, [normal(generator, *shape).requires_grad_() for _ in range(gamma[0])], weights


def with_gradients(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The output and its gradients from random ones."""
    grad = normal(seeded(99), *output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, list(leaves), grad)]
