"""Pictures of records. matplotlib takes longer to import than most commands to start, so it comes when one is drawn."""

from collections.abc import Sequence

from benchmarks.measure.dispatch import Choice
from benchmarks.measure.roofline import Point
from benchmarks.reports.record import Machine, Report


def growth(report: Report) -> bytes:
    """Throughput along each axis, a PNG."""
    from benchmarks.reports.growth_figure import draw

    return draw(report)


def dispatch(machine: Machine, found: Sequence[Choice]) -> bytes:
    """The automatic choice over the best peer, workload by workload, a PNG."""
    from benchmarks.reports.dispatch_figure import draw

    return draw(machine, found)


def roofline(machine: Machine, points: Sequence[Point]) -> bytes:
    """Every kernel below the machine's limits, a PNG."""
    from benchmarks.reports.roofline_figure import draw

    return draw(machine, points)
