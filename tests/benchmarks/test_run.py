"""A whole run: in order, and without what would take minutes at the largest sizes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.measure.harness import Policy
from benchmarks.measure.providers import select
from benchmarks.measure.run import run
from benchmarks.measure.workloads import W

CPU = torch.device("cpu")
PEERS = select(["Gram, eager"])
ONCE = Policy(seconds=0.0, min_runs=1, max_runs=1)


@pytest.fixture
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.run.LARGE_BATCH", 20)


@pytest.mark.usefixtures("_small_sizes")
@pytest.mark.slow
def test_a_provider_too_slow_for_a_large_size_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.run.PASS_LIMIT_S", 0.0)
    workloads = [W.with_batch(10), W.with_batch(20), W.with_batch(40)]
    report = run(workloads, PEERS, CPU, quick=True, policy=ONCE)
    assert [timing.workload for timing in report.timings] == [w for w in workloads for _ in PEERS]
    assert [timing.provider for timing in report.timings] == [peer.name for peer in PEERS] * 3
    assert [timing.status for timing in report.timings] == ["timed"] * 4 + ["skipped"] * 2
    assert "s a pass by its" in report.timings[-1].reason
    assert "at B = 20, and above B = 20 the limit is 0 s" in report.timings[-1].reason


@pytest.mark.usefixtures("_small_sizes")
@pytest.mark.slow
def test_a_fast_provider_and_one_without_a_smaller_size_are_run() -> None:
    other = replace(W, layers=2)
    report = run([W.with_batch(10), W.with_batch(40), other.with_batch(40)], PEERS, CPU, quick=True, policy=ONCE)
    assert {timing.status for timing in report.timings} == {"timed"}
