"""The figures of speed in the README and in docs, written from the committed records between marks nobody sees.

A part begins with `<!-- record: NAME -->` and ends with `<!-- end -->`; between them is what `PARTS[NAME]` writes.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

from benchmarks.measure.dispatch import AUTO, Choice, choices
from benchmarks.measure.results import Report, Timing, memory_floor_ms
from benchmarks.reports.record import read_report, read_reports
from benchmarks.reports.table import figure

RESULTS = Path(__file__).resolve().parent / "results"

PAGES = ("README.md", "docs/performance.md", "docs/training.md", "docs/prefixes.md", "docs/proximal.md")
"""The pages that have such parts."""

_PART = re.compile(r"(<!-- record: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generate(text: str) -> str:
    """A page's text with every part written again.

    Raises:
        ValueError: a part that is not one of PARTS, or a record that cannot be read.
    """

    def written(found: re.Match[str]) -> str:
        name = found.group(2)
        if name not in PARTS:
            raise ValueError(f"record: expected one of {', '.join(PARTS)}, got {name!r}")
        return f"{found.group(1)}{PARTS[name]()}\n{found.group(3)}"

    return _PART.sub(written, text)


def stale(root: Path) -> dict[Path, str]:
    """The pages below a folder that differ from what the records say, with the text that each should have.

    Raises:
        OSError, ValueError: a page or a record that cannot be read.
    """
    found = {}
    for path in (root / page for page in PAGES):
        text = path.read_text(encoding="utf-8")
        if (right := generate(text)) != text:
            found[path] = right
    return found


def _summary() -> str:
    """Ours against the fastest peer, one line a workload, and every workload on which a peer was faster."""
    w, full = read_report(RESULTS / "cpu-w.json"), read_report(RESULTS / "cpu-w-full.json")
    rows = [_against("loss and gradients (W)", w, batch) for batch in _batches(w)]
    rows.append(_against("gamma for each token and feature (W_full)", full, max(_batches(full))))
    trainer = _trainer_record()
    ours = min((s for s in trainer["fresh"] if not s["peer"] and s["models"] == 1), key=_step_ms)
    peer = min((s for s in trainer["fresh"] if s["peer"]), key=_step_ms)
    step = "one optimiser step, tasks drawn in it"
    rows.append(_line(step, trainer["batch"], ours["median_ms"], peer["median_ms"], peer["contender"]))
    for choice in _lost(list(choices(read_reports(RESULTS / "dispatch-cpu.json")))):
        name = f"where we lose: {choice.workload.name}"
        rows.append(_line(name, choice.workload.batch, choice.auto.median_ms, choice.peer_ms or 0, choice.peer or ""))
    head = _prose(
        f"Milliseconds (medians), d = 5, n = 20, 4 layers, LFOM, float32, on {w.machine.threads} cores of an",
        f"{w.machine.processor}; the peers are formulations in eager PyTorch, `torch.compile` and JAX,",
        "tuned by hand for these workloads:",
    )
    titles = "| what | tasks | ours | fastest peer | which | times as fast |"
    return "\n".join([head, "", titles, "|---|---|---|---|---|---|", *rows])


def _against(what: str, report: Report, batch: int) -> str:
    timed = [t for t in report.timings if t.workload.batch == batch and t.quantiles is not None]
    ours = min(_ms(t) for t in timed if not t.peer)
    peer = min((t for t in timed if t.peer), key=_ms)
    return _line(what, batch, ours, _ms(peer), peer.provider)


def _line(what: str, batch: int, ours: float, peer: float, name: str) -> str:
    return (
        f"| {what} | {batch:,} | {figure(ours)} | {figure(peer)} | {name} | {peer / ours:.{1 if peer > ours else 2}f} |"
    )


def _speed() -> str:
    report = read_report(RESULTS / "cpu-w.json")
    last = max(_batches(report))
    read = report.machine.read_gb_s or report.machine.copy_gb_s
    (workload,) = {t.workload for t in report.timings if t.workload.batch == 100_000}
    judged = _prose(
        f"The native kernels are {_ratio(report, 100_000)} times as fast as the fastest peer at B = 100,000",
        f"({_best_peer(report, 100_000)}) and {_ratio(report, last)} times at B = {last:,}.",
        "These peers are tuned by hand for this one workload.",
        f"Reading the tokens alone would take {figure(memory_floor_ms(workload, read))} ms at B = 100,000",
        "with the read bandwidth of that run; what the rest goes into is in `benchmarks/NOTES.md`.",
    )
    return f"{_where(report)}\n\n{_medians(report)}\n\n{judged}"


def _tokens() -> str:
    report = read_report(RESULTS / "cpu-w-full.json")
    judged = _prose(
        f"Here the native kernels are {_ratio(report, 100_000)} times as fast as the fastest peer at B = 100,000",
        f"({_best_peer(report, 100_000)}).",
    )
    return f"{_where(report)}\n\n{_medians(report)}\n\n{judged}"


def _dispatch() -> str:
    reports = read_reports(RESULTS / "dispatch-cpu.json")
    found = list(choices(reports))
    ratios = sorted(c.peer_ratio for c in found if c.peer_ratio is not None)
    lost = _lost(found)
    head = _prose(
        f"`python -m benchmarks dispatch` holds the automatic choice against every provider on {len(found)} named",
        f"workloads of many rules, structures, directions and precisions: {_range(found, 'd')}, {_range(found, 'n')},",
        f"{_range(found, 'layers')}, {_range(found, 'batch')}.",
        f"On {sum(choice.good for choice in found)} of them no provider, ours or a peer's, was more than a",
        "tenth and the noise faster. Over the fastest peer the automatic choice stands at",
        f"{figure(ratios[0])} to {figure(ratios[-1])} times as fast, {figure(ratios[len(ratios) // 2])} in the middle.",
        *_solvers(reports),
    )
    if not lost:
        return f"{head}\n\nNowhere did we lose: no peer was faster than the automatic choice."
    rows = [
        f"| {c.workload.name} | {figure(c.auto.median_ms)} | {figure(c.peer_ms or 0)} | {c.peer} | {c.peer_ratio:.2f} |"
        for c in lost
    ]
    titles = "| where we lose | ours, ms | best peer, ms | which peer | times as fast |"
    return "\n".join([head, "", titles, "|---|---|---|---|---|", *rows])


def _lost(found: Sequence[Choice]) -> list[Choice]:
    """The workloads on which a peer was faster."""
    return [choice for choice in found if choice.peer_ratio is not None and choice.peer_ratio < 1]


def _range(found: Sequence[Choice], field: str) -> str:
    sizes = [getattr(choice.workload, field) for choice in found]
    return f"{field} = {min(sizes):,} to {max(sizes):,}"


def _solvers(reports: Sequence[Report]) -> list[str]:
    """What solving the tasks costs compared with running the network, on the first workload where both were timed."""
    for report in reports:
        solvers = {t.provider: _ms(t) for t in report.timings if t.solver and t.quantiles is not None}
        ours = [_ms(t) for t in report.timings if t.provider == AUTO]
        if solvers and ours:
            w = report.timings[0].workload
            costs = " and ".join(f"{figure(ms)} ms for {name}" for name, ms in solvers.items())
            sizes = f"{w.batch:,} tasks (d = {w.d}, n = {w.n}, L = {w.layers})"
            return [f"Predicting {sizes} takes {figure(ours[0])} ms, solving them {costs}."]
    return []


def _trainer() -> str:
    record = _trainer_record()
    machine = record["machine"]
    head = _prose(
        f"Milliseconds a step (medians) at B = {record['batch']:,}, d = 5, n = 20, 4 layers, LFOM, float32, on",
        f"{machine['threads']} cores of an {machine['processor']}, in one run; x: the quickest peer's step, times the",
        "number of models, over this one's. Peers step torch's fused Adam.",
    )
    lines = [head, "", "| trainer | tasks | ms | x |", "|---|---|---|---|"]
    for kind, tasks in (("fresh", "fresh tasks every step"), ("given", "given tasks")):
        best = min(step["median_ms"] for step in record[kind] if step["peer"])
        for step in sorted(record[kind], key=lambda step: step["median_ms"] / step["models"]):
            name = step["contender"] if step["peer"] else f"**{step['contender']}**"
            name += f", {step['models']} models" if step["models"] > 1 else ""
            ratio = best * step["models"] / step["median_ms"]
            lines.append(f"| {name} | {tasks} | {figure(step['median_ms'])} | {figure(ratio)} |")
    return "\n".join(lines)


def _trainer_record() -> dict[str, Any]:
    return _record("trainer-cpu.json")


def _step_ms(step: Mapping[str, Any]) -> float:
    return float(step["median_ms"])


def _overhead() -> str:
    record = _record("overhead-cpu.json")
    lines = [
        "| one task of workload W | public call, us | empty registered operation, us | ratio |",
        "|---|---|---|---|",
    ]
    for one in record["comparisons"]:
        public, empty = one["public"]["median_us"], one["empty"]["median_us"]
        lines.append(f"| {one['call']} | {public:.1f} | {empty:.1f} | {public / empty:.2f} |")
    return "\n".join(lines)


def _prefixes() -> str:
    record = _record("prefixes-cpu.json")
    head = _prose(
        "Milliseconds (medians) of the loss at every prompt length and its gradients in q and gamma, network and",
        f"tasks of W, on {_cores(record)}; x: the time over the quickest of ours; MB: the peak of a call's memory, its",
        "results included.",
    )
    return f"{head}\n\n{_against_ours(record['timings'])}"


def _proximal() -> str:
    record = _record("proximal-cpu.json")
    most = max(timing["case"]["batch"] for timing in record["timings"])
    timings = [timing for timing in record["timings"] if timing["case"]["batch"] == most]
    case = timings[0]["case"]
    head = _prose(
        f"Milliseconds (medians) of the recovery error and its gradients in what is learned, {case['d']} weights from",
        f"{case['measured']} measurements, a dictionary a task, on {_cores(record)}; x: the time over the quickest of",
        "ours; MB: the peak of a call's memory, its results included.",
    )
    return f"{head}\n\n{_against_ours(timings, 'layers', 'learned')}"


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return record


def _cores(record: Mapping[str, Any]) -> str:
    return f"{record['machine']['threads']} cores of an {record['machine']['processor']}, in one run"


def _against_ours(timings: Sequence[Mapping[str, Any]], *fields: str) -> str:
    """A row a provider and case, quickest first within a case. fields: of a case, a column each."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for timing in timings:
        cases.setdefault(json.dumps(timing["case"]), []).append(timing)
    titles = [*fields, "tasks", "provider", "ms", "x", "MB"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for one in cases.values():
        best = min(timing["ms"] for timing in one if timing["provider"].startswith("memformer_kernels"))
        for timing in sorted(one, key=lambda timing: float(timing["ms"])):
            case, name = timing["case"], timing["provider"]
            name = f"**{name}**" if name.startswith("memformer_kernels") else name
            memory = "" if timing["peak_mb"] is None else figure(timing["peak_mb"])
            cells = [*(str(case[field]) for field in fields), f"{case['batch']:,}", name, figure(timing["ms"])]
            lines.append(f"| {' | '.join([*cells, figure(timing['ms'] / best), memory])} |")
    return "\n".join(lines)


def _where(report: Report) -> str:
    machine = report.machine
    return _prose(
        f"Milliseconds (medians) on {machine.threads} cores of an {machine.processor}, torch {machine.torch}, in one",
        f"run that measured {machine.copy_gb_s:.0f} GB/s of copy bandwidth, behind a correctness gate; `make bench`",
        "measures the table again, `benchmarks/NOTES.md` has the floors.",
    )


def _prose(*pieces: str) -> str:
    return fill(" ".join(pieces), 120, break_long_words=False, break_on_hyphens=False)


def _medians(report: Report) -> str:
    """A row a provider, a column a batch size, quickest first at B = 100,000."""
    batches = _batches(report)
    timed = {(t.provider, t.workload.batch): _ms(t) for t in report.timings if t.quantiles is not None}
    names = {t.provider: t.peer for t in report.timings if t.quantiles is not None}
    at = max(size for size in batches if size <= 100_000)
    lines = [
        "| provider | " + " | ".join(f"B = {size:,}" for size in batches) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    best = next(name for name, _ in sorted(timed.items(), key=lambda item: item[1]) if not names[name[0]])[0]
    for name in sorted(names, key=lambda name: timed.get((name, at), float("inf"))):
        cells = [figure(timed[name, size]) if (name, size) in timed else "" for size in batches]
        lines.append(f"| {f'**{name}**' if name == best else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _batches(report: Report) -> list[int]:
    return sorted({t.workload.batch for t in report.timings if t.quantiles is not None})


def _ratio(report: Report, batch: int) -> str:
    timed = [t for t in report.timings if t.workload.batch == batch and t.quantiles is not None]
    return f"{min(_ms(t) for t in timed if t.peer) / min(_ms(t) for t in timed if not t.peer):.1f}"


def _best_peer(report: Report, batch: int) -> str:
    timed = [t for t in report.timings if t.workload.batch == batch and t.quantiles is not None and t.peer]
    return min(timed, key=_ms).provider


def _ms(timing: Timing) -> float:
    return timing.quantiles.median_ms if timing.quantiles else float("inf")


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "speed": _speed,
        "tokens": _tokens,
        "dispatch": _dispatch,
        "trainer": _trainer,
        "overhead": _overhead,
        "prefixes": _prefixes,
        "proximal": _proximal,
        "summary": _summary,
    }
)
"""What writes each part."""
