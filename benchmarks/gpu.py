"""`python -m benchmarks.gpu`: the one command for a machine with an NVIDIA GPU. Runs every part, writes one record."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from benchmarks import gpu_trainer
from benchmarks.machine import ROOT, measure_machine
from benchmarks.providers import PROVIDERS, select
from benchmarks.record import FORMAT, Timing, write_json
from benchmarks.run import run
from benchmarks.table import memory_floor_ms, print_report
from benchmarks.workloads import BATCHES, TILE_64, TILE_128, W_FULL, WORKLOADS, W, Workload
from memformer_kernels import build_info
from memformer_lab.profiling.rates import fma_rate

RECORDS = Path(__file__).resolve().parent / "results"
DEVICE = torch.device("cuda")
MOST_WORKERS = 12
TILE_PROVIDERS = select(["Gram, eager", "Gram, compiled", "re-associated", "JAX", "flash-linear-attention", "(triton)"])
CUDA_BATCH = 4_000_000
"""Tasks of W: 2 GB of tokens, far beyond any cache."""

Part = Callable[[Console], dict[str, Any]]


class PartFailed(Exception):
    """A part's own check failed: the run ends and nothing is recorded."""


def correctness(console: Console) -> dict[str, Any]:
    """The tests marked gpu and the package's parity tests, in processes of their own.

    Several, since most of their time compiles kernels: hundreds, each a few seconds of one processor.
    """
    workers = str(min(MOST_WORKERS, os.cpu_count() or 1))
    tests = ["-m", "gpu or not slow", "tests/gpu", "tests/memformer_kernels"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, *tests]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    lines = finished.stdout.strip().splitlines()
    if finished.returncode:
        console.print(finished.stdout, markup=False, highlight=False)
        raise PartFailed(f"{' '.join(command[1:])} ended with status {finished.returncode}")
    return {"tests": lines[-1].strip("= ") if lines else ""}


def registry(console: Console) -> dict[str, Any]:
    """Every provider on every workload at every batch size, timed with CUDA events."""
    workloads = [workload.with_batch(size) for workload in WORKLOADS.values() for size in BATCHES]
    report = run(workloads, PROVIDERS, DEVICE, announce=lambda text: console.print(text, style="dim"))
    print_report(report, console)
    return {"seconds": report.seconds, "timings": [_figures(timing) for timing in report.timings]}


def triton_tiles(console: Console) -> dict[str, Any]:
    """The tile workloads: the Triton backend and the peers that can be fastest there, against the hardware's limit.

    The limit is the larger of the bytes at copy bandwidth and the operations at a third of the TF32 rate, since a
    product of float32's accuracy takes three of TF32's.
    """
    tf32 = tf32_rate()
    report = run((TILE_64, TILE_128), TILE_PROVIDERS, DEVICE, announce=lambda text: console.print(text, style="dim"))
    print_report(report, console)
    timings = []
    for timing in report.timings:
        limit = tile_limit_ms(timing.workload, report.machine.copy_gb_s, tf32)
        figures = {**_figures(timing), "limit_ms": limit}
        if timing.quantiles is not None:
            figures["percent_of_limit"] = 100 * limit / timing.quantiles.median_ms
            text = f"{timing.workload.name}, {timing.provider}: {figures['percent_of_limit']:.0f}% of the limit"
            console.print(text, markup=False)
        timings.append(figures)
    return {"seconds": report.seconds, "tf32_gflop_s": tf32, "timings": timings}


def tf32_rate() -> float:
    """GFLOP/s of a large matrix product in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return fma_rate(DEVICE)
    finally:
        torch.set_float32_matmul_precision(before)


def tile_limit_ms(workload: Workload, copy_gb_s: float, tf32_gflop_s: float) -> float:
    """Milliseconds that no method of float32's accuracy can stay below."""
    operations = 2 * workload.batch * workload.operations.total
    return max(memory_floor_ms(workload, copy_gb_s), 3 * operations / tf32_gflop_s / 1e6)


def cuda_library(console: Console) -> dict[str, Any]:
    """W at a batch that fills the machine, and W_full, beside every peer; then what watches memory while it runs."""
    workloads = (W.with_batch(CUDA_BATCH), W_FULL.with_batch(BATCHES[-1]))
    report = run(workloads, PROVIDERS, DEVICE, announce=lambda text: console.print(text, style="dim"))
    print_report(report, console)
    rates = {
        timing.workload.name: {
            "tasks_per_s": 1e3 * timing.workload.batch / timing.quantiles.median_ms,
            "gb_per_s": timing.workload.bytes_moved / timing.quantiles.median_ms / 1e6,
            "of_copy_bandwidth": timing.workload.bytes_moved
            / timing.quantiles.median_ms
            / 1e6
            / report.machine.copy_gb_s,
        }
        for timing in report.timings
        if timing.provider == "memformer_kernels (cuda)" and timing.quantiles is not None
    }
    for name, figures in rates.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    return {
        "seconds": report.seconds,
        "rates": rates,
        "timings": [_figures(timing) for timing in report.timings],
        "sanitizer": watched(console),
    }


def watched(console: Console) -> dict[str, str]:
    """compute-sanitizer's verdict on a small run of every kernel, by tool; or the reason why it did not run.

    Raises:
        PartFailed: a tool found an error.
    """
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        return {"not run": "no compute-sanitizer here: it comes with the CUDA toolkit"}
    if not build_info().backends["cuda"].available:
        return {"not run": build_info().backends["cuda"].reason}
    verdicts = {}
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.small_run"]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = (finished.stdout + finished.stderr).strip().splitlines()
        verdicts[tool] = lines[-1] if lines else ""
        console.print(f"{tool}: {verdicts[tool]}", markup=False)
        if finished.returncode == 9:
            raise PartFailed(f"{tool} found an error: " + "\n".join(lines[-40:]))
        if finished.returncode:
            # A container may not let it attach to a process: a reason, not a verdict.
            verdicts[tool] = f"did not run: {verdicts[tool]}"
    return verdicts


def trainer(console: Console) -> dict[str, Any]:
    """Whole optimiser steps in the CUDA library.

    Raises:
        PartFailed: a loss is wrong, or depends on how steps are launched.
    """
    try:
        return gpu_trainer.measure(console)
    except RuntimeError as error:
        raise PartFailed(str(error)) from error


# Each backend with something to show on a GPU adds its part here, with the name its figures are recorded under.
PARTS: tuple[tuple[str, Part], ...] = (
    ("correctness", correctness),
    ("registry", registry),
    ("triton_tiles", triton_tiles),
    ("cuda_library", cuda_library),
    ("trainer", trainer),
)


def main() -> None:
    """Run every part and write benchmarks/results/<gpu>-<date>.json; exit status 1 without a GPU or if a part fails."""
    console = Console()
    if not torch.cuda.is_available():
        console.print(
            f"No NVIDIA GPU that torch {torch.__version__} can use: "
            + ("it is built without CUDA." if torch.version.cuda is None else "check nvidia-smi and the driver.")
            + " Nothing was run and nothing written. `make bench` measures the CPU."
        )
        raise typer.Exit(1)
    machine = measure_machine(DEVICE)
    date = datetime.now(timezone.utc).date().isoformat()
    try:
        parts = {name: part(console) for name, part in PARTS}
    except PartFailed as error:
        console.print(f"{error}. Nothing was written.")
        raise typer.Exit(1) from error
    path = RECORDS / f"{_slug(machine.gpu or 'gpu')}-{date}.json"
    write_json(path, {"format": FORMAT, "date": date, "machine": asdict(machine), **parts})
    console.print(f"record: {path}", soft_wrap=True)


def _figures(timing: Timing) -> dict[str, Any]:
    """A timing in a few words: the workload by name and batch size, and only what was found."""
    found = {key: value for key, value in asdict(timing).items() if value not in (None, "")}
    return {**found, "workload": timing.workload.name, "batch": timing.workload.batch}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
