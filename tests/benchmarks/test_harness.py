"""The harness times only what is right, in turn, and reports everything else with its reason."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.measure.clock import limited
from benchmarks.measure.data import Batch, Parameters, make_batch, make_parameters
from benchmarks.measure.harness import Policy, buffer_count, errors, reference_outcome, run_workload
from benchmarks.measure.providers import Outcome, Provider, Step, Support, select
from benchmarks.measure.workloads import W_FULL, W, Workload
from benchmarks.peers.formulations import published
from benchmarks.reports.record import Timing

CPU = torch.device("cpu")
SMALL = W.with_batch(40)
FOUR_RUNS = Policy(min_runs=4, max_runs=4, burst_ms=0.0)
RIGHT = select(["re-associated, eager"])[0]


def changed(name: str, change: Callable[[Outcome], Outcome]) -> Provider:
    """The right provider with its outcome changed."""

    def build(workload: Workload, parameters: Parameters) -> Step:
        step = RIGHT.build(workload, parameters)
        return lambda batch: change(step(batch))

    return Provider(name, True, RIGHT.supports, build)


def timed(*providers: Provider, workload: Workload = SMALL) -> tuple[Timing, ...]:
    return run_workload(workload, providers, CPU, FOUR_RUNS)


def scaled_gradient(outcome: Outcome) -> Outcome:
    return Outcome(outcome.loss, {**outcome.gradients, "gamma": outcome.gradients["gamma"] * 1.001})


def scaled_loss(outcome: Outcome) -> Outcome:
    return Outcome(outcome.loss * 1.001, outcome.gradients)


def nan_gradient(outcome: Outcome) -> Outcome:
    return Outcome(outcome.loss, {**outcome.gradients, "q": outcome.gradients["q"] * float("nan")})


@pytest.mark.parametrize("change", [scaled_gradient, scaled_loss, nan_gradient])
def test_a_wrong_provider_is_rejected_and_not_timed(change: Callable[[Outcome], Outcome]) -> None:
    wrong, right = timed(changed("wrong", change), RIGHT)
    assert wrong.status == "rejected"
    assert wrong.quantiles is None
    assert "wrong result" in wrong.reason
    assert right.status == "timed"
    assert right.quantiles is not None
    assert right.quantiles.runs == 4
    assert 0 < right.quantiles.q10_ms <= right.quantiles.median_ms <= right.quantiles.q90_ms


def test_missing_and_misshapen_gradients_are_named() -> None:
    def missing(outcome: Outcome) -> Outcome:
        return Outcome(outcome.loss, {"q": outcome.gradients["q"]})

    def misshapen(outcome: Outcome) -> Outcome:
        return Outcome(outcome.loss, {**outcome.gradients, "q": outcome.gradients["q"][0]})

    first, second = timed(changed("missing", missing), changed("misshapen", misshapen))
    assert first.status == "failed"
    assert "expected ['gamma', 'q']" in first.reason
    assert second.status == "failed"
    assert "gradient of q has shape (1, 5, 5), expected (4, 1, 5, 5)" in second.reason


def test_a_provider_that_raises_or_declines_does_not_end_the_run() -> None:
    def explode(outcome: Outcome) -> Outcome:
        raise RuntimeError("no compiler\nand more")

    declined = Provider("declined", True, lambda workload, device: Support(False, "not on Sundays"), RIGHT.build)
    failed, unsupported, right = timed(changed("raises", explode), declined, RIGHT)
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: no compiler")
    assert (unsupported.status, unsupported.reason) == ("unsupported", "not on Sundays")
    assert right.status == "timed"


def test_a_provider_that_takes_too_long_ends_there_and_so_does_a_workload() -> None:
    def build(workload: Workload, parameters: Parameters) -> Step:
        while True:
            time.sleep(0.001)

    forever = Provider("forever", True, RIGHT.supports, build)
    (slow,) = run_workload(SMALL, (forever,), CPU, replace(FOUR_RUNS, admit_s=0.1))
    assert (slow.status, slow.reason) == ("failed", "TimeoutError: took more than 0.1 s")
    (right,) = run_workload(SMALL, (RIGHT,), CPU, replace(FOUR_RUNS, admit_s=100.0, total_s=100.0))
    assert right.status == "timed"
    (skipped,) = run_workload(SMALL, (RIGHT,), CPU, replace(FOUR_RUNS, total_s=0.0))
    assert (skipped.status, skipped.reason) == ("skipped", "those before it took the 0 s of this workload")


def test_a_time_limit_leaves_the_timer_and_its_handler_as_they_were() -> None:
    before = signal.getsignal(signal.SIGALRM)
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    timer = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with limited(500.0):
            assert 1.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500.0
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
        assert 500.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000.0
        with limited(None):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 500.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert signal.getsignal(signal.SIGALRM) == before


def test_what_a_step_returns_is_read_by_its_provider() -> None:
    def build(workload: Workload, parameters: Parameters) -> Step:
        step = RIGHT.build(workload, parameters)
        return lambda batch: [step(batch)]

    (boxed,) = timed(Provider("boxed", True, RIGHT.supports, build, lambda found: found[0]))
    assert boxed.status == "timed"


def test_the_number_of_runs_follows_the_time_of_a_pass() -> None:
    policy = Policy(seconds=2.0, min_runs=3, max_runs=400, longest_s=10.0)
    assert [policy.runs(ms) for ms in (0.1, 10, 900, 3600, 7000, 50_000)] == [400, 200, 3, 2, 1, 1]


def test_providers_take_turns() -> None:
    calls: list[str] = []

    def noted(name: str) -> Provider:
        def note(outcome: Outcome) -> Outcome:
            calls.append(name)
            return outcome

        return changed(name, note)

    timed(noted("a"), noted("b"))
    assert calls[-8:] == ["a", "b"] * 4


def test_large_batches_rotate_through_cold_buffers() -> None:
    assert buffer_count(W.with_batch(1000)) == 1
    assert buffer_count(W.with_batch(100_000)) == 4
    assert buffer_count(W.with_batch(1_000_000)) == 2
    seen: set[int] = set()

    def build(workload: Workload, parameters: Parameters) -> Step:
        step = RIGHT.build(workload, parameters)

        def keep(batch: Batch) -> Outcome:
            seen.add(batch.z.data_ptr())
            return step(batch)

        return keep

    workload = W.with_batch(20_000)
    timed(Provider("watched", True, RIGHT.supports, build), workload=workload)
    assert buffer_count(workload) > 4
    assert len(seen) == 4


@pytest.mark.parametrize("workload", [W, W_FULL], ids=lambda w: w.name)
def test_the_reference_is_the_published_form_in_float64(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.harness.REFERENCE_NUMBERS", 16 * workload.tokens * workload.width)
    workload = replace(workload, batch=40, dtype="float64")
    parameters, batch = make_parameters(workload, 0, CPU), make_batch(workload, 1, CPU)
    loss = published(*batch, *parameters, n=workload.n)
    q, gamma = torch.autograd.grad(loss, list(parameters))
    outcome = Outcome(loss.detach(), {"q": q, "gamma": gamma})
    assert max(errors(outcome, reference_outcome(workload, batch, parameters))) < 1e-12
