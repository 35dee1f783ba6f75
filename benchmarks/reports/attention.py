"""The record of `measure.attention`: made case by case, so that a run that is stopped goes on where it was."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import attention
from benchmarks.measure.attention import AttentionCase, AttentionTiming, UpdateCase, UpdateTiming
from benchmarks.measure.machine import measure_machine
from benchmarks.measure.results import Machine
from benchmarks.reports.record import read_json, write_json

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
        cases: list[AttentionCase | UpdateCase] = [
            *attention.attention_cases(self.quick),
            *attention.update_cases(device),
        ]
        return [case for case in cases if case not in done]


def write(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_json(path, {"format": FORMAT, "heads": attention.HEADS}, record)


def read(path: Path) -> Record:
    """The record written by `write`. Raises ValueError for anything else."""

    def build(content: dict[str, Any]) -> Record:
        return Record(
            Machine(**content["machine"]),
            content["quick"],
            [AttentionTiming(**_with_case(timing, AttentionCase)) for timing in content["attention"]],
            [UpdateTiming(**_with_case(timing, UpdateCase)) for timing in content["updates"]],
        )

    return read_json(path, FORMAT, "a record of attention", build)


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
    attention.check(attention.providers(device)["memformer_kernels"], device, torch.float32)
    for case in record.missing:
        if time.monotonic() - begun > seconds:
            break
        if isinstance(case, AttentionCase):
            record.attention += attention.time_attention(case, device, 2 if quick else 9)
        else:
            record.updates += attention.time_update(case, device, 2 if quick else 15, 2**20 if quick else 2**24)
        write(path, record)
    return record


def _kind(machine: Machine) -> tuple[Any, ...]:
    """What must be alike in all parts of a record; a record inside the tree is itself a file that differs."""
    revision = machine.revision.rstrip("+")
    return machine.device, machine.processor, machine.threads, machine.torch, machine.gpu, revision
