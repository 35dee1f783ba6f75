"""The machine a run takes place on, and the rates that bound any kernel there: bytes and multiply-adds."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.reports.record import Machine
from memformer_lab.profiling.rates import measure_rates

ROOT = Path(__file__).resolve().parents[2]


def measure_machine(device: torch.device, *, quick: bool = False) -> Machine:
    """Name the machine and measure its rates on `device`; about a second, a tenth of that when quick."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    rates = measure_rates(device, quick=quick)
    return Machine(
        device=device.type,
        processor=processor_name(),
        threads=torch.get_num_threads(),
        copy_gb_s=rates.copy_gb_s,
        read_gb_s=rates.read_gb_s,
        fma_gflop_s=rates.fma_gflop_s,
        python=platform.python_version(),
        torch=torch.__version__,
        package=importlib.metadata.version("memformer_kernels"),
        revision=git_revision(),
        gpu=gpu,
        driver=_driver() if gpu else None,
        cuda=torch.version.cuda if gpu else None,
    )


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
