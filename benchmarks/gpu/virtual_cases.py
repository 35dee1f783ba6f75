"""The calls whose kernels `virtual` counts: the hot ones of both GPU backends, each on as many tasks as fill one
multiprocessor with whole thread blocks, or on a whole GPU where the work is a few thread blocks'."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.workloads import TILE_64, TILE_128, W_FULL, W, Workload
from memformer_kernels import (
    Adam,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    register_update,
)
from memformer_kernels.calls.checks import Backend
from memformer_kernels.training import cuda

CPU = torch.device("cpu")
NUMBER = 4
"""Bytes of a float."""

HEADS, WIDE = 4, 64
"""Of attention: heads, and features of each."""

LARGE_SHARE = 30_336
"""Tasks of one multiprocessor where an H200 has as many as `benchmarks.gpu.trainer` times, in whole turns of blocks."""

REGISTERS, UPDATED = 4, 512
"""Of the register update: registers, and how wide each is."""


class Case(NamedTuple):
    """A call. unit: what its counts are divided by; units: how many it is made of; floor: bytes that one must move.

    make: prepares the arguments; what it returns makes the call. beyond: the same of a shorter call, whose counts are
    taken off. whole: on as many multiprocessors as an H200 has.
    """

    name: str
    backend: Literal["cuda", "triton"]
    unit: str
    units: int
    floor: int
    make: Callable[[], Callable[[], object]]
    beyond: Callable[[], Callable[[], object]] | None = None
    whole: bool = False


def loss(workload: Workload, backend: Backend) -> Callable[[], object]:
    """A loss and its gradients in every parameter."""
    z, target = make_batch(workload, 1, CPU)
    parameters = make_parameters(workload, 0, CPU)

    options: dict[str, Any] = {**parameters.named, "context": workload.n, "backend": backend}

    def call() -> object:
        return torch.autograd.grad(memformer_loss(z, target, **options), list(parameters))

    return call


def of_many(workload: Workload) -> Callable[[], object]:
    """The same by the Triton kernels of a batch that fills a GPU, of whose tasks no context is split."""
    from memformer_kernels.backends.triton import rules

    call = loss(workload, "triton")

    def with_whole_contexts() -> object:
        with mock.patch.object(rules, "SPLIT_BELOW", 0):
            return call()

    return with_whole_contexts


def _tile(name: str, workload: Workload, batch: int) -> Case:
    of_batch = workload.with_batch(batch)
    return Case(name, "triton", "task", batch, workload.bytes_per_task, lambda: of_many(of_batch))


def _draw(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).mul_(scale)


def _layer(workload: Workload, backend: Backend) -> Callable[[], object]:
    """One layer with one register before it; features stay nowhere, as inside another model."""
    batch, rows, width = workload.batch, workload.tokens, workload.width
    z, q, past = _draw(batch, rows, width), _draw(1, width, width, scale=0.1), _draw(batch, 1, rows, width)
    gamma = _draw(2, 1, 1, width)
    return lambda: memformer_layer(z, q, q, [past], gamma, context=workload.n, backend=backend)


def _gram(batch: int) -> Callable[[], object]:
    z = _draw(batch, W.tokens, W.width)
    return lambda: context_gram(z, W.n)


def _solve(batch: int) -> Callable[[], object]:
    x = _draw(batch, W.n, W.d)
    step = -0.3 * torch.eye(W.d, dtype=torch.float32, device=CPU)
    h, b, a = x.mT @ x / W.n, _draw(batch, W.d), step.expand(W.layers, -1, -1)
    gamma = _draw(W.layers, W.layers, W.d)
    return lambda: lfom_solve(h, b, a, gamma, backend="cuda")


def _train(
    sampler: GaussianStatistics | GaussianTokens, steps: int = 1, launches: str = "replay"
) -> Callable[[], object]:
    """Optimiser steps: one, by the launches of a large batch, where nothing else is said."""
    state = TrainState.of([make_parameters(W, 0, CPU).named], seeds=1)
    losses = torch.zeros(steps, 1, dtype=torch.float64, device="cpu")
    return lambda: cuda.train(state, sampler, Adam(1e-3), None, losses, launches=launches)


def _step(batch: int) -> Case:
    """A step among many in one launch: 12 steps less 2. Nothing that it must move is not in a cache."""
    sampler = GaussianStatistics(W.d, W.n, batch, query="integrated")

    def steps(count: int) -> Callable[[], Callable[[], object]]:
        return lambda: _train(sampler, count, "persistent")

    return Case(f"step, B = {batch}", "cuda", "step", 10, 0, steps(12), beyond=steps(2), whole=True)


def _update(rows: int) -> Callable[[], object]:
    z, gamma = _draw(rows, UPDATED), _draw(REGISTERS, UPDATED)
    registers = [_draw(rows, UPDATED) for _ in range(REGISTERS)]
    return lambda: register_update(z, registers, gamma, backend="triton")


def _attention(tokens: int, causal: bool) -> Callable[[], object]:
    q, k, v = (_draw(1, tokens, HEADS, WIDE) for _ in range(3))
    return lambda: linear_attention(q, k, v, causal=causal, backend="triton")


def _network(name: str, backend: Literal["cuda", "triton"], workload: Workload, batch: int) -> Case:
    return Case(
        name, backend, "task", batch, workload.bytes_per_task, lambda: loss(workload.with_batch(batch), backend)
    )


def _layer_bytes(workload: Workload) -> int:
    """Tokens and a register read, both written."""
    return 4 * NUMBER * workload.tokens * workload.width


def cases() -> tuple[Case, ...]:
    """All of them. d = 5, n = 20, four layers where nothing else is said, float32."""
    block, block_full = replace(W, structure="block"), replace(W_FULL, structure="block")
    small, wide = W.with_batch(8448), replace(TILE_64, d=63, n=511, batch=4)
    gram = NUMBER * (W.n * W.width + W.width**2)
    statistics = GaussianStatistics(W.d, W.n, LARGE_SHARE, query="integrated")
    drawn = GaussianTokens(W.d, W.n, 1536)
    attention = 4 * NUMBER * HEADS * WIDE
    return (
        _network("W", "cuda", W, 8448),
        _network("W_full", "cuda", W_FULL, 67584),
        _network("W, features move", "cuda", block, 4224),
        _network("W_full, features move", "cuda", block_full, 1056),
        Case("layer, D = 6", "cuda", "task", small.batch, _layer_bytes(small), lambda: _layer(small, "cuda")),
        Case("context_gram", "cuda", "task", 8192, gram, lambda: _gram(8192)),
        Case("lfom_solve", "cuda", "task", 8192, NUMBER * (W.d**2 + 2 * W.d), lambda: _solve(8192)),
        Case("trainer, statistics", "cuda", "task", statistics.batch, 0, lambda: _train(statistics)),
        Case("trainer, tokens", "cuda", "task", drawn.batch, 0, lambda: _train(drawn)),
        _step(1000),
        _network("W", "triton", W, 1024),
        _network("W_full", "triton", W_FULL, 512),
        _tile("tile, d = 64", TILE_64, 512),
        _tile("tile, d = 128", TILE_128, 64),
        Case("layer, D = 64", "triton", "task", wide.batch, _layer_bytes(wide), lambda: _layer(wide, "triton")),
        Case("register_update", "triton", "row", 512, (REGISTERS + 2) * NUMBER * UPDATED, lambda: _update(512)),
        Case("linear_attention", "triton", "token", 1024, attention, lambda: _attention(1024, False)),
        Case("linear_attention, causal", "triton", "token", 1024, attention, lambda: _attention(1024, True)),
    )
