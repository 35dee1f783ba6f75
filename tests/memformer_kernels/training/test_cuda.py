"""The CUDA trainer's reasons to leave models to plain PyTorch, and its errors, where no GPU is needed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memformer_kernels import Adam, GaussianStatistics, GaussianTokens, availability, explain_training, train_steps
from memformer_kernels.training import cuda
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import D, N, model, state

STATISTICS = GaussianStatistics(D, N, 4)


def _on_gpu(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """What `fault` reads of a state, as if its tensors were on a GPU."""
    made = {name: value[None] for name, value in model(dtype=dtype, **options).items() if value is not None}
    device = torch.device("cuda:0")
    return SimpleNamespace(parameters=made, dtype=dtype, device=device, models=1, tied_layers=lambda index: 1)


@pytest.mark.parametrize(
    ("held", "sampler", "reason"),
    [
        (_on_gpu(torch.float64), STATISTICS, "float32"),
        (_on_gpu(structure="block"), STATISTICS, "response-only"),
        (_on_gpu(structure="dense"), GaussianTokens(D, N, 4), "response-only"),
        (_on_gpu(d=9), GaussianStatistics(9, 20, 4), "at most 8 features"),
        (_on_gpu(), GaussianStatistics(D, 2**24 + 1, 4), "at most 16777216 examples"),
        (_on_gpu(granularity="token", tokens=N + 1), GaussianTokens(D, N, 4), "token axis"),
        (_on_gpu(), GaussianTokens(D, 1, 4, queries=N, query="prefixes"), "one context a task"),
        (_on_gpu(), GaussianTokens(D, N, 4, noise=(0.0, 1.0)), "tasks of one noise"),
    ],
    ids=["float64", "block", "dense", "large", "long", "token axis", "prefixes", "noise"],
)
def test_what_goes_to_plain_pytorch(held: Any, sampler: Sampler, reason: str) -> None:
    assert reason in str(cuda.fault(held, sampler))


def test_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(availability._faults, "cuda", None)
    monkeypatch.setattr(availability, "cuda_fault", lambda index: None)
    assert cuda.fault(_on_gpu(rule="cgd", heads=2), STATISTICS) is None
    assert cuda.fault(_on_gpu(), GaussianTokens(D, N, 4)) is None


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(availability._faults, "cuda", "not today")
    assert "not today" in str(cuda.fault(_on_gpu(), STATISTICS))


@pytest.mark.tensors_stay
def test_models_on_the_cpu() -> None:
    assert explain_training(state(), STATISTICS, optimizer=Adam(0.1)).backend != "cuda"
    with pytest.raises(RuntimeError, match=r"^backend='cuda'"):
        train_steps(state(), STATISTICS, 1, optimizer=Adam(0.1), backend="cuda")
