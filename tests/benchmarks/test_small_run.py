"""The run that memory checkers watch goes through everything; checkers that are not here leave a reason."""

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu import small_run
from memformer_kernels import build_info


def test_it_runs_every_operation() -> None:
    assert small_run.run(torch.device("cpu"), "torch", tasks=3) > 100


def test_without_a_checker_or_a_library_the_reason_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compute-sanitizer" in gpu_parts.watched(60.0, Console())["not run"]
    if not build_info().backends["cuda"].available:
        monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
        assert gpu_parts.watched(60.0, Console()) == {"not run": build_info().backends["cuda"].reason}
