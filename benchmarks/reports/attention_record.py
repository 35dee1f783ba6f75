"""The record of `measure.attention`: made case by case, so that a run that is stopped goes on where it was."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import attention as blocks
from benchmarks.measure.attention import AttentionCase, AttentionTiming, UpdateCase, UpdateTiming
from benchmarks.measure.machine import measure_machine
from benchmarks.reports.record import Machine, write_json

FORMAT = 2


@dataclass
class Record:
    """What was timed so far on one machine with one revision, and the cases that are still to come."""

    machine: Machine
    quick: bool
    attention: list[AttentionTiming] = field(default_factory=list)
    updates: list[UpdateTiming] = field(default_factory=list)

    @property
    def missing(self) -> list[AttentionCase | UpdateCase]:
        done = {timing.case for timing in self.attention} | {timing.case for timing in self.updates}
        device = torch.device(self.machine.device)
        cases: list[AttentionCase | UpdateCase] = [*blocks.attention_cases(self.quick), *blocks.update_cases(device)]
        return [case for case in cases if case not in done]


def write(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_json(path, {"format": FORMAT, "heads": blocks.HEADS, **asdict(record)})


def read(path: Path) -> Record:
    """The record written by `write`. Raises ValueError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}, expected {FORMAT}")
        return Record(
            Machine(**content["machine"]),
            content["quick"],
            [AttentionTiming(**_with_case(timing, AttentionCase)) for timing in content["attention"]],
            [UpdateTiming(**_with_case(timing, UpdateCase)) for timing in content["updates"]],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a record of blocks: {error}") from error


def _with_case(timing: dict[str, Any], kind: type) -> dict[str, Any]:
    return {**timing, "case": kind(**timing["case"])}


def proceed(path: Path, device: torch.device, quick: bool, seconds: float) -> Record:
    """Times the cases that a record lacks, writing it after each, and begins none after so many seconds.

    Raises ValueError where the file holds another machine's figures, another revision's or those of other settings.
    """
    begun = time.monotonic()
    machine = measure_machine(device, quick=True)
    record = read(path) if path.is_file() else Record(machine, quick)
    if (_kind(record.machine), record.quick) != (_kind(machine), quick):
        raise ValueError(f"{path} is of another machine, revision or settings: take another file, or remove it")
    blocks.check(blocks.providers(device)["memformer_kernels"], device, torch.float32)
    for case in record.missing:
        if time.monotonic() - begun > seconds:
            break
        if isinstance(case, AttentionCase):
            record.attention += blocks.time_attention(case, device, 2 if quick else 9)
        else:
            record.updates += blocks.time_update(case, device, 2 if quick else 15, 2**20 if quick else 2**24)
        write(path, record)
    return record


def _kind(machine: Machine) -> tuple[Any, ...]:
    """What must be alike in all parts of a record; a record inside the tree is itself a file that differs."""
    revision = machine.revision.rstrip("+")
    return machine.device, machine.processor, machine.threads, machine.torch, machine.gpu, revision


def show(record: Record, console: Console) -> None:
    """A table for every width and form of attention, and one of the register update."""
    for width in blocks.WIDTHS:
        for causal in (False, True):
            console.print(_attention_table(record, width, causal))
    table = Table(
        "threads", "gamma", "J", "pass", "ms", "of copy", title="register update, 512 wide", box=box.SIMPLE_HEAD
    )
    for t in record.updates:
        case = t.case
        table.add_row(
            str(case.threads), f"per {case.granularity}", str(case.registers), t.name, f"{t.ms:.3g}", f"{t.of_copy:.2f}"
        )
    console.print(table)


def _attention_table(record: Record, width: int, causal: bool) -> Table:
    found = {
        (t.provider, t.case.tokens): t for t in record.attention if (t.case.width, t.case.causal) == (width, causal)
    }
    lengths = sorted({tokens for _, tokens in found})
    form = "causal" if causal else "full"
    title = f"attention, {form}: forward + backward, ms (peak MB), {blocks.HEADS} heads of {width}"
    table = Table("provider", *(f"N = {n:,}" for n in lengths), title=title, box=box.SIMPLE_HEAD)
    for name in dict.fromkeys(provider for provider, _ in found):
        table.add_row(name, *(cell(found.get((name, n))) for n in lengths))
    return table


def cell(timing: AttentionTiming | None) -> str:
    """Milliseconds, with megabytes behind them where they are known."""
    if timing is None:
        return ""
    milliseconds = f"{timing.ms:,.0f}" if timing.ms >= 100 else f"{timing.ms:.3g}"
    return milliseconds + ("" if timing.peak_mb is None else f" ({timing.peak_mb:,.0f})")
