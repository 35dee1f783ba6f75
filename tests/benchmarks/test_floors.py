"""A profile's parts are measured, and its attribution adds up to the whole."""

from dataclasses import replace

import pytest

from benchmarks.measure.floors import GRADIENTS, ONE_THREAD, WORKLOADS, Part, Profile, as_record, profile
from benchmarks.measure.workloads import W, Workload
from benchmarks.reports.table import operations_floor_ms
from tests.benchmarks.test_record import MACHINE


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_every_part_is_measured(workload: Workload) -> None:
    small = workload.with_batch(30)
    found = profile(small, "torch", MACHINE, rounds=2)
    assert found.read_ms > 0
    assert found.operations_ms == operations_floor_ms(small, MACHINE)
    names = [part.name for part in found.parts]
    assert len(set(names)) == len(names) == 7
    assert {GRADIENTS, ONE_THREAD, "loss, L = 1", "loss, L = 4"} <= set(names)
    assert all(0 < part.q10_ms <= part.median_ms <= part.q90_ms for part in found.parts)


def test_the_attribution_adds_up_to_the_measured_pass() -> None:
    medians = {"loss, L = 1": 3.0, "loss, L = 4": 4.5, GRADIENTS: 7.0}
    found = Profile(W, "cpu", 1.0, 0.5, tuple(Part(name, ms, ms, ms) for name, ms in medians.items()))
    assert list(found.attribution.values()) == [1.0, 2.0, 1.5, 2.5]
    assert sum(found.attribution.values()) == found.median(GRADIENTS)
    assert as_record(MACHINE, [found])["profiles"][0]["attribution_ms"] == found.attribution


def test_a_workload_without_a_layer_to_leave_out_is_refused() -> None:
    with pytest.raises(ValueError, match="layers must be at least 2, got 1"):
        profile(replace(W, layers=1), "torch", MACHINE)
