"""Whether ours has become slower: a committed record against a run of today, in ratios to a peer of the same run.

Times of two runs say little, since machines differ and drift; how many times as fast as a peer ours is, in one run,
says more. A ratio may fall by a band that the spread of both runs sets before it counts as a fall.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table

from benchmarks.measure.workloads import Workload
from benchmarks.reports.record import Quantiles, Report, Timing
from benchmarks.reports.table import figure

LEAST_BAND = 0.10
WIDEST_BAND = 0.50
"""Beyond it a run is too disturbed to say anything but that ours became twice as slow."""

LARGEST_BATCH = 100_000
"""Larger sizes of a record take minutes and scale with this one."""


@dataclass(frozen=True)
class Change:
    """How one of ours stands to a peer in a record and now: the peer's median over ours, more is better.

    band: the relative fall that the spread of the two runs explains.
    """

    workload: Workload
    provider: str
    peer: str
    recorded: float
    measured: float
    band: float

    @property
    def verdict(self) -> Literal["slower", "same", "faster"]:
        if self.measured < self.recorded * (1 - self.band):
            return "slower"
        return "faster" if self.measured > self.recorded / (1 - self.band) else "same"


def sizes(record: Report) -> tuple[Workload, ...]:
    """The workloads of a record that a comparison runs again."""
    return tuple(dict.fromkeys(t.workload for t in record.timings if t.workload.batch <= LARGEST_BATCH))


def contenders(record: Report, available: frozenset[str]) -> frozenset[str]:
    """Ours, and for each size the fastest peer of the record among those that are available."""
    found: set[str] = set()
    for workload in sizes(record):
        found.update(t.provider for t in _timed(record, workload) if not t.peer and t.provider in available)
        peer = _fastest_peer(record, workload, available)
        if peer is not None:
            found.add(peer.provider)
    return frozenset(found)


def changes(record: Report, now: Report) -> Iterator[Change]:
    """Every ratio that both hold: ours to the fastest of the record's peers that ran again."""
    for workload in sizes(record):
        again = {timing.provider: timing for timing in _timed(now, workload)}
        peer = _fastest_peer(record, workload, frozenset(again))
        if peer is None:
            continue
        for ours in _timed(record, workload):
            if ours.peer or ours.provider not in again:
                continue
            found = [_quantiles(t) for t in (ours, peer, again[ours.provider], again[peer.provider])]
            before, before_peer, after, after_peer = found
            yield Change(
                workload,
                ours.provider,
                peer.provider,
                before_peer.median_ms / before.median_ms,
                after_peer.median_ms / after.median_ms,
                min(WIDEST_BAND, max(LEAST_BAND, math.hypot(*(one.spread for one in found)))),
            )


def missing(record: Report, now: Report) -> list[str]:
    """Ours of the record that could not be timed today, a line each with the reason."""
    lines = []
    for workload in sizes(record):
        again = {timing.provider: timing for timing in now.timings if timing.workload == workload}
        for ours in _timed(record, workload):
            if not ours.peer and (ours.provider not in again or again[ours.provider].quantiles is None):
                reason = again[ours.provider].reason if ours.provider in again else "it did not run"
                lines.append(f"{workload.name}, B = {workload.batch:,}: {ours.provider} was not timed: {reason}")
    return lines


def change_table(found: list[Change]) -> Table:
    """A line per ratio."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("workload", "ours", "peer"):
        table.add_column(header, no_wrap=header != "peer")
    for header in ("x then", "x now", "band"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for change in found:
        table.add_row(
            f"{change.workload.name}, B = {change.workload.batch:,}",
            change.provider,
            change.peer,
            figure(change.recorded),
            figure(change.measured),
            f"{100 * change.band:.0f}%",
            {"slower": "[red]slower[/red]", "same": "", "faster": "[green]faster[/green]"}[change.verdict],
        )
    return table


def _timed(report: Report, workload: Workload) -> list[Timing]:
    return [t for t in report.timings if t.workload == workload and t.quantiles is not None]


def _fastest_peer(report: Report, workload: Workload, available: frozenset[str]) -> Timing | None:
    peers = [t for t in _timed(report, workload) if t.peer and t.provider in available]
    return min(peers, key=lambda t: _quantiles(t).median_ms, default=None)


def _quantiles(timing: Timing) -> Quantiles:
    if timing.quantiles is None:
        raise ValueError(f"{timing.provider} was not timed")
    return timing.quantiles
