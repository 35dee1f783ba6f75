"""The machine a run takes place on, and the rates that bound any kernel there: bytes and multiply-adds."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.clock import milliseconds
from benchmarks.record import Machine

ROOT = Path(__file__).resolve().parent.parent


def measure_machine(device: torch.device, *, quick: bool = False) -> Machine:
    """Name the machine and measure its rates on `device`; about a second, a tenth of that when quick."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Machine(
        device=device.type,
        processor=processor_name(),
        threads=torch.get_num_threads(),
        copy_gb_s=copy_bandwidth(device, quick=quick),
        read_gb_s=read_bandwidth(device, quick=quick),
        fma_gflop_s=fma_rate(device, quick=quick),
        python=platform.python_version(),
        torch=torch.__version__,
        package=importlib.metadata.version("memformer_kernels"),
        revision=git_revision(),
        gpu=gpu,
        driver=_driver() if gpu else None,
        cuda=torch.version.cuda if gpu else None,
    )


def copy_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """GB/s of copying one large tensor, read and write both counted: the best of several, far beyond any cache."""
    source = _large_buffer(device, 64 if quick else 256)
    target = torch.empty_like(source).copy_(source)
    best = min(milliseconds(lambda: target.copy_(source), device) for _ in range(3 if quick else 9))
    return 2 * source.nbytes / best / 1e6


def read_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """GB/s of reading one large tensor on all threads and writing nothing, which is what a loss with gradients to the
    parameters does: the best of several sums, dot products with itself and maxima, far beyond any cache.

    A lower bound of what the memory can do, as any program's rate is. Loops in C++ over several streams at once, or
    with prefetches by hand, came within a tenth of it.
    """
    # Not smaller when quick: part of a smaller one would still lie in a server's cache from the pass before.
    source = _large_buffer(device, 256)
    reductions = (source.sum, source.amax, lambda: torch.dot(source, source))
    best = min(milliseconds(read, device) for _ in range(3 if quick else 9) for read in reductions)
    return source.nbytes / best / 1e6


def _large_buffer(device: torch.device, mebibytes: int) -> torch.Tensor:
    size = (mebibytes << 20) * (4 if device.type == "cuda" else 1)
    return torch.ones(size // 4, dtype=torch.float32, device=device)


def fma_rate(device: torch.device, *, quick: bool = False) -> float:
    """GFLOP/s of a square float32 matrix product (two operations per multiply-add), the best of several."""
    side = 1024 if quick else 2048
    if device.type == "cuda":
        side *= 4
    a = torch.ones(side, side, device=device)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    best = min(milliseconds(lambda: torch.mm(a, a, out=out), device) for _ in range(3 if quick else 7))
    return 2 * side**3 / best / 1e6


def processor_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_revision() -> str:
    """The tree's short revision, "+" behind it if files differ from it, "unknown" outside git."""
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "--verify", "HEAD")
    if not revision:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain")
    return f"{revision}+" if changed else revision


def _driver() -> str | None:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0] if lines else None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
