"""The named workloads: small and large in every size, every rule, structure, direction, granularity and precision.

`dispatch` runs them all on the CPU. Two of `workloads` stand for the rest in `python -m benchmarks`, and `growth` walks
one size at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.measure.workloads import DIRECTIONS, W_FULL, W, Workload

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
