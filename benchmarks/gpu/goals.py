"""The figures that the GPU kernels are to reach on an H200, and how near the schedule's prediction comes.

A limit is what no kernel of float32's accuracy stays below: the bytes of the work at a copy's bandwidth or, for tiles,
where that takes longer, its multiply-adds at a third of the tensor cores' TF32 rate, since three products in TF32 make
one in float32. Nothing is measured: the rates are those that an H200 is expected to have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks.gpu.floors import Row
from benchmarks.measure.workloads import TILE_64, TILE_128
from benchmarks.reports.table import figure, new_table
from virtual_gpu.hardware import H200, PRODUCT_COST

TF32_PRODUCTS_S = H200.results["tensor"] / PRODUCT_COST["tf32"] * H200.multiprocessors * H200.clock
"""Multiply-adds a second."""


@dataclass(frozen=True)
class Goal:
    """What a case of `virtual` is to reach: a share of its limit, or else tasks, or steps, a second.

    products: multiply-adds of a task on tensor cores, 0 where vectors do them.
    """

    backend: str
    case: str
    share: float = 0.0
    rate: float = 0.0
    products: int = 0

    def limit_ns(self, row: Row) -> float:
        """Nanoseconds of a task: no kernel stays below them, or those of the rate that is asked for."""
        if self.rate:
            return 1e9 / self.rate
        return 1e9 * max(row.floor_bytes / H200.copied, 3 * self.products / TF32_PRODUCTS_S)

    def reached(self, row: Row) -> float:
        """The share of the limit, or of the rate, that the prediction comes to."""
        return self.limit_ns(row) / row.predicted_ns

    @property
    def asked(self) -> float:
        """Of `reached`."""
        return self.share or 1.0


GOALS = (
    Goal("cuda", "W", share=0.75),
    Goal("cuda", "W_full", share=0.5),
    Goal("cuda", "context_gram", share=0.5),
    Goal("cuda", "lfom_solve", share=0.5),
    Goal("cuda", "trainer, statistics", rate=9e9),
    Goal("cuda", "step, B = 1000", rate=1e6 / 6),
    Goal("triton", "tile, d = 64", share=0.6, products=TILE_64.operations.total),
    Goal("triton", "tile, d = 128", share=0.6, products=TILE_128.operations.total),
)


def print_goals(rows: Sequence[Row], console: Console) -> None:
    """The goals whose cases have rows, as a table."""
    found = {(row.backend, row.name): row for row in rows}
    table = new_table(["case"], ["limit", "predicted", "reached", "asked", "takes most"])
    table.title = f"ns a task or step on an {H200.name} against the goals: worked out, not measured"
    for goal in GOALS:
        row = found.get((goal.backend, goal.case))
        if row is None:
            continue
        shares = (f"{goal.reached(row):.0%}", f"{goal.asked:.0%}")
        table.add_row(
            f"{goal.backend}, {goal.case}", figure(goal.limit_ns(row)), figure(row.predicted_ns), *shares, row.bound
        )
    console.print(table)
