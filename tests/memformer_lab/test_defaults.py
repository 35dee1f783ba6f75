"""torch.set_default_dtype and set_default_device change nothing about what is drawn, trained or fitted."""

from typing import Any

import numpy as np
import pytest
import torch

from memformer_lab import spectrum
from memformer_lab.experiments.common import network
from memformer_lab.experiments.e06_experts import Mixture
from memformer_lab.experiments.sequence_models import AttentionStack, CausalTransformer, RecurrentModel
from memformer_lab.runs.config import Backend, TrainingConfig
from memformer_lab.runs.fitting import memformer
from memformer_lab.runs.models import build_model
from memformer_lab.runs.training import train
from memformer_lab.solvers.adaptive import adaptive_predict, adaptive_solve
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.solvers.newton import newton_network
from memformer_lab.solvers.regressor import MemformerRegressor
from memformer_lab.tasks.families import FAMILIES, family_tokens
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.standardised import StandardisedTasks
from tests.defaults import assert_same_under, under_other_defaults


def _tensors(made: Any) -> list[torch.Tensor]:
    return [value for value in vars(made).values() if isinstance(value, torch.Tensor)]


@under_other_defaults
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("make", [GaussianTasks.nonisotropic, GaussianTasks.isotropic])
def test_gaussian_tasks(make: Any, noise: float, default: str) -> None:
    def run() -> list[torch.Tensor]:
        plain = make()
        tasks = GaussianTasks(
            plain.d, plain.n, plain.scales, plain.rotation_seed, plain.weights, noise=noise, dtype=plain.dtype
        )
        drawn = [
            draw(6, generator_for("training", 0))
            for draw in (tasks.tokens, tasks.quadratics, tasks.compressed)  # each from its own start
        ]
        return [tasks.covariance, *(tensor for batch in drawn for tensor in _tensors(batch))]

    assert_same_under(default, run)


@under_other_defaults
def test_chi_of_many_degrees(default: str) -> None:
    tasks = GaussianTasks.isotropic(3, 5000)
    assert_same_under(default, lambda: _tensors(tasks.quadratics(5, generator_for("training", 0))))


@under_other_defaults
def test_other_tasks(default: str) -> None:
    def run() -> list[torch.Tensor]:
        drawn = [family_tokens(name, 4, generator_for("training", 0), d=3, n=6) for name in FAMILIES]
        drawn += [tasks.tokens(4, generator_for("training", 0)) for tasks in (Mixture(1.0, (0.5, 3.0)),)]
        drawn.append(StandardisedTasks(3, 6).tokens(4, generator_for("training", 0)))
        return [tensor for batch in drawn for tensor in _tensors(batch)]

    assert_same_under(default, run)


@under_other_defaults
def test_models(default: str) -> None:
    def run() -> list[torch.Tensor]:
        models: list[torch.nn.Module] = [
            build_model(TrainingConfig()),
            memformer(0, 3, 2),
            network(0, 3, 2, preconditioner="scalar", registers=1),
            newton_network(2, 2, 0.1),
            AttentionStack(3, 2, "softmax", feed_forward=True),
            CausalTransformer(3, 8, 1, 4),
            RecurrentModel(3, 8),
        ]
        return [parameter for model in models for parameter in model.parameters()]

    assert_same_under(default, run)


@under_other_defaults
def test_coefficients_of_the_task(default: str) -> None:
    def run() -> list[torch.Tensor]:
        batch = GaussianTasks.isotropic(3, 6).tokens(4, generator_for("training", 0))
        a = network(0, 3, 2).q.detach()
        return [*adaptive_predict(batch.z, a, context=6), *adaptive_solve(*quadratics_of(batch.z, 6), a[:, 0])]

    assert_same_under(default, run)


@under_other_defaults
def test_what_a_network_learned(default: str) -> None:
    def run() -> list[torch.Tensor]:
        found = spectrum.explain(network(0, 5, 2), GaussianTasks.nonisotropic(), count=20)
        return [found.preconditioner, *map(torch.from_numpy, (found.measured, found.cgd_zeros, found.learned.weights))]

    assert_same_under(default, run)


@under_other_defaults
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_training(backend: Backend, default: str, tmp_path: Any) -> None:
    folders = iter([tmp_path / "first", tmp_path / "second"])

    def run() -> list[torch.Tensor]:
        config = TrainingConfig(layers=2, steps=2, batch=8, backend=backend)
        return list(train(config, next(folders)).model.state_dict().values())

    assert_same_under(default, run)


@under_other_defaults
def test_the_regressor(default: str) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    target = rows @ [1.0, 2.0, 3.0]
    assert_same_under(default, lambda: torch.from_numpy(MemformerRegressor().fit(rows, target).predict(rows)))
