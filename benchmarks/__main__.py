"""`python -m benchmarks`: tables of every provider on every workload, and their JSON records. Its commands look closer:
`growth` along one axis at a time, `overhead` of one call, `floors` and where the time between them and a kernel goes,
`virtual` at the GPU backends' kernels on a virtual GPU, `gpu-floors` at what they need of an H200 by that;
`compare` holds a run of today against the committed records, `dispatch` the automatic choice against every provider,
`roofline` every kernel against the machine's limits; `trainer` looks at whole optimiser steps, `attention` at attention
and the register update, `prefixes` at every prefix in one pass, `proximal` at learned iterative shrinkage; `readme`
writes the README's figures.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import readme
from benchmarks.gpu import commands
from benchmarks.measure import dispatch, floors, growth, overhead, prefixes, proximal, roofline, trainer
from benchmarks.measure.harness import Policy
from benchmarks.measure.machine import measure_machine
from benchmarks.measure.provider import Provider
from benchmarks.measure.providers import AUTOMATIC, PROVIDERS, select
from benchmarks.measure.results import Report
from benchmarks.measure.run import run
from benchmarks.measure.sources import ROOT
from benchmarks.measure.workloads import QUICK_BATCHES, WORKLOAD_BATCHES, WORKLOADS, Workload
from benchmarks.reports import attention, compare, tables
from benchmarks.reports.record import read_report, read_reports, write_json, write_reports
from benchmarks.reports.table import not_timed, print_report
from memformer_kernels import build_info
from memformer_kernels.calls import checks
from memformer_lab.runs.files import write_atomically

# Help is given in words and never left to docstrings, which `python -OO` takes away.
app = typer.Typer(add_completion=False)

CPU = torch.device("cpu")
RESULTS = ROOT / "results" / "bench"
COMMITTED = tuple(ROOT / "benchmarks" / "results" / name for name in ("cpu-w.json", "cpu-w-full.json"))

Quick = Annotated[bool, typer.Option("--quick", help="Small batches, few runs: a look, not a record.")]
Words = Annotated[list[str] | None, typer.Option("--provider", help="Part of a provider's name; repeat for several.")]
Backend = Annotated[
    str, typer.Option(help="One of memformer_kernels' backends; default cpu, or torch where it is missing.")
]
Folder = Annotated[Path, typer.Option(help="Where the records go, one <device>-<what>.json each.")]
Record = Annotated[Path, typer.Option(help="Record.")]
Picture = Annotated[Path, typer.Option(help="Picture.")]


@app.callback(
    invoke_without_command=True,
    help="Time every provider on each workload on the CPU, each behind a correctness gate; one table and record each.",
)
def bench(
    context: typer.Context,
    workload: Annotated[
        list[str] | None, typer.Option(help=f"Any of {', '.join(WORKLOADS)}; repeat for several; default all.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Tasks; repeat for several sizes.", min=1)] = None,
    provider: Words = None,
    quick: Quick = False,
    out: Folder = RESULTS,
) -> None:
    if context.invoked_subcommand:
        return
    names = workload or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(WORKLOADS)}", param_hint="--workload")
    providers = _selected(provider)
    console = Console()
    for name in names:
        sizes = batch or (QUICK_BATCHES if quick else WORKLOAD_BATCHES[name])
        report = _timed([WORKLOADS[name].with_batch(size) for size in sizes], providers, console, quick)
        path = out / f"cpu-{name.lower().replace('_', '-')}.json"
        write_reports(path, [report])
        print_report(report, console)
        console.print(f"{report.seconds:.0f} s; record: {path}", soft_wrap=True)


@app.command(
    "growth",
    help="Time ours and the best peers against batch, context, layers and features; one record and one picture.",
)
def grow(
    axis: Annotated[
        list[str] | None, typer.Option(help=f"Any of {', '.join(a.field for a in growth.AXES)}; default all.")
    ] = None,
    provider: Words = None,
    quick: Quick = False,
    json: Record = RESULTS / "growth-cpu.json",
    figure: Picture = RESULTS / "growth.png",
) -> None:
    fields = [a.field for a in growth.AXES]
    for field in axis or []:
        if field not in fields:
            raise typer.BadParameter(f"{field!r} is not one of {', '.join(fields)}", param_hint="--axis")
    providers = _selected(provider or [*growth.PEERS, f"memformer_kernels ({best_backend()})"])
    console = Console()
    workloads = [w for a in growth.AXES if not axis or a.field in axis for w in a.workloads(quick)]
    report = _timed(workloads, providers, console, quick, growth.POLICY)
    write_reports(json, [report])
    _draw(figure, "growth", report)
    console.print(tables.growth_table(report))
    for line in not_timed(_troubles(report)):
        console.print(line, markup=False)
    console.print(f"{report.seconds:.0f} s; record: {json}; picture: {figure}", soft_wrap=True)


@app.command("trainer", help="Whole optimiser steps, of one model and of twenty, compared with PyTorch and its Adam.")
def train(quick: Quick = False, json: Record = RESULTS / "trainer-cpu.json") -> None:
    machine = measure_machine(CPU, quick=quick)
    found = trainer.measure(machine, rounds=3, compiled=False) if quick else trainer.measure(machine)
    targets = {"target_ms": trainer.TARGET_MS, "target_models_ratio": trainer.TARGET_MODELS}
    write_json(json, {"format": trainer.FORMAT, **targets}, found)
    console = Console()
    tables.print_trainer(found, console)
    console.print(f"record: {json}", soft_wrap=True)


@app.command(
    "prefixes", help="The loss of every prefix and its gradients, compared with a Gram matrix for each in PyTorch."
)
def time_prefixes(quick: Quick = False, json: Record = RESULTS / "prefixes-cpu.json") -> None:
    console = Console()
    with console.status("starting") as status:
        machine = measure_machine(CPU, quick=quick)
        timings = prefixes.measure(quick, status.update)
    write_json(
        json,
        {"format": prefixes.FORMAT, "target_ratio": prefixes.TARGET_RATIO, "machine": machine, "timings": timings},
    )
    tables.print_prefixes(timings, console)
    console.print(f"record: {json}", soft_wrap=True)


@app.command("proximal", help="Learned iterative shrinkage and its gradients, compared with LISTA in PyTorch.")
def time_proximal(quick: Quick = False, json: Record = RESULTS / "proximal-cpu.json") -> None:
    console = Console()
    with console.status("starting") as status:
        machine = measure_machine(CPU, quick=quick)
        timings = proximal.measure(quick, status.update)
    write_json(json, {"format": proximal.FORMAT, "machine": machine, "timings": timings})
    tables.print_proximal(timings, console)
    console.print(f"record: {json}", soft_wrap=True)


@app.command("overhead", help="Hold a public call on one task against an empty registered operation, in the same run.")
def call_overhead(backend: Backend = "", quick: Quick = False, json: Record = RESULTS / "overhead-cpu.json") -> None:
    found = overhead.measure(_backend(backend), **({"rounds": 10, "calls": 5} if quick else {}))
    write_json(json, {"format": overhead.FORMAT, "target_ratio": overhead.TARGET_RATIO}, found)
    console = Console()
    tables.print_overhead(found, console)
    console.print(f"record: {json}", soft_wrap=True)


@app.command("floors", help="Say where the time between a backend and the memory's limit goes, on each workload.")
def memory_floors(backend: Backend = "", quick: Quick = False, json: Record = RESULTS / "floors-cpu.json") -> None:
    name = _backend(backend)
    console = Console()
    machine = measure_machine(CPU, quick=quick)
    rounds, batch = (3, 1000) if quick else (floors.ROUNDS, floors.BATCH)
    profiles = [floors.profile(w.with_batch(batch), name, machine, rounds) for w in floors.WORKLOADS]
    write_json(json, {"format": floors.FORMAT, "machine": machine, "profiles": profiles})
    for found in profiles:
        tables.print_profile(found, console)
    console.print(f"record: {json}", soft_wrap=True)


@app.command(
    "compare",
    help="Run a record's sizes again and hold today's ratios to a peer against it; exit status 1 if one fell.",
)
def compare_with_records(
    record: Annotated[
        list[Path] | None, typer.Argument(help="Records of this command; default: the committed ones of the CPU.")
    ] = None,
    quick: Quick = False,
) -> None:
    console = Console()
    fell = False
    for path in record or COMMITTED:
        try:
            then = read_report(path)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint="RECORD") from error
        runnable = frozenset(p.name for p in PROVIDERS if any(p.supports(w, CPU) for w in compare.sizes(then)))
        chosen = compare.contenders(then, runnable)
        workloads = [w for w in compare.sizes(then) if not quick or w.batch <= QUICK_BATCHES[0]]
        now = _timed(workloads, [provider for provider in PROVIDERS if provider.name in chosen], console, quick)
        found = list(compare.changes(then, now))
        console.print(f"\n{path.name}: revision {then.machine.revision} then, {now.machine.revision} now")
        console.print(tables.change_table(found))
        unheard = [] if quick else compare.missing(then, now)
        for line in unheard:
            console.print(line, markup=False)
        fell = fell or bool(unheard) or any(change.verdict == "slower" for change in found)
    console.print("x: the peer's median over ours in one run; more is better. band: what both runs' spread explains.")
    if fell:
        raise typer.Exit(1)


@app.command(
    "dispatch",
    help='Hold backend="auto" against every provider on every named workload; exit status 1 if it chose badly.\n\nThe '
    "record is written after each workload, so that a run that was stopped goes on where it was.",
)
def check_dispatch(
    workload: Annotated[list[str] | None, typer.Option(help="Part of a workload's name; default all.")] = None,
    provider: Words = None,
    quick: Quick = False,
    again: Annotated[bool, typer.Option("--again", help="Also what the record holds already.")] = False,
    json: Annotated[Path, typer.Option(help="Record; one that is there is continued.")] = RESULTS / "dispatch-cpu.json",
    figure: Picture = RESULTS / "dispatch.png",
) -> None:
    chosen = [w for name, w in dispatch.CATALOGUE.items() if not workload or any(part in name for part in workload)]
    if not chosen:
        raise typer.BadParameter(f"no name holds it; they are {'; '.join(dispatch.CATALOGUE)}", param_hint="--workload")
    selected = _selected(provider)
    providers = (*(p for p in dispatch.CONTENDERS if p in selected), AUTOMATIC)
    try:
        kept = {report.timings[0].workload: report for report in (read_reports(json) if json.exists() else ())}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--json") from error
    console = Console()
    for one in chosen:
        if one in kept and not again:
            continue
        kept[one] = _timed([one], providers, console, quick, dispatch.POLICY)
        write_reports(json, [kept[known] for known in dispatch.CATALOGUE.values() if known in kept])
        for line in not_timed(_troubles(kept[one])):
            console.print(line, markup=False)
    found = list(dispatch.choices([kept[one] for one in chosen]))
    console.print(tables.choice_table(found))
    _draw(figure, "dispatch", kept[chosen[-1]].machine, found)
    console.print(f"{len(found)} workloads; record: {json}; picture: {figure}", soft_wrap=True)
    if not all(choice.good for choice in found):
        raise typer.Exit(1)


@app.command(
    "roofline",
    help="Time every kernel of this CPU and hold it against the machine's bandwidths and arithmetic; record and "
    "picture.",
)
def draw_roofline(
    quick: Quick = False,
    json: Record = RESULTS / "roofline-cpu.json",
    figure: Picture = RESULTS / "roofline.png",
) -> None:
    console = Console()
    with console.status("measuring the machine") as status:
        machine = measure_machine(CPU, quick=quick)
        points = roofline.measure(quick=quick, announce=status.update)
    write_json(json, {"format": roofline.FORMAT, "machine": machine, "points": points})
    _draw(figure, "roofline", machine, points)
    tables.print_roofline(machine, points, console)
    console.print(f"record: {json}; picture: {figure}", soft_wrap=True)


@app.command("readme", help="Write the figures in the README and in docs again from the committed records.")
def write_readme(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit status 1 if a page differs.")] = False,
) -> None:
    stale = readme.stale(ROOT)
    if check:
        raise typer.Exit(int(bool(stale)))
    for path, text in stale.items():
        write_atomically(path, text.encode())


app.command("gpu-floors", help=commands.FLOORS_HELP)(commands.floors_of_a_gpu)
app.command("virtual", help=commands.VIRTUAL_HELP)(commands.count)


@app.command(
    "attention",
    help="Time linear attention against its peers over length, and the register update against the copy bandwidth.",
)
def time_attention(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Quick = False,
    json: Annotated[
        Path | None, typer.Option(help="Record, gone on with if it is there; default attention-<device>.json.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Begin no case after so many seconds.")] = math.inf,
    figure: Annotated[Path | None, typer.Option(help="Draw time and memory over length, when all is there.")] = None,
) -> None:
    path = json or RESULTS / f"attention-{device}.json"
    try:
        record = attention.proceed(path, torch.device(device), quick, seconds)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--json") from error
    console = Console()
    tables.print_attention(record.attention, record.updates, console)
    left = len(record.missing)
    if figure and not left:
        _draw(figure, "attention", record)
    rest = f"; {left} cases left, which the same command goes on with" if left else ""
    console.print(f"record: {path}{rest}", soft_wrap=True)


def _timed(
    workloads: Sequence[Workload],
    providers: Sequence[Provider],
    console: Console,
    quick: bool,
    policy: Policy | None = None,
) -> Report:
    """A run on the CPU; policy: of one that is not quick."""
    with console.status("starting") as status:
        return run(workloads, providers, CPU, quick=quick, policy=None if quick else policy, announce=status.update)


def _draw(path: Path, name: str, *found: Any) -> None:
    """A picture by its name in `reports.figures`, which is imported when one is drawn."""
    from benchmarks.reports import figures

    write_atomically(path, getattr(figures, name)(*found))


def best_backend() -> str:
    """The fastest backend that can run on this CPU."""
    return "cpu" if build_info().backends["cpu"].available else "torch"


def _backend(name: str) -> checks.Backend:
    known = build_info().backends
    if name and (name not in known or not known[name].available):
        reason = known[name].reason if name in known else f"the backends are {', '.join(known)}"
        raise typer.BadParameter(f"{name!r}: {reason}", param_hint="--backend")
    found: checks.Backend = checks.check_choice("--backend", name or best_backend(), checks.BACKENDS)
    return found


def _selected(words: list[str] | None) -> tuple[Provider, ...]:
    try:
        return select(words or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--provider") from error


def _troubles(report: Report) -> Report:
    """The report of what ought to have been timed and was not."""
    return replace(report, timings=tuple(t for t in report.timings if t.status in ("failed", "rejected")))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
