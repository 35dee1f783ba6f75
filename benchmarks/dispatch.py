"""Whether `backend="auto"` chooses well: the automatic choice against every provider, on named CPU workloads."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rich import box
from rich.table import Table

from benchmarks.harness import Policy
from benchmarks.record import Quantiles, Report
from benchmarks.table import figure
from benchmarks.workloads import W_FULL, W, Workload

AUTO = "memformer_kernels (auto)"
TOLERANCE = 0.10
"""How much slower than the best provider the automatic choice may be, beyond the noise of both."""

POLICY = Policy(seconds=0.5, longest_s=3.0)


def _named(base: Workload, **changes: int | str) -> Mapping[str, Workload]:
    name = " ".join([base.name, *(f"{field}={value}" for field, value in changes.items())])
    return {name: replace(base, name=name, **changes)}  # type: ignore[arg-type]


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        **_named(W, batch=1),
        **_named(W, batch=100),
        **_named(W, batch=1000),
        **_named(W, batch=100_000),
        **_named(W, layers=1, batch=10_000),
        **_named(W, layers=32, batch=10_000),
        **_named(W, heads=5, batch=10_000),
        **_named(W, dtype="float64", batch=10_000),
        **_named(W, granularity="scalar", batch=10_000),
        **_named(W, d=2, batch=10_000),
        **_named(W, d=16, n=50, batch=10_000),
        **_named(W, d=24, n=64, batch=2000),
        **_named(W, d=64, n=256, batch=200),
        **_named(W, d=128, n=512, batch=32),
        **_named(W, n=1000, batch=1000),
        **_named(W, n=100_000, batch=4),
        **_named(W_FULL, batch=1),
        **_named(W_FULL, batch=10_000),
        **_named(W_FULL, d=16, n=100, batch=1000),
        **_named(W_FULL, d=32, n=200, batch=200),
        **_named(W_FULL, granularity="token", batch=10_000),
    }
)
"""Small and large in every size, both memories' granularities, both precisions."""


@dataclass(frozen=True)
class Choice:
    """The automatic choice on one workload beside the fastest provider."""

    workload: Workload
    auto: Quantiles
    best: str
    best_ms: float
    noise: float

    @property
    def ratio(self) -> float:
        """The automatic choice's median over the fastest provider's: 1 is perfect, less is better still."""
        return self.auto.median_ms / self.best_ms

    @property
    def good(self) -> bool:
        return self.ratio <= 1 + TOLERANCE + self.noise


def choices(report: Report) -> Iterator[Choice]:
    """Every workload on which the automatic choice was timed; the best may be any provider but itself."""
    for workload in dict.fromkeys(timing.workload for timing in report.timings):
        timed = {t.provider: t.quantiles for t in report.timings if t.workload == workload and t.quantiles is not None}
        auto = timed.pop(AUTO, None)
        if auto is None or not timed:
            continue
        best, found = min(timed.items(), key=lambda item: item[1].median_ms)
        yield Choice(workload, auto, best, found.median_ms, math.hypot(auto.spread, found.spread))


def choice_table(found: list[Choice]) -> Table:
    """A line per workload."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("workload")
    for header in ("auto, ms", "best, ms", "auto/best", "noise"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("best provider")
    for choice in found:
        ratio = figure(choice.ratio)
        table.add_row(
            choice.workload.name,
            figure(choice.auto.median_ms),
            figure(choice.best_ms),
            ratio if choice.good else f"[red]{ratio}[/red]",
            f"{100 * choice.noise:.0f}%",
            choice.best,
        )
    return table
