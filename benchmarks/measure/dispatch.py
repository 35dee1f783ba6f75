"""Whether `backend="auto"` chooses well: the automatic choice against every provider, on named CPU workloads.

The CATALOGUE of workloads has small and large ones in every size, every rule, structure, direction, granularity and
precision. Two of `workloads` stand for the rest in `python -m benchmarks`, and `growth` walks one size at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from benchmarks.measure.harness import Policy
from benchmarks.measure.providers import AUTOMATIC, PROVIDERS
from benchmarks.measure.results import Quantiles, Report
from benchmarks.measure.workloads import DIRECTIONS, W_FULL, W, Workload

AUTO = AUTOMATIC.name
TOLERANCE = 0.10
"""How much slower than the best provider the automatic choice may be, beyond the noise of both medians."""

POLICY = Policy(seconds=0.3, longest_s=1.0, admit_s=60.0)
"""A peer that is not compiled within a minute is left out, and the record says so: 64 layers unrolled take minutes."""

CONTENDERS = tuple(p for p in PROVIDERS if p.name != "published n-by-n, compiled")
"""All but one, which compiles longest and is many times slower than other peers in every record; eager it is here."""


@dataclass(frozen=True)
class Choice:
    """The automatic choice on one workload, the fastest provider, and the fastest peer if one was timed."""

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
            noise = math.hypot(auto.error, found.error)
            yield Choice(workload, auto, best, found.median_ms, noise, peer, peer_ms)


_FORWARD, _, _TO_TOKENS = DIRECTIONS


def _named(base: Workload, **changes: int | str) -> Workload:
    name = " ".join([base.name, *(f"{field}={value}" for field, value in changes.items())])
    return replace(base, name=name, **changes)  # type: ignore[arg-type]


def _sizes() -> Iterator[Workload]:
    yield _named(W, batch=1)
    yield _named(W, batch=100)
    yield _named(W, batch=1000)
    yield _named(W, batch=100_000)
    yield _named(W, layers=1, batch=10_000)
    yield _named(W, layers=32, batch=10_000)
    yield _named(W, layers=64, batch=10_000)
    yield _named(W, heads=5, batch=10_000)
    yield _named(W, d=2, batch=10_000)
    yield _named(W, d=7, n=7, batch=10_000)
    yield _named(W, d=16, n=50, batch=10_000)
    yield _named(W, d=24, n=64, batch=2000)
    yield _named(W, d=64, n=256, batch=200)
    yield _named(W, d=128, n=512, batch=32)
    yield _named(W, d=255, n=1023, batch=8)
    yield _named(W, n=1000, batch=1000)
    yield _named(W, n=100_000, batch=4)
    yield _named(W, n=1_000_000, batch=1)
    yield _named(W_FULL, batch=1)
    yield _named(W_FULL, batch=10_000)
    yield _named(W_FULL, d=16, n=100, batch=1000)
    yield _named(W_FULL, d=32, n=200, batch=200)


def _kinds() -> Iterator[Workload]:
    yield _named(W, granularity="scalar", batch=10_000)
    yield _named(W_FULL, granularity="token", batch=10_000)
    yield _named(W, dtype="float64", batch=10_000)
    yield _named(W, dtype="bfloat16", batch=10_000)
    yield _named(W, direction=_FORWARD, batch=10_000)
    yield _named(W_FULL, direction=_FORWARD, batch=10_000)
    yield _named(W, direction=_TO_TOKENS, batch=10_000)
    yield _named(W, structure="block", batch=10_000)
    yield _named(W, structure="block", direction=_FORWARD, batch=10_000)
    yield _named(W, structure="dense", batch=1000)
    yield _named(W_FULL, structure="block", batch=1000)
    yield _named(W, rule="linear", batch=10_000)
    yield _named(W, rule="cgd", granularity="scalar", batch=10_000)
    yield _named(W, rule="recursive", granularity="full", batch=10_000)
    yield _named(W, rule="lfom_shared", batch=10_000)
    yield _named(W, rule="lfom_residual", batch=10_000)
    yield _named(W, rule="gated_heads", heads=2, batch=10_000)


CATALOGUE: Mapping[str, Workload] = MappingProxyType({w.name: w for w in (*_sizes(), *_kinds())})
