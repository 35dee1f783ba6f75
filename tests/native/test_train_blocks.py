"""The trainer on CUDA: whole blocks and groups of blocks run on the host, thread by thread, against the definition."""

import copy
import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    train_steps,
)
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D, N, alone, model, tensors
from tests.native.block_calls import COMPILER, compile_blocks
from tests.native.train_calls import AUTOMATIC, PERSISTENT, REPLAY, TrainCall

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]

ERROR = 3e-5
SHAPED = {"factor": FACTOR, "weights": WEIGHTS}
INTEGRATED = GaussianStatistics(D, N, 70, query="integrated", **SHAPED)  # type: ignore[arg-type]
Train = Callable[..., Tensor]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("train", tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="session")
def train(library: ctypes.CDLL) -> Train:
    """Takes steps on the host blocks; `order` of the threads, `instance` of every size, processors of the device."""

    def run(
        held: TrainState,
        sampler: Sampler,
        steps: int,
        optimizer: Optimizer,
        *,
        mode: int = PERSISTENT,
        order: int = 0,
        any_size: bool = False,
        processors: int = 132,
        limit: int | None = None,
    ) -> Tensor:
        call = TrainCall(held, sampler, steps, optimizer, limit)
        numbers = (ctypes.c_int64 * len(call.numbers))(*call.numbers)
        library.train(
            numbers, ctypes.c_int(mode), ctypes.c_uint(order), ctypes.c_int(any_size), ctypes.c_int(processors)
        )
        held.step += steps
        return call.losses

    return run


def state(models: int = 1, *, layers: int = 3, d: int = D, **options: Any) -> TrainState:
    return TrainState.of([model(layers, seed, torch.float32, d=d, **options) for seed in range(models)], seeds=11)


def check(
    train: Train, held: TrainState, sampler: Sampler, optimizer: Optimizer, steps: int = 4, **options: Any
) -> None:
    """Trace and state are those of the definition."""
    other = copy.deepcopy(held)
    own = train(held, sampler, steps, optimizer, **options)
    theirs = train_steps(other, sampler, steps, optimizer=optimizer, backend="torch", max_skipped=options.get("limit"))
    torch.testing.assert_close(own, theirs, rtol=ERROR, atol=0, equal_nan=True)
    for left, right in zip(tensors(held), tensors(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5, equal_nan=True)


def given(count: int = 150, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Tasks with two queries behind so many tokens of padding, which hold NaN."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, N + 2, D, generator=generator)
    y = (x @ torch.randn(count, D, 1, generator=generator))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, N:, D] = 0.25
    return torch.cat([z[:, :N], torch.full((count, padding, D + 1), torch.nan), z[:, N:]], 1), y[:, N:]


SAMPLERS: dict[str, Sampler] = {
    "integrated": INTEGRATED,
    "statistics": GaussianStatistics(D, N + 1, 70, queries=2, noise=0.2, resample_every=3, **SHAPED),  # type: ignore[arg-type]
    "tokens": GaussianTokens(D, N, 70, queries=2, noise=0.2, **SHAPED),  # type: ignore[arg-type]
    "tokens, integrated": GaussianTokens(D, 70, 33, query="integrated", resample_every=2),
    "full batch": FixedTasks(*given(), N),
    "epochs": FixedTasks(*given(), N, batch=40, resample_every=2),
    "padded full batch": FixedTasks(*given(padding=3), N),
    "padded epochs": FixedTasks(*given(padding=2), N, batch=40, resample_every=2),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(0.02, clip=0.5, schedule=Schedule("cosine", warmup=2, steps=6)),
    "adam, decay": Adam(0.02, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.01, clip=0.3, clip_by="model"),
    "adamw": AdamW(0.02, weight_decay=0.1, schedule=Schedule("step", decay_every=2)),
    "sgd": SGD(0.05, weight_decay=0.01),
    "nesterov": SGD(0.02, momentum=0.9, nesterov=True, clip=0.5),
}
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"rule": "linear", "heads": 2},
    "cgd": {"rule": "cgd", "heads": 2},
    "recursive": {"rule": "recursive", "granularity": "feature"},
    "shared": {"rule": "lfom_shared", "granularity": "scalar"},
    "residual": {"rule": "lfom_residual", "granularity": "scalar", "heads": 2},
}
HOT = GaussianStatistics(5, 20, 300, query="integrated")


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_every_sampler(train: Train, sampler: Sampler) -> None:
    check(train, state(), sampler, OPTIMIZERS["adam"])


@pytest.mark.parametrize("mode", [PERSISTENT, REPLAY], ids=["persistent", "replay"])
@pytest.mark.parametrize("every", [1, 2])
def test_draws_past_32_bits(train: Train, mode: int, every: int) -> None:
    """The draw's upper half changes within a call, at its second step or, with a batch kept, at its third."""
    held = state(2)
    held.step = (2**32 - 1) * every
    check(train, held, replace(INTEGRATED, resample_every=every), SGD(0.02), 4, mode=mode)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_optimizer(train: Train, optimizer: Optimizer) -> None:
    check(train, state(), INTEGRATED, optimizer)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_every_model(train: Train, options: dict[str, Any]) -> None:
    check(train, state(**options), INTEGRATED, OPTIMIZERS["adam, decay"], order=1)


@pytest.mark.parametrize(
    ("d", "n", "layers"), [(1, 1, 1), (2, 5, 5), (5, 21, 4), (5, 9, 5), (8, 9, 2), (5, 5, 4), (6, 6, 1)]
)
def test_sizes(train: Train, d: int, n: int, layers: int) -> None:
    held = TrainState.of([model(layers, 0, torch.float32, d=d)], seeds=2**63 - 1, streams=[2**32 - 1])
    check(train, held, GaussianStatistics(d, n, 20, noise=0.1), SGD(0.01, clip=1.0))


def test_the_hot_instance_with_everything(train: Train) -> None:
    """d = 5 and four layers, traces in registers: noise, queries, factors, and a mixture of rules' parameters."""
    factor = torch.eye(5) + 0.1 * torch.ones(5, 5)
    shaped = GaussianStatistics(5, 12, 140, queries=2, noise=0.3, factor=factor, weights=factor)
    check(train, state(layers=4, d=5), shaped, OPTIMIZERS["adam"], order=7)
    check(train, state(layers=2, d=5, rule="recursive", granularity="scalar"), HOT, OPTIMIZERS["adam"])


@pytest.mark.parametrize("sampler", [HOT, INTEGRATED, SAMPLERS["epochs"]], ids=["hot", "any", "epochs"])
def test_persistent_and_replayed_steps_are_the_same_bits(train: Train, sampler: Sampler) -> None:
    """Groups of blocks at a barrier, or launches of few and of many blocks; threads in any order; an ensemble."""
    runs = []
    for options in (
        {"mode": PERSISTENT},
        {"mode": PERSISTENT, "order": 5},
        {"mode": REPLAY, "processors": 1},
        {"mode": REPLAY, "order": 1},
    ):
        held = state(2, d=sampler.d)
        runs.append([train(held, sampler, 3, OPTIMIZERS["adam"], **options), *tensors(held)])
    for other in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], other, strict=True))


def test_both_instances_make_the_same_steps(train: Train) -> None:
    own, other = (state(layers=4, d=5) for _ in range(2))
    left = train(own, HOT, 3, OPTIMIZERS["adam"])
    right = train(other, HOT, 3, OPTIMIZERS["adam"], any_size=True)
    torch.testing.assert_close(left, right, rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch", [1, 128, 129, 1024, 2049])
def test_batches(train: Train, batch: int) -> None:
    """Units and blocks of tasks, whole and not, of which some have no tasks."""
    check(train, state(layers=1), replace(INTEGRATED, batch=batch), SGD(0.05), 2)


def test_more_than_one_group_of_blocks(train: Train) -> None:
    """17 blocks of 1024 tasks: persistent and replayed agree in every bit, and with the definition."""
    held = [state(layers=1, d=1) for _ in range(2)]
    sampler = GaussianStatistics(1, 2, 16 * 1024 + 5, query="integrated")
    check(train, held[0], sampler, SGD(0.05), 1)
    losses = train(held[1], sampler, 1, SGD(0.05), mode=REPLAY, processors=3)
    assert torch.equal(held[0].parameters["q"], held[1].parameters["q"])
    assert bool(torch.isfinite(losses).all())


def test_calls_continue_each_other(train: Train) -> None:
    whole, parts = state(2), state(2)
    expected = train(whole, INTEGRATED, 5, OPTIMIZERS["adam"])
    found = torch.cat([train(parts, INTEGRATED, steps, OPTIMIZERS["adam"]) for steps in (2, 3)])
    assert torch.equal(found, expected)
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))


def test_ensembles(train: Train) -> None:
    """Depths, learning rates and streams of their own: each model has the trace that it has alone."""
    models = [model(layers, layers, torch.float32) for layers in (1, 2, 3)]
    together, rates = TrainState.of(models, seeds=[3, 4, 3], streams=[0, 7, 1]), (0.01, 0.05, 0.02)
    parts = [alone(together, index) for index in range(3)]
    for part, whole in zip(parts, range(3), strict=True):
        part.masks = {name: mask[whole : whole + 1].clone() for name, mask in together.masks.items()}
    losses = train(together, INTEGRATED, 4, Adam(rates, clip=1.0))
    for index, part in enumerate(parts):
        assert torch.equal(train(part, INTEGRATED, 4, Adam(rates[index], clip=1.0))[:, 0], losses[:, index])
    check(train, TrainState.of(models, seeds=5), INTEGRATED, Adam(rates))


@pytest.mark.parametrize("mode", [PERSISTENT, REPLAY], ids=["persistent", "replay"])
def test_steps_that_are_not_finite(train: Train, mode: int) -> None:
    """Skipped, counted, stopped at the limit, and nobody else's business; a call that follows goes on."""
    held = state(3)
    held.parameters["gamma"][1] = 1e30
    held.parameters["q"][2, 0, 0, 0, 0] = torch.nan
    twin = copy.deepcopy(held)
    check(train, held, INTEGRATED, OPTIMIZERS["adam"], 5, mode=mode, limit=3)
    assert held.skipped.tolist() == [0, 5, 5]
    train_steps(twin, INTEGRATED, 5, optimizer=OPTIMIZERS["adam"], backend="torch", max_skipped=3)
    check(train, held, INTEGRATED, OPTIMIZERS["adam"], 2, mode=mode, limit=9)


def test_bias_is_corrected_by_the_steps_that_were_taken(train: Train) -> None:
    """A gradient that overflows in the first steps alone: Adam's count starts where the first step is taken."""
    held = state(1)
    held.skipped[0], held.step = 2, 3
    check(train, held, INTEGRATED, OPTIMIZERS["adam, decay"], 3)


def test_what_does_not_fit_in_shared_memory(train: Train) -> None:
    held = state(layers=12, d=8, rule="recursive", granularity="scalar", heads=4)
    check(train, held, GaussianStatistics(8, 10, 40, query="integrated"), SGD(0.001), 2)


def test_a_hot_model_that_does_not_fit_in_shared_memory(train: Train) -> None:
    """As many heads as make the flat parameters of d = 5 and four layers too large for a block."""
    check(train, state(d=5, layers=4, rule="linear", heads=40), HOT, OPTIMIZERS["adam"], steps=2)


def test_when_steps_are_persistent(library: ctypes.CDLL) -> None:
    """Few tasks, or models that fill the device; never more blocks than it holds at a time."""

    def group(models: int, batch: int, capability: int = 90, processors: int = 132) -> int:
        call = TrainCall(state(models), replace(INTEGRATED, batch=batch), 2, SGD(0.1))
        numbers = (ctypes.c_int64 * len(call.numbers))(*call.numbers)
        return int(library.train_is_persistent(numbers, ctypes.c_int(capability), ctypes.c_int(processors)))

    assert [group(1, batch) for batch in (1, 300, 1000, 2049, 4096, 8192)] == [1, 2, 8, 8, 8, 0]
    assert [group(models, 4096) for models in (9, 17, 40)] == [8, 8, 8]
    assert [group(models, 100_000) for models in (1, 17, 40, 49, 50)] == [0, 0, 0, 8, 0]
    assert [group(models, 1000) for models in (17, 50, 200)] == [8, 4, 1]
    assert (group(8, 1000, 90, 4), group(8, 1000, 80, 4)) == (1, 1)


def test_automatic_takes_one_of_them(train: Train) -> None:
    check(train, state(), INTEGRATED, OPTIMIZERS["sgd"], 2, mode=AUTOMATIC)
