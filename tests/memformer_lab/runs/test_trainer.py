from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from memformer_kernels import build_info
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import GAUSSIAN, PRESETS, TrainingConfig
from memformer_lab.runs.models import build_model, evaluate, load_model
from memformer_lab.runs.steps import FusedSteps, state_of
from memformer_lab.runs.trainer import Trainer
from memformer_lab.runs.training import CHECKPOINT, train
from memformer_lab.solvers.first_order import draws_statistics
from memformer_lab.tasks.gaussian import step_sampler
from memformer_lab.tasks.seeds import seed_for

SMALL = TrainingConfig(
    d=3, n=6, layers=2, tasks="isotropic", batch=16, steps=100, learning_rate=0.02, log_every=7, backend="auto"
)


def test_the_first_loss_is_that_of_autograd() -> None:
    """The same distribution of tasks and the same start: losses on 20,000 tasks agree."""
    config = TrainingConfig(layers=2, batch=20_000, steps=1, log_every=1)
    first = {}
    for backend in ("torch", "auto"):
        run = dataclasses.replace(config, backend=backend)
        first[backend] = Trainer(run).advance()["loss"]
    assert first["auto"] == pytest.approx(first["torch"], rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"structure": "block", "resample": 2}, {"structure": "dense", "queries": 2}, {"rule": "lfom_residual"}],
    ids=str,
)
def test_fused_steps_are_those_of_the_reference_path(changes: dict[str, Any]) -> None:
    """Whichever backend takes them: `train_steps(backend="torch")` on the run's tasks gives the trainer's losses."""
    config = dataclasses.replace(SMALL, **changes)
    model, tasks = build_model(config), config.sampler()
    state = state_of(model, seed_for("training", config.seed) >> 1)
    statistics = draws_statistics(model, tasks)
    sampler = step_sampler(tasks, config.batch, statistics=statistics, queries=config.queries, resample=config.resample)
    expected = FusedSteps(model, state, config.settings(), backend="torch").take_on(sampler, 6)
    trainer = Trainer(config)
    assert [trainer.advance()["loss"] for _ in range(6)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tasks", [name for name in PRESETS if name not in GAUSSIAN])
@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_tasks_of_any_family_train_in_whole_steps(tasks: str, structure: str) -> None:
    """By the backend that Gaussian tasks have, on tasks of which autograd's first loss is a sample too."""
    config = dataclasses.replace(SMALL, tasks=tasks, structure=structure, batch=4000, queries=2)
    usual, drawn = (Trainer(dataclasses.replace(config, backend=backend)) for backend in ("torch", "auto"))
    assert drawn.advance()["loss"] == pytest.approx(usual.advance()["loss"], rel=0.5)
    steps = drawn._steps
    assert isinstance(steps, FusedSteps)
    expected = "cpu" if build_info().backends["cpu"].available else "torch"
    assert steps.backend_on(steps._sampler) == expected


def test_a_trained_model_is_as_good_as_theory_says(tmp_path: Path) -> None:
    """One layer reaches ln(d (d + 1) / (n + d + 1)) = 0.143 on the non-isotropic tasks."""
    config = TrainingConfig(layers=1, batch=256, steps=400, learning_rate=0.05, backend="auto", log_every=100)
    train(config, tmp_path)
    model, _ = load_model(tmp_path / CHECKPOINT)
    (result,) = evaluate(model, config, tasks=100_000)
    assert result.log_mean == pytest.approx(0.143, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "gated_heads", "heads": 2}, "backend must be 'torch', got 'auto': rule 'gated_heads'"),
        ({"rule": "recursive", "backend": "cpu"}, "token axis|backend='cpu' is not available"),
    ],
)
def test_runs_that_need_autograd(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(SMALL, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train(dataclasses.replace(SMALL, steps=2), tmp_path)
    held = checkpoints.load(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="draws its tasks on 'cuda', expected device 'cpu'"):
        Trainer.resume(dataclasses.replace(held, device="cuda"))
    with pytest.raises(ValueError, match=r"a moment of q is \(2,\), expected \(2, 1, 3, 3\)"):
        Trainer.resume(dataclasses.replace(held, first={**held.first, "q": torch.ones(2)}))
