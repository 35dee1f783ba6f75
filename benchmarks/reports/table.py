"""A report in the terminal: the machine, one table with every workload and batch size, what was not timed and why."""

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure.workloads import Workload
from benchmarks.reports.record import Machine, Report, Timing


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("provider", no_wrap=True)
    for header in ("ms, median\n(q10..q90)", "ns a\ntask", "x best\npeer", "% of\ncopy", "% of\nread"):
        table.add_column(header, justify="right", no_wrap=True)
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


def floors_ms(workload: Workload, machine: Machine) -> dict[str, float]:
    """The milliseconds no method can stay below, by the name of the rate that says so."""
    floors = {"bytes at copy bandwidth": memory_floor_ms(workload, machine.copy_gb_s)}
    if machine.read_gb_s is not None:
        floors["bytes at read bandwidth"] = memory_floor_ms(workload, machine.read_gb_s)
    return {**floors, "operations": operations_floor_ms(workload, machine)}


def memory_floor_ms(workload: Workload, gb_s: float) -> float:
    """Milliseconds a bandwidth needs for the bytes no method can avoid."""
    return workload.bytes_moved / gb_s / 1e6


def operations_floor_ms(workload: Workload, machine: Machine) -> float:
    """Milliseconds the machine's matrix-product rate needs for the cheapest known method's multiply-adds."""
    return 2 * workload.batch * workload.operations.total / machine.fma_gflop_s / 1e6


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


def figure(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
