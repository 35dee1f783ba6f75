from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.metrics import read_metrics
from memformer_lab.runs.models import build_model, evaluate, load_model
from memformer_lab.runs.steps import TrainingDiverged
from memformer_lab.runs.trainer import Record, Trainer
from memformer_lab.runs.training import CHECKPOINT, METRICS, continue_training, train

SMALL = TrainingConfig(
    d=3, n=6, layers=2, tasks="isotropic", batch=16, steps=100, learning_rate=0.02, log_every=7, backend="auto"
)
CASES = {
    "response-only": SMALL,
    "block, a batch kept": dataclasses.replace(SMALL, structure="block", clip=0.05, resample=7),
    "dense, on tokens": dataclasses.replace(SMALL, structure="dense", queries=2),
    "per token": dataclasses.replace(SMALL, rule="recursive", steps=70),
    "residual": dataclasses.replace(SMALL, rule="lfom_residual", schedule="step", decay_every=30, warmup=5),
    "non-isotropic": dataclasses.replace(SMALL, tasks="nonisotropic", d=5),
}


class Interrupted(Exception):
    pass


def _interrupt(record: Record) -> None:
    if record["step"] >= 49:
        raise Interrupted


def _lines(folder: Path) -> list[dict[str, float]]:
    return [{**record, "tasks_per_second": 0} for record in read_metrics(folder / METRICS)]


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_an_interrupted_run_continues_bit_for_bit(config: TrainingConfig, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(config, straight)
    with pytest.raises(Interrupted):
        train(config, broken, checkpoint_every=33, on_record=_interrupt)
    assert checkpoints.load(broken / CHECKPOINT).step == 33
    assert continue_training(broken, checkpoint_every=20).tasks == (config.steps - 33) * config.batch
    one, other = (checkpoints.load(folder / CHECKPOINT) for folder in (straight, broken))
    assert (one.step, one.loss_sum) == (other.step, other.loss_sum)
    for group in ("model", "first", "second"):
        mine, theirs = getattr(one, group), getattr(other, group)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert _lines(straight) == _lines(broken)


def test_the_first_loss_is_that_of_the_reference_path() -> None:
    """The same distribution of tasks and the same start: losses on 20,000 tasks agree."""
    config = TrainingConfig(layers=2, batch=20_000, steps=1, log_every=1)
    first = {}
    for backend in ("torch", "auto"):
        run = dataclasses.replace(config, backend=backend)
        first[backend] = Trainer(run).advance()["loss"]
    assert first["auto"] == pytest.approx(first["torch"], rel=0.1)


def test_a_trained_model_is_as_good_as_theory_says(tmp_path: Path) -> None:
    """One layer reaches ln(d (d + 1) / (n + d + 1)) = 0.143 on the non-isotropic tasks."""
    config = TrainingConfig(layers=1, batch=256, steps=400, learning_rate=0.05, backend="auto", log_every=100)
    train(config, tmp_path)
    model, _ = load_model(tmp_path / CHECKPOINT)
    (result,) = evaluate(model, config, tasks=100_000)
    assert result.log_mean == pytest.approx(0.143, abs=0.03)


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, schedule="constant")
    with pytest.raises(TrainingDiverged, match=rf"loss (nan|inf) .* at step \d.*{CHECKPOINT} keeps step 0"):
        train(config, tmp_path)
    kept, fresh = checkpoints.load(tmp_path / CHECKPOINT), build_model(config)
    assert all(torch.equal(kept.model[name], value) for name, value in fresh.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "standardised"}, "backend must be 'torch', got 'auto': tasks 'standardised'"),
        ({"rule": "gated_heads", "heads": 2}, "backend must be 'torch', got 'auto': rule 'gated_heads'"),
        ({"rule": "recursive", "backend": "cpu"}, "token axis|backend='cpu' is not available"),
    ],
)
def test_runs_that_need_the_reference_path(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
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
