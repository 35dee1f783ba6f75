"""What a public call costs beyond its arithmetic: one task of workload W against an empty registered operation.

The empty operation has the same signature and autograd (`empty_ops`). Both run in the same rounds, in turn, so that a
disturbance of the machine hits them alike. Three nested parts of the public call, timed in the same rounds, say where
its time goes: the public function, the registered operation, and the backend's own function.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.workloads import W
from benchmarks.peers import empty_ops
from benchmarks.reports.table import figure
from memformer_kernels import memformer_loss, memformer_predict
from memformer_kernels.backends import BACKENDS
from memformer_kernels.calls.arguments import Network, form_named
from memformer_kernels.torch_ops import ops

FORMAT = 1
TARGET_RATIO = 2.0
ROUNDS, CALLS = 300, 40


@dataclass(frozen=True)
class Cost:
    """Microseconds of one call: the quantiles over rounds of each round's mean."""

    median_us: float
    q10_us: float
    q90_us: float


@dataclass(frozen=True)
class Comparison:
    """One way of calling on one backend.

    call       what is called; with requires_grad, q and gamma require gradients; + backward, their gradients are made
    public     the public function;  empty: the empty registered operation called alike
    operation  the registered operation alone, without the checks before it; kernel: the backend's function alone. None
               where a backward pass runs too, which has no such parts
    """

    call: str
    public: Cost
    empty: Cost
    operation: Cost | None
    kernel: Cost | None

    @property
    def ratio(self) -> float:
        return self.public.median_us / self.empty.median_us


@dataclass(frozen=True)
class Overhead:
    """Every comparison on one backend."""

    backend: str
    rounds: int
    calls: int
    comparisons: tuple[Comparison, ...]


def measure(backend: str, rounds: int = ROUNDS, calls: int = CALLS) -> Overhead:
    """Time every way of calling; each round makes `calls` calls of each contender in turn."""
    comparisons = []
    for name, contenders in _ways(backend).items():
        found = _interleaved(contenders, rounds, calls)
        comparisons.append(
            Comparison(name, found["public"], found["empty"], found.get("operation"), found.get("kernel"))
        )
    return Overhead(backend, rounds, calls, tuple(comparisons))


def _interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, Cost]:
    for contender in contenders.values():
        for _ in range(calls):
            contender()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, contender in contenders.items():
                begun = time.perf_counter()
                for _ in range(calls):
                    contender()
                samples[name].append((time.perf_counter() - begun) / calls * 1e6)
    finally:
        if enabled:
            gc.enable()
    quantiles = {name: np.quantile(values, [0.5, 0.1, 0.9]).tolist() for name, values in samples.items()}
    return {name: Cost(*values) for name, values in quantiles.items()}


def _ways(backend: str) -> dict[str, dict[str, Callable[[], Any]]]:
    """Contenders by the way of calling. Gradients are enabled throughout, as they are by default."""
    cpu = torch.device("cpu")
    workload = W.with_batch(1)
    z, target = make_batch(workload, 1, cpu)
    learned = make_parameters(workload, 0, cpu)
    fixed = [parameter.detach() for parameter in learned]
    ways: dict[str, dict[str, Callable[[], Any]]] = {}
    for suffix, (q, gamma) in (("", fixed), (", requires_grad", learned)):
        ways[f"predict{suffix}"] = _predictions(backend, z, q, gamma)
        ways[f"loss{suffix}"] = _losses(backend, z, target, q, gamma)
    for name in ("predict", "loss"):
        forward = ways[f"{name}, requires_grad"]
        ways[f"{name} + backward"] = {
            part: _with_backward(forward[part], tuple(learned)) for part in ("public", "empty")
        }
    return ways


_FORM = "gram, response-only, full"


def _predictions(backend: str, z: Tensor, q: Tensor, gamma: Tensor) -> dict[str, Callable[[], Any]]:
    n = W.n
    network = (z, q, None, gamma, None, None)
    options = (n, _FORM, 1, False, backend)
    # As the dispatcher hands them to a backend: below autograd.
    inner = Network(z, q.detach(), None, gamma.detach(), None, None, n, form_named(_FORM))
    return {
        "public": lambda: memformer_predict(z, q, gamma=gamma, context=n, backend=backend),
        "empty": lambda: empty_ops.predict(*network, *options)[0],
        "operation": lambda: ops.predict(*network, *options),
        "kernel": lambda: BACKENDS[backend].predict(inner, 1, False),
    }


def _losses(backend: str, z: Tensor, target: Tensor, q: Tensor, gamma: Tensor) -> dict[str, Callable[[], Any]]:
    n = W.n
    needs = [tensor is not None and tensor.requires_grad for tensor in (z, target, q, None, gamma, None, None)]
    network = (z, target, q, None, gamma, None, None)
    options = (n, _FORM, 1, needs, backend)
    inner = Network(z, q.detach(), None, gamma.detach(), None, None, n, form_named(_FORM))
    return {
        "public": lambda: memformer_loss(z, target, q, gamma=gamma, context=n, backend=backend),
        "empty": lambda: empty_ops.loss(*network, *options)[0],
        "operation": lambda: ops.loss(*network, *options),
        "kernel": lambda: BACKENDS[backend].loss(inner, target, 1, needs),
    }


def _with_backward(forward: Callable[[], Tensor], parameters: tuple[Tensor, ...]) -> Callable[[], Any]:
    seed: list[Tensor] = [torch.ones_like(forward())]

    def both() -> Any:
        return torch.autograd.grad(forward(), parameters, seed)

    return both


def as_record(overhead: Overhead) -> dict[str, Any]:
    """For a JSON file, with the ratio of every comparison and the target they are held against."""
    ratios = {comparison.call: comparison.ratio for comparison in overhead.comparisons}
    return {"format": FORMAT, "target_ratio": TARGET_RATIO, "ratios": ratios, **asdict(overhead)}


def overhead_table(overhead: Overhead) -> Table:
    """Medians in microseconds, the ratio, and what the public call is made of."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"one task of workload W, backend {overhead.backend}",
    )
    table.add_column("call", no_wrap=True)
    for header in ("public, us\n(q10..q90)", "empty", "ratio", "checks", "dispatch", "kernel"):
        table.add_column(header, justify="right", no_wrap=True)
    for found in overhead.comparisons:
        parts = ["", "", ""]
        if found.operation and found.kernel:
            public, operation, kernel = (cost.median_us for cost in (found.public, found.operation, found.kernel))
            parts = [figure(part) for part in (public - operation, operation - kernel, kernel)]
        color = "green" if found.ratio <= TARGET_RATIO else "red"
        table.add_row(
            found.call,
            f"{figure(found.public.median_us)} ({figure(found.public.q10_us)}..{figure(found.public.q90_us)})",
            figure(found.empty.median_us),
            f"[{color}]{found.ratio:.2f}[/{color}]",
            *parts,
        )
    return table


def print_overhead(overhead: Overhead, console: Console) -> None:
    """The table and what its columns mean."""
    console.print(overhead_table(overhead))
    console.print(
        f"ratio: public over empty, to be at most {TARGET_RATIO:g}. The last three are the public call's parts:"
    )
    console.print("checks and plan before the operation; dispatch and autograd around the backend; the backend itself.")
