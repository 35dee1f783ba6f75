"""A report in the terminal: the machine, one table with every workload and batch size, what was not timed and why."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure.results import Machine, Report, Timing, floors_ms, memory_floor_ms
from benchmarks.measure.workloads import Workload


def print_report(report: Report, console: Console) -> None:
    """Print everything a reader needs to judge the figures."""
    machine = report.machine
    console.print(f"\nforward + backward to all parameters on {machine.gpu or f'the CPU, threads: {machine.threads}'}")
    console.print(
        f"{machine.processor}, torch {machine.torch}, memformer_kernels {machine.package}, revision {machine.revision}"
    )
    console.print(
        f"measured in this run: copy {machine.copy_gb_s:,.1f} GB/s, "
        + ("" if machine.read_gb_s is None else f"read {machine.read_gb_s:,.1f} GB/s, ")
        + f"float32 matrix products {machine.fma_gflop_s:,.0f} GFLOP/s"
    )
    console.print(report_table(report))
    console.print("x best peer: the fastest peer's median over this one's; more is better.")
    console.print("% of copy, read: the time the bytes need at that bandwidth, over the median.")
    for line in not_timed(report):
        console.print(line, markup=False)


def report_table(report: Report) -> Table:
    """One section per workload and batch size, fastest first, headed by the workload's two floors."""
    numbers = ["ms, median\n(q10..q90)", "ns a\ntask", "x best\npeer", "% of\ncopy", "% of\nread"]
    table = new_table(["provider"], numbers)
    for workload in _workloads(report):
        timed = [timing for timing in report.timings if timing.workload == workload and timing.quantiles is not None]
        table.add_section()
        table.add_row(f"[bold]{workload.name}, B = {workload.batch:,}[/bold]")
        for floor, milliseconds in floors_ms(workload, report.machine).items():
            table.add_row(f"[dim]{floor}[/dim]", figure(milliseconds), figure(milliseconds * 1e6 / workload.batch))
        best = report.best_peer_ms(workload)
        for timing in sorted(timed, key=_median):
            table.add_row(*_row(timing, best, report.machine))
    return table


def _workloads(report: Report) -> list[Workload]:
    return list(dict.fromkeys(timing.workload for timing in report.timings))


def _median(timing: Timing) -> float:
    return timing.quantiles.median_ms if timing.quantiles else float("inf")


def _row(timing: Timing, best_ms: float | None, machine: Machine) -> tuple[str, ...]:
    found, median = timing.quantiles, _median(timing)
    spread = f" ({figure(found.q10_ms)}..{figure(found.q90_ms)})" if found else ""
    return (
        timing.provider if timing.peer else f"[green]{timing.provider}[/green]",
        f"{figure(median)}{spread}",
        figure(median * 1e6 / timing.workload.batch),
        "" if best_ms is None else f"{best_ms / median:.2f}",
        *(
            "" if gb_s is None else f"{100 * memory_floor_ms(timing.workload, gb_s) / median:.1f}"
            for gb_s in (machine.copy_gb_s, machine.read_gb_s)
        ),
    )


def not_timed(report: Report) -> list[str]:
    """One line per workload, batch size and reason, naming the providers it holds for."""
    providers: dict[str, list[str]] = {}
    for timing in report.timings:
        if timing.status != "timed":
            where = f"{timing.workload.name}, B = {timing.workload.batch:,}"
            providers.setdefault(f"{where}, {timing.status}, {timing.reason}", []).append(timing.provider)
    return [f"{reason}: {'; '.join(names)}" for reason, names in providers.items()]


def new_table(words: Sequence[str], numbers: Sequence[str], more_words: Sequence[str] = ()) -> Table:
    """A table without lines in it, of columns of words, numbers and words again."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for headers, justify in ((words, "left"), (numbers, "right"), (more_words, "left")):
        for header in headers:
            table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def figure(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
