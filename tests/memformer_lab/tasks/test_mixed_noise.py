"""Tasks whose noise differs from task to task."""

from __future__ import annotations

import math

import pytest
import torch

from memformer_lab.experiments import e20_mixed_noise
from memformer_lab.tasks.mixed_noise import MixedNoiseTasks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_task_has_the_noise_that_is_told() -> None:
    tasks = MixedNoiseTasks(3, 400, 2.0)
    batch, sigma = tasks.with_noise(300, _generator(), queries=2)
    assert batch.z.shape == (300, 402, 4)
    noise = batch.z[:, :400, -1] - (batch.z[:, :400, :-1] @ batch.weights.unsqueeze(-1)).squeeze(-1)
    # A standard deviation from 400 draws is off by 3.5%; five times that for the worst of 300.
    torch.testing.assert_close(noise.std(1), sigma, rtol=0.2, atol=1e-3)
    assert float(sigma.min()) < 0.1
    assert 1.9 < float(sigma.max()) <= 2.0
    assert bool((batch.z[:, 400:, -1] == 0).all())
    answers = (batch.z[:, 400:, :-1] @ batch.weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(batch.target, answers)
    assert torch.equal(tasks.tokens(300, _generator(), 2).z, batch.z)


@pytest.mark.parametrize("arguments", [(0, 5, 1.0), (3, 0, 1.0), (3, 5, -1.0), (3, 5, math.inf)])
def test_bad_arguments(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MixedNoiseTasks(*arguments)


def test_the_best_constant_is_the_mean_variance_and_adapting_does_better() -> None:
    """For w* ~ N(0, I) ridge depends on sigma^2 / n; with sigma ~ U(0, 3) its mean is 3."""
    tasks = MixedNoiseTasks(5, 20, 3.0)
    constant, (base, share) = e20_mixed_noise._tuned(tasks, 20_000, 0)
    assert constant == pytest.approx(3.0, rel=0.1)
    assert 0 < base < constant
    assert share == pytest.approx(0.9, abs=0.1)
    drawn = tasks.tokens(20_000, _generator(1))
    statistics = e20_mixed_noise._statistics(drawn)
    losses = [
        float((e20_mixed_noise._ridge(statistics, *pair) - drawn.weights).square().sum(-1).mean().log())
        for pair in ((1e-9, 0.0), (constant, 0.0), (base, share))
    ]
    assert losses == pytest.approx([0.08, -0.18, -0.285], abs=0.06)
    assert losses[2] < losses[1] - 0.08
