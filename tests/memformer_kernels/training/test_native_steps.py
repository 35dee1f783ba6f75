"""The native trainer takes the steps of its definition, for every sampler, optimiser, kind of model and size."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    Schedule,
    TrainState,
    build_info,
    explain_training,
    train_steps,
)
from memformer_kernels.testing import GRADIENT_FACTOR, relative_error
from memformer_kernels.training import arguments, definition, native
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import FACTOR, WEIGHTS, D, N, model, state, tensors, two_drawn

pytestmark = pytest.mark.skipif(
    not build_info().backends["cpu"].available, reason="the native library is not built here"
)

STEPS = 200
EXACT = 1e-8
SHAPED = {"factor": FACTOR, "weights": WEIGHTS}
INTEGRATED = GaussianStatistics(D, N, 48, query="integrated", **SHAPED)  # type: ignore[arg-type]


def _given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, N + 2, D, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(30, D, 1, generator=generator, dtype=torch.float64))[..., 0]
    z = torch.cat([x, y[..., None]], -1)
    z[:, N:, D] = 0
    return z.to(dtype), y[:, N:].to(dtype)


def _labelled() -> tuple[Tensor, Tensor]:
    """Given tasks whose queries, all tokens from the fourth on, have their labels, with noise that targets lack."""
    z, _ = _given()
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(30, N - 1, generator=generator, dtype=torch.float64)
    z[:, 3:, D] = target + 0.1 * torch.randn(30, N - 1, generator=generator, dtype=torch.float64)
    return z, target


def _draw_labelled(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    z, target = two_drawn(batch, generator)
    z[:, N:, D] = target
    return z, target


SAMPLERS: dict[str, Sampler] = {
    "integrated": INTEGRATED,
    "statistics": GaussianStatistics(D, N + 1, 48, queries=2, noise=0.2, resample_every=3, **SHAPED),  # type: ignore[arg-type]
    "tokens": GaussianTokens(D, N, 48, queries=2, noise=0.2, **SHAPED),  # type: ignore[arg-type]
    "statistics, noise of each task": GaussianStatistics(D, N, 48, query="integrated", noise=(0.1, 0.9), **SHAPED),  # type: ignore[arg-type]
    "tokens, noise of each task": GaussianTokens(D, N, 48, queries=2, noise=(0.0, 1.0), **SHAPED),  # type: ignore[arg-type]
    "prefixes, noise of each task": GaussianTokens(D, 2, 48, queries=N, query="prefixes", noise=(0.0, 1.0)),
    "tokens, integrated": GaussianTokens(D, N, 48, query="integrated", resample_every=2),
    "full batch": FixedTasks(*_given(), N),
    "epochs": FixedTasks(*_given(), N, batch=7, resample_every=2),
    "drawn": DrawnTasks(two_drawn, D, N, 48, queries=2, resample_every=2),
    "prefixes": GaussianTokens(D, 2, 48, queries=N, query="prefixes", noise=0.2, **SHAPED),  # type: ignore[arg-type]
    "prefixes without noise": GaussianTokens(D, 1, 48, queries=3, query="prefixes"),
    "prefixes, full batch": FixedTasks(*_labelled(), 3, query="prefixes"),
    "prefixes, epochs": FixedTasks(*_labelled(), 3, batch=7, query="prefixes"),
    "prefixes, drawn": DrawnTasks(_draw_labelled, D, N, 48, queries=2, query="prefixes"),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(0.02, clip=0.5, schedule=Schedule("cosine", warmup=5, steps=STEPS)),
    "adam, decay": Adam(0.02, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.01, clip=0.3, clip_by="model"),
    "adamw": AdamW(0.02, weight_decay=0.1, schedule=Schedule("step", decay_every=50)),
    "sgd": SGD(0.05, weight_decay=0.01),
    "momentum": SGD(0.02, momentum=0.9, clip=0.5),
    "nesterov": SGD(0.02, momentum=0.9, nesterov=True, clip=0.5, clip_by="model"),
}
MODELS: dict[str, dict[str, Any]] = {
    "response-only": {},
    "linear": {"rule": "linear", "heads": 2},
    "cgd": {"rule": "cgd", "heads": 2},
    "recursive": {"rule": "recursive", "granularity": "feature"},
    "shared": {"rule": "lfom_shared", "granularity": "scalar"},
    "block": {"structure": "block"},
    "block, two heads": {"structure": "block", "rule": "cgd", "granularity": "feature", "heads": 2},
}


def _traces(held: TrainState, sampler: Sampler, optimizer: Optimizer, steps: int = 60) -> tuple[Tensor, Tensor]:
    """The native trace and the definition's, after a look at what they leave behind."""
    other = copy.deepcopy(held)
    own = train_steps(held, sampler, steps, optimizer=optimizer, backend="cpu")
    theirs = train_steps(other, sampler, steps, optimizer=optimizer, backend="torch")
    for left, right in zip(tensors(held), tensors(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
    assert held.step == other.step
    return own, theirs


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_every_sampler(sampler: Sampler) -> None:
    own, theirs = _traces(state(), sampler, OPTIMIZERS["adam"])
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_optimizer(optimizer: Optimizer) -> None:
    own, theirs = _traces(state(), INTEGRATED, optimizer, 40)
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("kind", ["integrated", "tokens", "prefixes"])
def test_every_model(options: dict[str, Any], kind: str) -> None:
    own, theirs = _traces(state(**options), SAMPLERS[kind], OPTIMIZERS["adam, decay"], 12)
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


@pytest.mark.parametrize(
    "kind", ["tokens", "tokens, noise of each task", "epochs", "drawn", "prefixes", "prefixes, epochs"]
)
def test_dense_models(kind: str) -> None:
    own, theirs = _traces(state(structure="dense"), SAMPLERS[kind], OPTIMIZERS["adam"], 12)
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


@pytest.mark.parametrize(("d", "n", "layers"), [(1, 1, 1), (2, 5, 1), (5, 20, 4), (8, 9, 2), (9, 40, 2), (15, 15, 2)])
def test_sizes(d: int, n: int, layers: int) -> None:
    held = TrainState.of([model(layers, d=d)], seeds=2**63 - 1, streams=[2**32 - 1])
    sampler = GaussianStatistics(d, n, 20, noise=0.1)
    own, theirs = _traces(held, sampler, SGD(0.01, clip=1.0), 10)
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["integrated", "tokens", "prefixes", "full batch"])
def test_float32_is_within_its_budget(kind: str) -> None:
    """Of 4 models' 200 losses, against float64: at most three times the error of the definition in float32."""
    sampler, single = SAMPLERS[kind], SAMPLERS[kind]
    if isinstance(sampler, FixedTasks):
        single = FixedTasks(*_given(torch.float32), N)
    exact = train_steps(state(4), sampler, STEPS, optimizer=OPTIMIZERS["adam"], backend="torch")
    own, theirs = (
        train_steps(state(4, dtype=torch.float32), single, STEPS, optimizer=OPTIMIZERS["adam"], backend=backend)
        for backend in ("cpu", "torch")
    )
    assert relative_error(own, exact) <= GRADIENT_FACTOR * relative_error(theirs, exact)


def test_many_blocks_of_tasks() -> None:
    own, theirs = _traces(state(2), GaussianStatistics(D, N, 2500, query="integrated"), OPTIMIZERS["adam"], 5)
    torch.testing.assert_close(own, theirs, rtol=EXACT, atol=0)


def test_long_epochs_are_cut_into_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of given tasks is handed over a few draws at a time."""
    whole, parts = state(2), state(2)
    expected = train_steps(whole, SAMPLERS["epochs"], 11, optimizer=OPTIMIZERS["adam"], backend="cpu")
    monkeypatch.setattr(arguments, "_INDEX_BYTES", 1)
    assert torch.equal(
        train_steps(parts, SAMPLERS["epochs"], 11, optimizer=OPTIMIZERS["adam"], backend="cpu"), expected
    )


def test_ensembles_of_depths_rates_and_masks() -> None:
    """Depths 1 to 3, three learning rates; each model as the definition trains it, and as it is trained alone."""
    models = [model(depth, depth) for depth in (1, 2, 3)]
    own = torch.eye(3, dtype=torch.bool)[:, :, None, None, None]
    masks: list[dict[str, Tensor]] = [{}, {"q": torch.tensor(False)}, {"gamma": ~own}]
    held = TrainState.of(models, seeds=[3, 4, 5], trainable=masks)
    own_trace, theirs = _traces(held, INTEGRATED, AdamW([0.01, 0.02, 0.03], weight_decay=0.1, clip=0.5), 15)
    torch.testing.assert_close(own_trace, theirs, rtol=EXACT, atol=0)
    single = TrainState.of([models[2]], seeds=[5], streams=[2], trainable=[masks[2]])
    trace = train_steps(single, INTEGRATED, 15, optimizer=AdamW(0.03, weight_decay=0.1, clip=0.5), backend="cpu")
    assert torch.equal(trace[:, 0], own_trace[:, 2])


def test_steps_that_are_not_finite() -> None:
    """Skipped and counted as the definition does, and stopped at the limit."""
    z, target = _given()
    z[3, 0, 0] = math.nan
    sampler = FixedTasks(z, target, N, batch=1, shuffle=False)
    for limit in (None, 2):
        held, other = state(2), state(2)
        other_trace = train_steps(other, sampler, 70, optimizer=Adam(0.01), backend="torch", max_skipped=limit)
        trace = train_steps(held, sampler, 70, optimizer=Adam(0.01), backend="cpu", max_skipped=limit)
        torch.testing.assert_close(trace, other_trace, rtol=EXACT, atol=0, equal_nan=True)
        assert held.skipped.tolist() == other.skipped.tolist() == ([3, 3] if limit is None else [38, 38])
        assert held.step == 70


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_ranks_gathered_give_the_very_same_steps(dtype: torch.dtype) -> None:
    """Bit for bit what one call makes, with masks, clipping and a model that is stopped."""
    models = [model(depth, depth, dtype) for depth in (1, 2, 3)]
    models[1]["q"] *= 1e30 if dtype == torch.float32 else 1e200
    sampler = GaussianStatistics(D, N, 2500, query="integrated")
    optimizer = AdamW([0.01, 0.02, 0.03], weight_decay=0.1, clip=0.5, schedule=Schedule("cosine", steps=9))
    whole, parts = TrainState.of(models), TrainState.of(models)
    expected = train_steps(whole, sampler, 6, optimizer=optimizer, backend="cpu", max_skipped=3)
    losses = torch.empty_like(expected)
    for step in range(6):
        sums = native.block_sums(parts, sampler, range(3), definition.active_models(parts, 3))
        native.apply_sums(parts, sampler, optimizer, sums, 3, losses[step])
    assert torch.equal(losses.nan_to_num(), expected.nan_to_num())
    assert parts.step == whole.step
    assert parts.skipped.tolist() == [0, 6, 0]
    assert all(torch.equal(left, right) for left, right in zip(tensors(whole), tensors(parts), strict=True))


def test_what_is_chosen() -> None:
    plan = explain_training(state(), INTEGRATED, optimizer=Adam(0.1))
    assert plan.backend == "cpu"
    assert "native" in plan.reason
    for options, reason in (({"granularity": "token", "tokens": N + 2}, "token axis"), ({"d": 17}, "at most 16")):
        held = TrainState.of([model(**options)])  # type: ignore[arg-type]
        sampler = GaussianTokens(options.get("d", D), 20 if "d" in options else N, 4, queries=2)  # type: ignore[arg-type]
        assert explain_training(held, sampler, optimizer=Adam(0.1)).backend == "torch"
        with pytest.raises(ValueError, match=f"^backend: expected .*{reason}"):
            train_steps(held, sampler, 1, optimizer=Adam(0.1), backend="cpu")
