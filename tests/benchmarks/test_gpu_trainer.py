"""The GPU part of the trainer's benchmark, its launches replaced by the definition in plain PyTorch."""

from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.gpu import trainer as gpu_trainer
from memformer_kernels import GaussianStatistics, TrainState, availability, train_steps


@pytest.fixture
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    state = gpu_trainer._state

    def trace(held: TrainState, sampler: Any, steps: int, launches: str) -> Tensor:
        return train_steps(held, sampler, min(steps, 2), optimizer=gpu_trainer.OPTIMIZER, backend="torch")

    monkeypatch.setattr(gpu_trainer, "_state", lambda models, device="cpu": state(models, "cpu"))
    monkeypatch.setattr(gpu_trainer, "_trace", trace)
    monkeypatch.setattr(gpu_trainer, "TASKS", GaussianStatistics(5, 20, 8, query="integrated"))
    monkeypatch.setattr(gpu_trainer, "LARGE_BATCH", 16)
    monkeypatch.setattr(gpu_trainer, "ROUNDS", 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.fixture
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    info = availability.build_info()
    there = {**info.backends, "cuda": availability.BackendInfo("cuda", True, (), "")}
    monkeypatch.setattr(gpu_trainer, "build_info", lambda: availability.BuildInfo(**{**vars(info), "backends": there}))


@pytest.mark.usefixtures("_pretended", "_built")
def test_a_way_that_a_small_gpu_refuses_costs_its_own_figures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = gpu_trainer._trace

    def trace(held: TrainState, sampler: Any, steps: int, launches: str) -> Tensor:
        if held.models > 2 and launches == "persistent":
            raise RuntimeError("CUDA: too many blocks in cooperative launch")
        return traced(held, sampler, steps, launches)

    monkeypatch.setattr(gpu_trainer, "_trace", trace)
    record = gpu_trainer.measure(60.0, Console(quiet=True))
    assert record["refused"] == {"20 models, persistent": "CUDA: too many blocks in cooperative launch"}
    assert len(record["us_q10_median_q90"]) == 3


@pytest.mark.usefixtures("_pretended", "_built")
def test_both_rows_are_recorded() -> None:
    record = gpu_trainer.measure(60.0, Console(quiet=True))
    assert set(record["us_q10_median_q90"]) == {
        f"{models} models, {launches}" for models in (1, 20) for launches in ("persistent", "replay")
    }
    assert record["tasks_per_s"] == pytest.approx(16 / (record["large_ms_q10_median_q90"][1] / 1e3))


@pytest.mark.usefixtures("_pretended")
def test_a_wrong_loss_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_trainer._trace
    monkeypatch.setattr(gpu_trainer, "_trace", lambda *given: 1.01 * right(*given))
    with pytest.raises(RuntimeError, match="first loss"):
        gpu_trainer.check()
