"""`python -m benchmarks.gpu [NAMES]`: the one command for a machine with an NVIDIA GPU: every part, then one record.

Each part takes less than eight minutes, and what it found is kept under `results/gpu` until the record is written. A
run that was stopped, that failed or that ran some parts only goes on where it was: on the same GPU, from the same
sources.
"""

import hashlib
import json
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu_parts import DEVICE, PARTS, PartFailed
from benchmarks.machine import ROOT, measure_machine
from benchmarks.record import FORMAT, Machine, write_json

RECORDS = Path(__file__).resolve().parent / "results"
UNFINISHED = ROOT / "results" / "gpu"
SOURCES = ("memformer_kernels", "csrc", "python", "benchmarks", "tests")
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="parts whose name begins with any of these")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="forget what an earlier run left behind")] = False,
) -> None:
    """Run every missing part, or those named, and with the last of them write benchmarks/results/<gpu>-<date>.json.

    Exit status 1 without a GPU or if a part fails.
    """
    console = Console()
    if not torch.cuda.is_available():
        console.print(
            f"No NVIDIA GPU that torch {torch.__version__} can use: "
            + ("it is built without CUDA." if torch.version.cuda is None else "check nvidia-smi and the driver.")
            + " Nothing was run and nothing written. `make bench` measures the CPU."
        )
        raise typer.Exit(1)
    asked = [part for part in PARTS if not names or part.startswith(tuple(names))]
    if not asked:
        raise typer.BadParameter(f"no part begins with {' or '.join(names or [])}; the parts: {', '.join(PARTS)}")
    machine = measure_machine(DEVICE)
    name, digest = _slug(machine.gpu or "gpu"), sources()
    path = UNFINISHED / f"{name}.json"
    found = {} if afresh else _left_behind(path, machine, digest)
    for part in asked:
        if part in found:
            console.print(f"{part}: done before", style="dim")
            continue
        console.rule(part)
        try:
            found[part] = PARTS[part](console)
        except PartFailed as error:
            console.print(
                f"{error}. No record was written; what other parts found is kept in {path}.",
                soft_wrap=True,
                markup=False,
            )
            raise typer.Exit(1) from error
        write_json(path, {"sources": digest, "machine": asdict(machine), "parts": found})
    missing = [part for part in PARTS if part not in found]
    if missing:
        console.print(f"Still to run before there is a record: {', '.join(missing)}.", soft_wrap=True)
        return
    date = datetime.now(timezone.utc).date().isoformat()
    record = RECORDS / f"{name}-{date}.json"
    parts = {part: found[part] for part in PARTS}
    write_json(record, {"format": FORMAT, "date": date, "sources": digest, "machine": asdict(machine), **parts})
    path.unlink(missing_ok=True)
    console.print(f"record: {record}", soft_wrap=True)


def sources() -> str:
    """A short digest of what is tested and measured: equal trees have equal ones, with or without git."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _left_behind(path: Path, machine: Machine, digest: str) -> dict[str, Any]:
    """The parts that an earlier run finished here, empty where sources or driver have changed since."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    before = Machine(**content["machine"])
    same = (before.driver, before.cuda, before.torch) == (machine.driver, machine.cuda, machine.torch)
    parts: dict[str, Any] = content["parts"]
    return parts if same and content["sources"] == digest else {}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
