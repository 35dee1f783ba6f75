"""The GPU part of the trainer's benchmark, its launches replaced by the definition in plain PyTorch."""

from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import gpu_trainer
from memformer_kernels import GaussianStatistics, TrainState, build, train_steps


@pytest.fixture
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    state = gpu_trainer._state

    def trace(held: TrainState, sampler: Any, steps: int, launches: str) -> Tensor:
        return train_steps(held, sampler, min(steps, 2), optimizer=gpu_trainer.OPTIMIZER, backend="torch")

    monkeypatch.setattr(gpu_trainer, "_state", lambda models, device="cpu": state(models, "cpu"))
    monkeypatch.setattr(gpu_trainer, "_trace", trace)
    monkeypatch.setattr(gpu_trainer, "TASKS", GaussianStatistics(5, 20, 8, query="integrated"))
    monkeypatch.setattr(gpu_trainer, "LARGE_BATCH", 16)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.usefixtures("_pretended")
def test_both_rows_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    info = build.build_info()
    there = {**info.backends, "cuda": build.BackendInfo("cuda", True, (), "")}
    monkeypatch.setattr(gpu_trainer, "build_info", lambda: build.BuildInfo(**{**vars(info), "backends": there}))
    record = gpu_trainer.measure(Console(quiet=True), rounds=2)
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
