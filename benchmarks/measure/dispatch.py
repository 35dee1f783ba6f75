"""Whether `backend="auto"` chooses well: the automatic choice against every provider, on named CPU workloads."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.measure.harness import Policy
from benchmarks.measure.providers import AUTOMATIC, PROVIDERS
from benchmarks.measure.workloads import Workload
from benchmarks.reports.record import Quantiles, Report
from benchmarks.reports.table import figure

AUTO = AUTOMATIC.name
TOLERANCE = 0.10
"""How much slower than the best provider the automatic choice may be, beyond the noise of both."""

POLICY = Policy(seconds=0.3, longest_s=1.0, admit_s=60.0)
"""A peer that is not compiled within a minute is left out, and the record says so: 64 layers unrolled take minutes."""

CONTENDERS = tuple(p for p in PROVIDERS if p.name != "published n-by-n, compiled")
"""All but one, which compiles longest and is many times slower than other peers in every record; eager it is here."""


@dataclass(frozen=True)
class Choice:
    """The automatic choice on one workload beside the fastest provider, and the fastest peer if one was timed."""

    workload: Workload
    auto: Quantiles
    best: str
    best_ms: float
    noise: float
    peer: str | None
    peer_ms: float | None

    @property
    def ratio(self) -> float:
        """The automatic choice's median over the fastest provider's: 1 is perfect, less is better still."""
        return self.auto.median_ms / self.best_ms

    @property
    def peer_ratio(self) -> float | None:
        """How many times as fast as the fastest peer: more is better."""
        return None if self.peer_ms is None else self.peer_ms / self.auto.median_ms

    @property
    def good(self) -> bool:
        return self.ratio <= 1 + TOLERANCE + self.noise


def choices(reports: Sequence[Report]) -> Iterator[Choice]:
    """Every workload on which the automatic choice was timed; the best may be any provider but itself and solvers."""
    for report in reports:
        for workload in dict.fromkeys(timing.workload for timing in report.timings):
            timed = [t for t in report.timings if t.workload == workload and t.quantiles is not None and not t.solver]
            medians = {t.provider: t.quantiles for t in timed if t.quantiles is not None}
            auto = medians.pop(AUTO, None)
            if auto is None or not medians:
                continue
            best, found = min(medians.items(), key=lambda item: item[1].median_ms)
            peers = {t.provider: medians[t.provider].median_ms for t in timed if t.peer and t.provider in medians}
            peer = min(peers, key=lambda name: peers[name], default=None)
            peer_ms = None if peer is None else peers[peer]
            noise = math.hypot(auto.spread, found.spread)
            yield Choice(workload, auto, best, found.median_ms, noise, peer, peer_ms)


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
