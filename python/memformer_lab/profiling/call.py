"""One call, profiled: its plan, its floors, its measured time, and on a GPU its kernels."""

from __future__ import annotations

import math
import shlex
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import explain
from memformer_kernels.nn import Memformer
from memformer_lab.profiling.costs import Network, Operations
from memformer_lab.profiling.gpu_trace import KernelUse, kernels_of
from memformer_lab.profiling.rates import Rates, measure_rates, milliseconds
from memformer_lab.runs.config import MOST
from memformer_lab.runs.files import write_atomically

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("training", "forward")
WORDS = ("rule", "granularity", "structure", "backend", "algorithm")
SIZES = ("d", "n", "queries", "batch", "layers", "heads")

RANGE = "memformer"
"""The NVTX range around the calls that are timed."""


@dataclass(frozen=True)
class Call:
    """A call to profile: `training` is a loss and its gradients in every parameter, `forward` a prediction.

    Raises:
        ValueError: an unknown name, or a size out of range.
    """

    d: int = 5
    n: int = 20
    queries: int = 1
    batch: int = 100_000
    layers: int = 4
    heads: int = 1
    rule: str = "lfom"
    granularity: str | None = None
    structure: str = "response-only"
    dtype: str = "float32"
    direction: str = "training"
    backend: str = "auto"
    algorithm: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in SIZES:
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: expected at least 1 and at most {MOST}, got {getattr(self, name)}")
        for name, known in (("dtype", tuple(DTYPES)), ("direction", DIRECTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def training(self) -> bool:
        return self.direction == "training"

    def command(self) -> list[str]:
        """The command line that profiles this call again."""
        options = [
            word for name, value in vars(self).items() if value is not None for word in (f"--{name}", str(value))
        ]
        return ["memformer-lab", "profile", *options]


@dataclass(frozen=True)
class Profile:
    """What was found.

    Attributes:
        call: what was profiled.
        backend: of the plan, as algorithm, regime and reason are.
        bytes: of the whole call.
        operations: multiply-adds of one task.
        rates: of the machine.
        milliseconds: of one call: 10% quantile, median, 90% quantile.
        runs: calls that were timed.
        kernels: on a GPU, those one call launches.
    """

    call: Call
    backend: str
    algorithm: str
    regime: str
    reason: str
    bytes: int
    operations: Operations
    rates: Rates
    milliseconds: tuple[float, float, float]
    runs: int
    kernels: tuple[KernelUse, ...]

    @property
    def floors_ms(self) -> dict[str, float]:
        """Milliseconds that the call cannot stay below, by what it waits for."""
        return {
            "bytes": self.bytes / self.rates.read_gb_s / 1e6,
            "operations": 2 * self.call.batch * self.operations.total / self.rates.fma_gflop_s / 1e6,
        }

    @property
    def of_the_limit(self) -> float:
        """The higher floor over the median time."""
        return max(self.floors_ms.values()) / self.milliseconds[1]


def profile_call(call: Call, *, seconds: float = 1.0, trace: Path | None = None, rates: Rates | None = None) -> Profile:
    """Run a call for about `seconds` and say what it costs; `trace` gets a torch.profiler trace of one more run.

    Raises:
        ValueError: a rule or structure that is none, a backend or device that cannot be used, or no finite time.
        OSError: if the trace cannot be written.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds: expected a finite time, got {seconds}")
    device = torch.device(call.device)
    model, z, target = make_arguments(call, device)
    tensors = (z, target) if call.training else (z,)
    chosen = {"context": call.n, "backend": call.backend, "algorithm": call.algorithm}
    try:
        plan = explain(*tensors, **model.stack_arguments(), **chosen)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    action = action_of(call, model, z, target)
    action()
    rates = rates or measure_rates(device)
    first = milliseconds(action, device)
    with _range(device):
        samples = [milliseconds(action, device) for _ in range(max(3, min(1000, int(seconds * 1e3 / first))))]
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    network = network_of(call, model, plan.algorithm == "token")
    return Profile(
        call,
        plan.backend,
        plan.algorithm,
        plan.regime,
        plan.reason,
        call.batch * network.bytes_per_task(DTYPES[call.dtype].itemsize, call.training),
        network.operations(call.training),
        rates,
        (deciles[0], statistics.median(samples), deciles[-1]),
        len(samples),
        _kernels(action, device, trace),
    )


def ncu_command(call: Call) -> str:
    """The command line with which Nsight Compute looks into the kernels of this call."""
    options = ["ncu", "--nvtx", "--nvtx-include", f"{RANGE}/", "--set", "full", "--launch-count", "8", "-o", RANGE]
    return shlex.join([*options, *call.command(), "--seconds", "0"])


def make_arguments(call: Call, device: torch.device) -> tuple[Memformer, Tensor, Tensor]:
    """A model, tokens (B, N, D) and targets (B, queries), drawn from a fixed seed."""
    dtype = DTYPES[call.dtype]
    generator = torch.Generator().manual_seed(0)
    tokens = call.n + call.queries
    # Words of the command line, which the module checks.
    words: dict[str, Any] = {name: getattr(call, name) for name in WORDS}
    model = Memformer(
        call.d,
        call.layers,
        heads=call.heads,
        tokens=tokens,
        **words,
        device=device,
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )
    z = torch.empty(call.batch, tokens, call.d + 1, device="cpu", dtype=torch.float32).normal_(generator=generator)
    z[:, call.n :, -1] = 0
    target = torch.empty(call.batch, call.queries, device="cpu", dtype=torch.float32).normal_(generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return model, z.to(device, dtype), target.to(device, wide if wide == torch.float64 else dtype)


def action_of(call: Call, model: Memformer, z: Tensor, target: Tensor) -> Callable[[], object]:
    """What makes the call, once each time."""
    parameters = list(model.parameters())

    def train() -> object:
        return torch.autograd.grad(model.loss(z, target, context=call.n), parameters)

    def predict() -> object:
        with torch.no_grad():
            return model.predict(z, context=call.n)

    return train if call.training else predict


def network_of(call: Call, model: Memformer, token_space: bool) -> Network:
    """What the call's bytes and operations are counted by."""
    arguments = model.stack_arguments()
    gamma, beta = arguments["gamma"], arguments["beta"]
    layers = call.layers
    # One running register serves a gamma that is diagonal or shared by layers; otherwise all past ones are weighted.
    running = gamma is not None and (gamma.ndim == 4 or gamma.shape[0] == 1)
    weighted = 0 if gamma is None else layers if running else layers * (layers + 1) // 2
    apart = any(x is not None and x.ndim >= 3 and x.shape[-3] > 1 for x in (gamma, beta))
    heads = call.heads if apart or call.structure != "response-only" else 1
    decayed = 0 if beta is None else layers - 1
    return Network(call.d, call.n, call.queries, layers, heads, call.structure, weighted, decayed, token_space)


def _kernels(action: Callable[[], object], device: torch.device, trace: Path | None) -> tuple[KernelUse, ...]:
    """The kernels of one call, from a trace; on a CPU a trace is made only if its file is wanted."""
    if device.type != "cuda" and trace is None:
        return ()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        if trace is not None:
            write_atomically(trace, path.read_bytes())
        return kernels_of(path)


@contextmanager
def _range(device: torch.device) -> Iterator[None]:
    """An NVTX range on a GPU, so that Nsight's tools find the calls that are timed."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.nvtx.range(RANGE):
        yield
