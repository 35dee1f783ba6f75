"""The machine a run takes place on, and the rates that bound any kernel there: bytes and multiply-adds."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from benchmarks.measure.results import Machine
from benchmarks.measure.sources import git_revision, output
from memformer_lab.profiling.rates import measure_rates


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


def _driver() -> str | None:
    lines = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0] if lines else None
