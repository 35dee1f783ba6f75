"""The trainer's benchmark compares like with like, refuses wrong losses, and says what it found."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.measure import trainer
from benchmarks.measure.trainer import MODELS, STATISTICS, Step, TrainerReport, as_record, measure, print_trainer
from benchmarks.measure.workloads import W
from benchmarks.reports.record import Machine
from memformer_kernels import build_info

MACHINE = Machine("cpu", "a processor", 1, 1.0, 1.0, "3", "2", "0", "unknown")


def test_everything_is_timed_behind_its_gate(tmp_path: Path) -> None:
    report = measure(MACHINE, batch=16, rounds=2, compiled=False)
    native = build_info().backends["cpu"].available
    names = [step.contender for step in report.fresh]
    assert (STATISTICS in names) == native
    assert {"train_steps, torch, statistics", "train_steps, torch, tokens"} <= set(names)
    assert sum(step.peer for step in report.fresh) == sum(step.peer for step in report.given) == 3
    assert any(step.models == MODELS for step in report.fresh) == native
    for step in (*report.fresh, *report.given):
        assert 0 < step.q10_ms <= step.median_ms <= step.q90_ms
        assert step.loss_error < 1e-4
    assert json.loads(json.dumps(as_record(report)))["best_peer_ms"] == report.best_peer_ms


def test_a_wrong_loss_is_refused() -> None:
    with pytest.raises(RuntimeError, match="half has a first loss with a relative error"):
        trainer._peer(W.with_batch(8), "half", lambda z, target, q, gamma, n: (q.sum() + gamma.sum()).square(), True)


def test_peers_draw_the_tasks_that_they_are_said_to() -> None:
    """Noiseless responses, independent standard normal features and weights, a query with an empty slot."""
    z, target = trainer._draw(W.with_batch(4000), torch.Generator().manual_seed(0))
    x = z[..., :-1]
    assert float(x.mean().abs()) < 0.01
    assert float(x.var()) == pytest.approx(1, abs=0.02)
    assert bool((z[:, -1, -1] == 0).all())
    weights = torch.linalg.lstsq(x[:, :-1].double(), z[:, :-1, -1:].double()).solution
    torch.testing.assert_close((x[:, -1:].double() @ weights)[..., 0], target.double(), rtol=1e-4, atol=1e-4)


def test_figures_of_a_report() -> None:
    def step(name: str, models: int, median: float, peer: bool = False) -> Step:
        return Step(name, peer, models, median, median, median, 0.0)

    steps = (step(STATISTICS, 1, 0.05), step(STATISTICS, MODELS, 0.8), step("p", 1, 2.0, True), step("q", 1, 1.0, True))
    report = TrainerReport(1000, 3, MACHINE, steps, steps[2:])
    assert (report.step_ms, report.best_peer_ms, report.models_ratio) == (0.05, 1.0, pytest.approx(25.0))
    console = Console(record=True, width=120)
    print_trainer(report, console)
    text = console.export_text()
    assert "native step with sampled statistics: 0.05 ms, to be at most 0.08" in text
    assert "25x cheaper" in text
    missing = dataclasses.replace(report, fresh=steps[2:])
    assert (missing.step_ms, missing.models_ratio) == (None, None)
