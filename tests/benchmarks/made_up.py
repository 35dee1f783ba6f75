"""A machine, timings and reports, made up."""

from benchmarks.measure.results import Machine, Quantiles, Report, Timing
from benchmarks.measure.workloads import W_FULL, W

MACHINE = Machine(
    device="cpu",
    processor="a processor",
    threads=2,
    copy_gb_s=33.0,
    fma_gflop_s=150.0,
    read_gb_s=44.0,
    python="3.11.7",
    torch="2.13.0",
    package="0.1.0",
    revision="abc",
)


def timing(provider: str, median: float, *, batch: int = 1000, spread: float = 0.01) -> Timing:
    quantiles = Quantiles(median, median * (1 - spread), median * (1 + spread), 9)
    return Timing(provider, not provider.startswith("ours"), W.with_batch(batch), "timed", "", quantiles, 0.0, 0.0)


def report(*timings: Timing) -> Report:
    return Report("2030-01-01T00:00:00+00:00", 1.0, MACHINE, timings)


def mixed_report() -> Report:
    """Ours, two peers, and a peer that does not serve its workload."""
    return report(
        Timing("fast", True, W, "timed", "", Quantiles(1.5, 1.4, 2.0, 30), 1e-7, 2e-7, 3.5, 1024),
        Timing("slow", True, W, "timed", "", Quantiles(6.0, 5.0, 7.0, 3), 1e-7, 2e-7, 0.5, None),
        Timing("ours", False, W, "timed", "", Quantiles(0.5, 0.4, 0.6, 30), 1e-7, 2e-7, 0.5, None),
        Timing("fast", True, W_FULL, "unsupported", "token axis"),
    )
