"""What `benchmarks.gpu` runs, part by part: tests, workloads with every peer, and what watches memory meanwhile.

A part is told how long it may take: tests are stopped there, and a provider that compiles for too long is left out.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.console import Console

from benchmarks.gpu import trainer as gpu_trainer
from benchmarks.measure.harness import Policy
from benchmarks.measure.provider import Provider
from benchmarks.measure.providers import PROVIDERS, select
from benchmarks.measure.results import Timing, memory_floor_ms
from benchmarks.measure.run import run
from benchmarks.measure.sources import ROOT
from benchmarks.measure.workloads import TILE_64, TILE_128, W_FULL, WORKLOAD_BATCHES, WORKLOADS, W, Workload
from benchmarks.reports.table import print_report
from memformer_kernels import build_info
from memformer_lab.profiling.rates import fma_rate

DEVICE = torch.device("cuda")
POLICY = Policy(seconds=0.5, longest_s=2.0, admit_s=30.0)
"""Of a provider; the time for all of them is the part's."""

AFTER_LAST_S = 40.0
"""The last provider begins so long before its part's end: it may take `admit_s`, and all are timed then."""

MOST_WORKERS = 12
CUDA_BATCH = 4_000_000
"""Tasks of W: 2 GB of tokens, far beyond any cache."""

CONTRACT = tuple(
    path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests" / "memformer_kernels").glob("test_*.py"))
)
"""Tests of the package that are of no folder of it: of what its functions mean, on every backend that is there."""

TESTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tests_cuda": ("-m", "gpu and cuda", "tests/gpu"),
        "tests_triton": ("-m", "gpu and triton", "tests/gpu"),
        "tests_torch": ("tests/gpu/test_torch_backend.py",),
        "tests_contract": ("-m", "not slow", *CONTRACT),
        "tests_package": (
            "-m",
            "not slow",
            *(f"--ignore={path}" for path in CONTRACT),
            "tests/memformer_kernels",
            "tests/benchmarks/peers/test_jax_formulations.py",
        ),
    }
)
"""Arguments of pytest by part."""


class Part(NamedTuple):
    """What runs in at most so many seconds, told how many it has, and returns its figures, or "failed" and why."""

    longest_s: float
    run: Callable[[float, Console], dict[str, Any]]


def built(seconds: float, console: Console) -> dict[str, Any]:
    """What `benchmarks.gpu.build` left, which everything after this part runs on."""
    info = build_info()
    console.print(str(info), markup=False, highlight=False, soft_wrap=True)
    backends = {name: [found.available, *found.architectures, found.reason] for name, found in info.backends.items()}
    lacking = [name for name in ("cpu", "cuda", "triton") if not info.backends[name].available]
    return {**backends, "failed": f"not available: {', '.join(lacking)}"} if lacking else backends


def run_tests(arguments: tuple[str, ...], seconds: float, console: Console) -> dict[str, Any]:
    """pytest in processes of their own: several, since most of the time compiles kernels."""
    workers = str(min(MOST_WORKERS, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, *arguments]
    status, output = bounded(command, seconds)
    lines = output.strip().splitlines()
    if status != 0:
        console.print(output, markup=False, highlight=False)
        fallen = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return {"failed": _ending(command, status, seconds, output), "tests": fallen[:50]}
    return {"tests": lines[-1].strip("= ") if lines else ""}


def _ending(command: list[str], status: int | None, seconds: float, output: str) -> str:
    ended = f"took more than {seconds:.0f} s" if status is None else f"ended with status {status}"
    last = output.strip().splitlines()[-1:]
    return ": ".join([f"{' '.join(command[1:])} {ended}", *last])


def bounded(command: list[str], seconds: float) -> tuple[int | None, str]:
    """A command's exit status and all it printed; status None where it took longer and was ended, with its children.

    Processes share the cores: each computes with one thread.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None, output
    return process.returncode, output


def _python_path() -> str:
    """Where a tree that nobody installed finds its packages."""
    return os.pathsep.join([str(ROOT), str(ROOT / "python"), *filter(None, sys.path)])


def time_workload(
    workload: Workload, providers: tuple[Provider, ...], seconds: float, console: Console
) -> dict[str, Any]:
    """A workload on every provider, ours first, timed with CUDA events."""
    policy = replace(POLICY, total_s=max(1.0, seconds - AFTER_LAST_S))
    ours_first = sorted(providers, key=lambda provider: provider.peer)
    report = run([workload], ours_first, DEVICE, policy=policy, announce=lambda text: console.print(text, style="dim"))
    print_report(report, console)
    rates = report.machine.copy_gb_s, report.machine.fma_gflop_s
    found = [{**figures(timing), **against_rates(timing, *rates)} for timing in report.timings]
    return {"seconds": report.seconds, "copy_gb_s": rates[0], "fma_gflop_s": rates[1], "timings": found}


def time_tile(workload: Workload, seconds: float, console: Console) -> dict[str, Any]:
    """A tile workload on ours and the peers that can be fastest there, against the hardware's limit.

    The limit is the larger of the bytes at copy bandwidth and the operations at a third of the TF32 rate, since a
    product of float32's accuracy takes three of TF32's.
    """
    tf32 = tf32_rate()
    made = time_workload(workload, TILE_PROVIDERS, seconds, console)
    limit = tile_limit_ms(workload, made["copy_gb_s"], tf32)
    for timing in made["timings"]:
        if "quantiles" in timing:
            timing["of_limit"] = limit / timing["quantiles"]["median_ms"]
            console.print(f"{workload.name}, {timing['provider']}: {timing['of_limit']:.0%} of the limit", markup=False)
    return {**made, "tf32_gflop_s": tf32, "limit_ms": limit}


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


def figures(timing: Timing) -> dict[str, Any]:
    """A timing in a few words: the workload by name and batch size, and only what was found."""
    found = {key: value for key, value in asdict(timing).items() if value not in (None, "")}
    return {**found, "workload": timing.workload.name, "batch": timing.workload.batch}


def against_rates(timing: Timing, copy_gb_s: float, fma_gflop_s: float) -> dict[str, float]:
    """Tasks a second, and the shares of copy bandwidth and of the float32 matrix rate that the median reaches."""
    if timing.quantiles is None:
        return {}
    workload, ms = timing.workload, timing.quantiles.median_ms
    return {
        "tasks_per_s": 1e3 * workload.batch / ms,
        "of_copy": workload.bytes_moved / ms / 1e6 / copy_gb_s,
        "of_fma": 2 * workload.batch * workload.operations.total / ms / 1e6 / fma_gflop_s,
    }


def watched(seconds: float, console: Console) -> dict[str, Any]:
    """compute-sanitizer's verdict on a small run of every kernel, by tool; or the reason why it did not run."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        return {"not run": "no compute-sanitizer here: it comes with the CUDA toolkit"}
    if not build_info().backends["cuda"].available:
        return {"not run": build_info().backends["cuda"].reason}
    verdicts: dict[str, Any] = {}
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    for tool in tools:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.small_run"]
        status, output = bounded(command, seconds / len(tools))
        lines = output.strip().splitlines()
        verdicts[tool] = lines[-1] if lines else ""
        console.print(f"{tool}: {verdicts[tool]}", markup=False)
        if status == 9:
            verdicts["failed"] = f"{tool} found an error: " + "\n".join(lines[-40:])
        elif status is None:
            verdicts[tool] = f"did not end in {seconds / len(tools):.0f} s"
        elif status:
            # A container may not let it attach to a process: a reason, not a verdict.
            verdicts[tool] = f"did not run: {verdicts[tool]}"
    return verdicts


TILE_PROVIDERS = select(["Gram, eager", "Gram, compiled", "re-associated", "JAX", "flash-linear-attention", "(triton)"])
HOT = (W.with_batch(CUDA_BATCH), W_FULL.with_batch(1_000_000))
TIMED = tuple(
    workload.with_batch(size)
    for workload in WORKLOADS.values()
    for size in WORKLOAD_BATCHES[workload.name]
    if workload.with_batch(size) not in HOT
)


def _timed(workload: Workload) -> tuple[str, Part]:
    return f"{workload.name}_{workload.batch}", Part(130.0, partial(time_workload, workload, PROVIDERS))


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "build": Part(10.0, built),
        "tests_cuda": Part(120.0, partial(run_tests, TESTS["tests_cuda"])),
        "tests_triton": Part(120.0, partial(run_tests, TESTS["tests_triton"])),
        "trainer": Part(60.0, gpu_trainer.measure),
        "W_4000000": Part(75.0, partial(time_workload, HOT[0], PROVIDERS)),
        "W_full_1000000": Part(75.0, partial(time_workload, HOT[1], PROVIDERS)),
        "tile_64": Part(75.0, partial(time_tile, TILE_64)),
        "tile_128": Part(75.0, partial(time_tile, TILE_128)),
        "tests_torch": Part(120.0, partial(run_tests, TESTS["tests_torch"])),
        "sanitizer": Part(240.0, watched),
        "tests_contract": Part(230.0, partial(run_tests, TESTS["tests_contract"])),
        "tests_package": Part(230.0, partial(run_tests, TESTS["tests_package"])),
        **dict(map(_timed, TIMED)),
    }
)
"""By the name its figures are recorded under, in the order they run: what is worth most first."""
