"""What the commands print besides a report: a table for every kind of measurement, and what its columns mean."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import attention
from benchmarks.measure.attention import AttentionTiming, UpdateTiming
from benchmarks.measure.dispatch import Choice
from benchmarks.measure.floors import GRADIENTS, ONE_THREAD, Profile
from benchmarks.measure.growth import AXES, median, points
from benchmarks.measure.overhead import TARGET_RATIO, Overhead
from benchmarks.measure.prefixes import PrefixTiming
from benchmarks.measure.proximal import ProximalTiming
from benchmarks.measure.results import Machine, Report
from benchmarks.measure.roofline import Point
from benchmarks.measure.trainer import MODELS, TARGET_MODELS, TARGET_MS, Step, TrainerReport
from benchmarks.reports.compare import Change
from benchmarks.reports.table import figure, new_table


def choice_table(found: Sequence[Choice]) -> Table:
    """The automatic choice, a line a workload."""
    table = new_table(["workload"], ["auto, ms", "best, ms", "auto/best", "noise"], ["best provider"])
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


def growth_table(report: Report) -> Table:
    """A line a point, a section an axis: what ours and the fastest peer take."""
    table = new_table(["axis"], ["ours, ms", "ns/task", "best peer, ms", "x"], ["which peer"])
    for axis in AXES:
        table.add_section()
        for point in points(axis, report):
            ours, peer = (None if timing is None else median(timing) for timing in (point.ours, point.peer))
            table.add_row(
                f"{axis.label} = {point.value:,}",
                "" if ours is None else figure(ours),
                "" if ours is None else figure(ours * 1e6 / point.workload.batch),
                "" if peer is None else figure(peer),
                "" if ours is None or peer is None else figure(peer / ours),
                point.peer.provider if point.peer else "",
            )
    return table


def change_table(found: Sequence[Change]) -> Table:
    """Ratios then and now, a line each."""
    table = new_table(["workload", "ours", "peer"], ["x then", "x now", "band"], [""])
    table.columns[2].no_wrap = False
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


def print_profile(found: Profile, console: Console) -> None:
    """The floors, the parts, and what the time is made of."""
    workload = found.workload
    table = new_table(["part"], ["ms, median (q10..q90)", "ns/task", "x reading"])
    table.title = f"{workload.name}, B = {workload.batch:,}, backend {found.backend}"

    def add(name: str, ms: float, text: str) -> None:
        table.add_row(name, text, figure(ms * 1e6 / workload.batch), f"{ms / found.read_ms:.2f}")

    add("[dim]reading the tokens (bytes)[/dim]", found.read_ms, figure(found.read_ms))
    add("[dim]multiply-adds at full rate[/dim]", found.operations_ms, figure(found.operations_ms))
    for part in found.parts:
        add(part.name, part.median_ms, _spread(part.median_ms, part.q10_ms, part.q90_ms))
    console.print(table)
    total = found.median(GRADIENTS)
    shares = [f"{name} {100 * ms / total:.0f}%" for name, ms in found.attribution_ms.items()]
    console.print(f"{GRADIENTS}: {figure(total)} ms = {'; '.join(shares)}", soft_wrap=True)
    console.print(
        f"two threads over one: {found.median(ONE_THREAD) / total:.2f}x "
        "(the number of threads where arithmetic sets the limit, less where memory does)",
        soft_wrap=True,
    )


def overhead_table(overhead: Overhead) -> Table:
    """Medians in microseconds, the ratio, and what the public call is made of."""
    table = new_table(["call"], ["public, us\n(q10..q90)", "empty", "ratio", "checks", "dispatch", "kernel"])
    table.title = f"one task of workload W, backend {overhead.backend}"
    for found in overhead.comparisons:
        parts = ["", "", ""]
        if found.operation and found.kernel:
            public, operation, kernel = (cost.median_us for cost in (found.public, found.operation, found.kernel))
            parts = [figure(part) for part in (public - operation, operation - kernel, kernel)]
        color = "green" if found.ratio <= TARGET_RATIO else "red"
        table.add_row(
            found.call,
            _spread(found.public.median_us, found.public.q10_us, found.public.q90_us),
            figure(found.empty.median_us),
            f"[{color}]{found.ratio:.2f}[/{color}]",
            *parts,
        )
    return table


def print_overhead(overhead: Overhead, console: Console) -> None:
    """The table and what its columns mean."""
    console.print(overhead_table(overhead))
    console.print(
        f"ratio: public over empty, to be at most {TARGET_RATIO:g}. The last three are the public call's parts:"
    )
    console.print("checks and plan before the operation; dispatch and autograd around the backend; the backend itself.")


def print_prefixes(timings: Sequence[PrefixTiming], console: Console) -> None:
    """A line a provider and batch, and the rates that ours stand at."""
    console.print(_compared([], [((), timing) for timing in timings]))


def print_proximal(timings: Sequence[ProximalTiming], console: Console) -> None:
    """A line a network, provider and batch, and the rates that ours stand at."""
    found = [((f"{timing.case.layers} layers", timing.case.learned), timing) for timing in timings]
    console.print(_compared(["network", "learned"], found))


def _compared(words: Sequence[str], found: Sequence[tuple[tuple[str, ...], PrefixTiming | ProximalTiming]]) -> Table:
    """What each provider takes, and how many times as long as the fastest of ours on the same tasks."""
    table = new_table([*words, "provider"], ["tasks", "ms", "times ours", "peak MB", "GFLOP/s", "GB/s"])
    best: dict[object, float] = {}
    for _, t in found:
        if t.provider.startswith("memformer_kernels"):
            best[t.case] = min(t.ms, best.get(t.case, t.ms))
    for named, t in found:
        tasks = t.case.batch
        rates = (2e-6 * tasks * t.case.multiply_adds / t.ms, 1e-6 * tasks * t.case.bytes_moved / t.ms)
        peak = "" if t.peak_mb is None else figure(t.peak_mb)
        numbers = (figure(t.ms), figure(t.ms / best[t.case]), peak, *map(figure, rates))
        table.add_row(*named, t.provider, f"{tasks:,}", *numbers)
    return table


def print_roofline(machine: Machine, points: Sequence[Point], console: Console) -> None:
    """A line a kernel."""
    numbers = ["ms", "operations\na byte", "GFLOP/s", "GB/s", "% of\nlimit"]
    table = new_table(["kernel", "backend", "size"], numbers)
    for column in table.columns[:3]:
        column.no_wrap = False
    for p in points:
        limit = 100 * p.limit_ms(machine) / p.ms
        rates = (p.ms, p.intensity, p.gflop_s, p.bytes / p.ms / 1e6, limit)
        table.add_row(p.kernel, p.backend, p.size, *map(figure, rates))
    console.print(table)


def print_trainer(report: TrainerReport, console: Console) -> None:
    """Both tables, and the two figures that are to be reached."""
    for title, steps in (("fresh tasks every step", report.fresh), ("given tasks", report.given)):
        console.print(_step_table(f"one optimiser step at B = {report.batch:,}, {title}", steps))
    console.print("x peer: the quickest peer's step over one model's here. Peers step torch's fused Adam.")
    if report.step_ms is not None and report.models_ratio is not None:
        console.print(f"native step with sampled statistics: {report.step_ms:.3g} ms, to be at most {TARGET_MS:g}")
        console.print(
            f"{MODELS} models in one call: {report.models_ratio:.3g}x cheaper than {MODELS} runs of the best peer, "
            f"to be at least {TARGET_MODELS:g}x"
        )


def _step_table(title: str, steps: tuple[Step, ...]) -> Table:
    best = min(step.median_ms for step in steps if step.peer)
    table = new_table(["trainer"], ["models", "ms, median\n(q10..q90)", "us a\nmodel", "x\npeer"])
    table.title = title
    for step in sorted(steps, key=lambda step: step.median_ms / step.models):
        each = step.median_ms / step.models
        spread = _spread(step.median_ms, step.q10_ms, step.q90_ms)
        table.add_row(step.contender, str(step.models), spread, figure(each * 1e3), figure(best / each))
    return table


def print_attention(timed: Sequence[AttentionTiming], updates: Sequence[UpdateTiming], console: Console) -> None:
    """A table for every width and form of attention, and one of the register update."""
    for width in attention.WIDTHS:
        for causal in (False, True):
            console.print(_attention_table(timed, width, causal))
    table = new_table(["threads", "gamma", "J", "pass"], ["ms", "of copy"])
    table.title = "register update, 512 wide"
    for t in updates:
        case = t.case
        table.add_row(
            str(case.threads), f"per {case.granularity}", str(case.registers), t.name, f"{t.ms:.3g}", f"{t.of_copy:.2f}"
        )
    console.print(table)


def _attention_table(timed: Sequence[AttentionTiming], width: int, causal: bool) -> Table:
    found = {(t.provider, t.case.tokens): t for t in timed if (t.case.width, t.case.causal) == (width, causal)}
    lengths = sorted({tokens for _, tokens in found})
    table = new_table(["provider"], [f"N = {n:,}" for n in lengths])
    form = "causal" if causal else "full"
    table.title = f"attention, {form}: forward + backward, ms (peak MB), {attention.HEADS} heads of {width}"
    for name in dict.fromkeys(provider for provider, _ in found):
        table.add_row(name, *(attention_cell(found.get((name, n))) for n in lengths))
    return table


def attention_cell(timing: AttentionTiming | None) -> str:
    """Milliseconds, with megabytes behind them where they are known."""
    if timing is None:
        return ""
    milliseconds = f"{timing.ms:,.0f}" if timing.ms >= 100 else f"{timing.ms:.3g}"
    return milliseconds + ("" if timing.peak_mb is None else f" ({timing.peak_mb:,.0f})")


def _spread(middle: float, low: float, high: float) -> str:
    return f"{figure(middle)} ({figure(low)}..{figure(high)})"
