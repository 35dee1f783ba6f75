"""`python -m benchmarks.gpu [NAMES]`: the one command for a machine with an NVIDIA GPU: every part, and one record.

It needs no network and installs nothing: any Python with torch, Triton, pytest, rich and typer, and an nvcc for the
CUDA library. What is worth most comes first. The record is written after every part, with those that failed and those
that did not run yet: a run that was stopped, whose time was over or that ran some parts only goes on there, on the same
GPU and from the same sources. A part begins where the time that is left lets it end.
"""

import importlib.util
import json
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu.parts import DEVICE, PARTS
from benchmarks.measure.machine import measure_machine
from benchmarks.measure.results import Machine
from benchmarks.measure.sources import ROOT, digest
from benchmarks.reports.record import write_json

RECORDS = ROOT / "benchmarks" / "results"
SOURCES = ("memformer_kernels", "csrc", "python", "benchmarks", "tests")
FORMAT = 1
LEAST_S = 15.0
"""A part that has less than this left is not begun, whatever else."""

NEEDED = ("triton", "numpy", "ninja", "pytest", "xdist", "pytest_timeout", "hypothesis")
"""What parts import, or have a child import; this module does the others."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="parts whose name begins with any of these")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="forget what an earlier run left behind")] = False,
    minutes: Annotated[float, typer.Option(help="no part goes on beyond this time")] = 35.0,
    until: Annotated[float | None, typer.Option(help="nor beyond this one, in seconds since 1970")] = None,
    records: Annotated[Path, typer.Option(help="the folder of the record")] = RECORDS,
) -> None:
    """Run every missing or failed part, or those named, and keep <gpu>-<date>.json in benchmarks/results.

    Exit status 1 without a GPU or if a part failed; the other parts run nevertheless.
    """
    console = Console()
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        console.print(f"Not here: {', '.join(lacking)}; `make gpu-packages` puts what it can beside the tree.")
    if not torch.cuda.is_available():
        console.print(
            f"No NVIDIA GPU that torch {torch.__version__} can use: "
            + ("it is built without CUDA." if torch.version.cuda is None else "check nvidia-smi and the driver.")
            + " Nothing was run and nothing written. `make bench` measures the CPU."
        )
        raise typer.Exit(1)
    chosen = [part for part in PARTS if not names or part.startswith(tuple(names))]
    if not chosen:
        raise typer.BadParameter(f"no part begins with {' or '.join(names or [])}; the parts: {', '.join(PARTS)}")
    end = time.monotonic() + min(60 * minutes, 60 * minutes if until is None else until - time.time())
    machine, sources = measure_machine(DEVICE), digest(*SOURCES)
    path, found = _begun(records, machine, sources, afresh)
    none_yet = True
    for name in chosen:
        if name in found and "failed" not in found[name]:
            console.print(f"{name}: done before", style="dim")
            continue
        left, longest = end - time.monotonic(), PARTS[name].longest_s
        # The first of a run has all the time that there is: with less, it would never be begun.
        if left < (LEAST_S if none_yet else max(LEAST_S, longest)):
            console.print(f"{name}: no time left")
            continue
        none_yet = False
        console.rule(name)
        found[name] = _run(name, min(longest, left), console)
        write_json(path, _record(machine, sources, path, found))
    if found:
        console.print(f"record: {path}", soft_wrap=True)
    if missing := [name for name in PARTS if name not in found]:
        console.print(f"Not run yet: {', '.join(missing)}.", soft_wrap=True)
    if failed := [name for name, made in found.items() if "failed" in made]:
        console.print(f"Failed: {', '.join(failed)}.", soft_wrap=True)
        raise typer.Exit(1)


def _run(name: str, seconds: float, console: Console) -> dict[str, Any]:
    """What a part found in its time, or why it found nothing: whatever it raised must not lose what the others find."""
    begin = time.monotonic()
    try:
        made = PARTS[name].run(seconds, console)
    except Exception as error:
        made = {"failed": f"{type(error).__name__}: {error}"}
    if "failed" in made:
        console.print(f"{name}: {made['failed']}", soft_wrap=True, markup=False, highlight=False)
    return {**made, "took_s": round(time.monotonic() - begin, 1)}


def _record(machine: Machine, sources: str, path: Path, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "date": path.stem[-len("2000-01-01") :],
        "sources": sources,
        "machine": machine,
        "missing": [name for name in PARTS if name not in found],
        **{name: found[name] for name in PARTS if name in found},
    }


def _begun(records: Path, machine: Machine, sources: str, afresh: bool) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The record to go on with and its parts: the newest of this GPU, if sources, driver and torch are the same."""
    gpu = _slug(machine.gpu or "gpu")
    for path in sorted(records.glob(f"{gpu}-[0-9][0-9][0-9][0-9]-*.json"), reverse=True)[: not afresh]:
        content = json.loads(path.read_text(encoding="utf-8"))
        before = Machine(**content["machine"])
        same = (before.driver, before.cuda, before.torch) == (machine.driver, machine.cuda, machine.torch)
        if same and content["sources"] == sources:
            return path, {name: content[name] for name in PARTS if name in content}
    date = datetime.now(timezone.utc).date().isoformat()
    return records / f"{gpu}-{date}.json", {}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
