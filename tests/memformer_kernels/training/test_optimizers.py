"""Optimisers are those of torch.optim, schedules and clipping are as defined, bad settings are refused."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from memformer_kernels import SGD, Adam, AdamW, GaussianStatistics, Schedule, memformer_loss, train_steps
from memformer_kernels.training.definition import clip_gradients
from memformer_kernels.training.draws import Stream, draw_tasks
from memformer_kernels.training.optimizers import Optimizer
from tests.memformer_kernels.training.runs import D, N, state

SAMPLER = GaussianStatistics(D, N, 64, query="integrated")
PAIRS = [
    pytest.param(SGD(0.05), torch.optim.SGD, {"lr": 0.05}, id="sgd"),
    pytest.param(
        SGD(0.05, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        id="momentum",
    ),
    pytest.param(
        SGD(0.05, momentum=0.8, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        id="nesterov",
    ),
    pytest.param(
        Adam(0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        id="adam",
    ),
    pytest.param(Adam(lr=0.02, betas=[0.8, 0.99]), torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.99)}, id="by lr"),
    pytest.param(AdamW(), torch.optim.AdamW, {}, id="adamw, defaults"),
    pytest.param(Adam(), torch.optim.Adam, {}, id="adam, defaults"),
    pytest.param(SGD(), torch.optim.SGD, {}, id="sgd, defaults"),
    pytest.param(AdamW(0.02, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, id="adamw"),
]


@pytest.mark.parametrize(("own", "theirs", "options"), PAIRS)
def test_as_in_torch(own: Optimizer, theirs: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """20 steps of block structure with momentum: parameters and losses as from autograd and torch.optim."""
    held = state(structure="block", rule="cgd", granularity="feature")
    leaves = {name: value.clone().requires_grad_() for name, value in held.model(0).items()}
    optimizer = theirs(list(leaves.values()), **options)
    expected = []
    for step in range(20):
        tasks = draw_tasks(SAMPLER, Stream(11, 0, torch.float64), step, range(64))
        optimizer.zero_grad()
        loss = D * memformer_loss(tasks.z, tasks.target, **leaves, context=D, backend="torch")
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    losses = train_steps(held, SAMPLER, 20, optimizer=own, backend="torch")
    torch.testing.assert_close(losses[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    for name, value in held.model(0).items():
        torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-10, atol=1e-12)


def test_a_rate_has_two_names() -> None:
    assert Adam(lr=0.1) == Adam(0.1) == Adam(learning_rate=0.1)
    assert SGD(lr=[0.1, 0.2]).rates(2) == [0.1, 0.2]
    assert dataclasses.replace(AdamW(0.1), clip=1.0) == AdamW(0.1, clip=1.0)


def test_schedules() -> None:
    assert [Schedule().factor(step) for step in (0, 10**6)] == [1.0, 1.0]
    step = Schedule("step", warmup=2, decay=0.5, decay_every=3)
    assert [step.factor(i) for i in range(9)] == [1 / 3, 2 / 3, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    cosine = Schedule("cosine", warmup=1, steps=5)
    expected = [0.5] + [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)] + [0.0]
    assert [cosine.factor(i) for i in range(7)] == pytest.approx(expected, abs=1e-15)


def test_the_schedule_counts_steps_and_not_updates() -> None:
    """The learning rate falls to a half at step 2: what two runs with constant rates do in turn."""
    first, second = state(), state()
    train_steps(first, SAMPLER, 4, optimizer=SGD(0.1, schedule=Schedule("step", decay_every=2)), backend="torch")
    train_steps(second, SAMPLER, 2, optimizer=SGD(0.1), backend="torch")
    train_steps(second, SAMPLER, 2, optimizer=SGD(0.05), backend="torch")
    for left, right in zip(first.parameters.values(), second.parameters.values(), strict=True):
        assert torch.equal(left, right)


def test_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 1, 3, 3), "gamma": (2, 2, 1, 1, 4)}
    grads = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    grads["q"][1] *= 1e-3
    by_matrix, by_model, free = dict(grads), dict(grads), dict(grads)
    clip_gradients(free, SGD(0.1))
    assert all(free[name] is grads[name] for name in grads)
    clip_gradients(by_matrix, SGD(0.1, clip=0.5))
    norms = by_matrix["q"].flatten(1).norm(dim=1)
    assert norms[0] == pytest.approx(0.5, rel=1e-12)
    assert torch.equal(by_matrix["q"][1], grads["q"][1])
    assert float(by_matrix["gamma"].norm()) == pytest.approx(0.5, rel=1e-12)
    clip_gradients(by_model, SGD(0.1, clip=0.5, clip_by="model"))
    flat = torch.cat([value.flatten() for value in by_model.values()])
    whole = torch.cat([value.flatten() for value in grads.values()])
    torch.testing.assert_close(flat, whole * (0.5 / whole.norm()))
    zero = {"q": torch.zeros(1, 1, 2, 2)}
    clip_gradients(zero, SGD(0.1, clip=0.5))
    assert bool((zero["q"] == 0).all())


BAD = [
    (lambda: SGD(-0.1), ValueError, "learning_rate"),
    (lambda: SGD("0.1"), TypeError, "learning_rate"),  # type: ignore[arg-type]
    (lambda: SGD([0.1, math.nan]), ValueError, "learning_rate"),
    (lambda: SGD(0.1, momentum=1.0), ValueError, "momentum"),
    (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov"),
    (lambda: SGD(0.1, clip=0.0), ValueError, "clip"),
    (lambda: SGD(0.1, clip_by="layer"), ValueError, "clip_by"),
    (lambda: SGD(0.1, weight_decay=math.inf), ValueError, "weight_decay"),
    (lambda: SGD(0.1, schedule="cosine"), TypeError, "schedule"),  # type: ignore[arg-type]
    (lambda: Adam(0.1, betas=(0.9, 1.0)), ValueError, "betas"),
    (lambda: Adam(0.1, betas=[0.9, 0.99, 0.999]), TypeError, "betas"),
    (lambda: Adam(0.1, betas=0.9), TypeError, "betas"),  # type: ignore[arg-type]
    (lambda: Adam(0.1, betas="09"), TypeError, "betas"),  # type: ignore[arg-type]
    (lambda: Adam(0.1, lr=0.2), ValueError, "lr"),
    (lambda: Adam(lr=-0.2), ValueError, "learning_rate"),
    (lambda: Adam(0.1, eps=-1.0), ValueError, "eps"),
    (lambda: Schedule("linear"), ValueError, "kind"),
    (lambda: Schedule("cosine"), ValueError, "steps"),
    (lambda: Schedule("step", decay_every=0), ValueError, "decay_every"),
    (lambda: Schedule(warmup=-1), ValueError, "warmup"),
]


@pytest.mark.parametrize(("make", "kind", "name"), BAD, ids=range(len(BAD)))
def test_bad_settings(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=f"^{name}: expected "):
        make()
