"""What one optimiser step costs, tasks sampled, gradients made, Adam applied: the native trainer beside PyTorch.

Workload W (d = 5, n = 20, L = 4, float32, response-only LFOM, gamma per feature) at batches of 1000 tasks. Peers draw
fresh tokens with torch's generator, run one of the `formulations` forward and backward, and step torch's fused Adam.
Twenty models side by side are held against twenty such runs. A second table leaves sampling out: the same given tasks
every step.

Contenders take turns, round by round, so that a disturbance of the machine hits them alike. Each is timed only after
its first loss has been found right: ours against the definition in plain PyTorch, peers' against `memformer_loss`.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure.data import Batch, make_batch, make_parameters
from benchmarks.measure.providers import FORMULATIONS
from benchmarks.measure.workloads import W, Workload
from benchmarks.peers.formulations import Loss
from benchmarks.reports.record import Machine
from benchmarks.reports.table import figure
from memformer_kernels import (
    Adam,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    build_info,
    memformer_loss,
    train_steps,
)

FORMAT = 1
BATCH = 1000
MODELS = 20
TARGET_MS = 0.08
TARGET_MODELS = 15.0
LEARNING_RATE = 1e-3
LOSS_ERROR = 1e-4
PEERS = ("published n-by-n", "Gram", "batch-last Gram")
COMPILED = ("batch-last Gram",)

Sampler = GaussianStatistics | GaussianTokens | FixedTasks


class Contender(NamedTuple):
    """A way of training: `advance(k)` takes k optimiser steps of every model; `error` is its first loss's."""

    name: str
    peer: bool
    models: int
    advance: Callable[[int], Any]
    error: float


@dataclass(frozen=True)
class Step:
    """Milliseconds of one optimiser step of all `models` together: quantiles over rounds of each round's mean.

    loss_error    relative error of the first loss
    """

    contender: str
    peer: bool
    models: int
    median_ms: float
    q10_ms: float
    q90_ms: float
    loss_error: float


@dataclass(frozen=True)
class TrainerReport:
    """Steps with fresh tasks and with given ones, and where they were measured."""

    batch: int
    rounds: int
    machine: Machine
    fresh: tuple[Step, ...]
    given: tuple[Step, ...]

    @property
    def step_ms(self) -> float | None:
        """The native step that samples sufficient statistics, None where there is no native library."""
        found = [step.median_ms for step in self.fresh if step.contender == STATISTICS and step.models == 1]
        return found[0] if found else None

    @property
    def best_peer_ms(self) -> float:
        """The quickest peer's step with fresh tasks."""
        return min(step.median_ms for step in self.fresh if step.peer)

    @property
    def models_ratio(self) -> float | None:
        """Twenty steps of the best peer over one native step of twenty models."""
        found = [step.median_ms for step in self.fresh if step.contender == STATISTICS and step.models == MODELS]
        return MODELS * self.best_peer_ms / found[0] if found else None


STATISTICS = "train_steps, cpu, statistics"


def measure(machine: Machine, *, batch: int = BATCH, rounds: int = 60, compiled: bool = True) -> TrainerReport:
    """Time every contender; a round takes as many steps of each as fill about 20 ms.

    Raises:
        RuntimeError: if a contender's first loss is wrong.
    """
    workload = W.with_batch(batch)
    fresh, given = (
        tuple(_interleaved(list(_contenders(workload, sampled, compiled)), rounds)) for sampled in (True, False)
    )
    return TrainerReport(batch, rounds, machine, fresh, given)


def _contenders(workload: Workload, sampled: bool, compiled: bool) -> Iterator[Contender]:
    backends = [name for name in ("cpu", "torch") if build_info().backends[name].available]
    tasks: dict[str, Sampler] = {}
    if sampled:
        tasks["statistics"] = GaussianStatistics(workload.d, workload.n, workload.batch, query="integrated")
        tasks["tokens"] = GaussianTokens(workload.d, workload.n, workload.batch)
    else:
        z, target = make_batch(workload, 1, torch.device("cpu"))
        tasks["given"] = FixedTasks(z, target, workload.n)
    for backend in backends:
        for kind, sampler in tasks.items():
            counts = (1, MODELS) if backend == "cpu" and kind == "statistics" else (1,)
            for models in counts:
                yield _ours(workload, kind, sampler, backend, models)
    for formulation in FORMULATIONS:
        if formulation.name in PEERS:
            yield _peer(workload, f"{formulation.name}, eager", formulation.loss, sampled)
        if compiled and formulation.name in COMPILED:
            options = dict(formulation.compile_options) or None
            loss = torch.compile(formulation.loss, fullgraph=True, dynamic=False, options=options)
            yield _peer(workload, f"{formulation.name}, compiled", loss, sampled)


def _ours(workload: Workload, kind: str, sampler: Sampler, backend: str, models: int) -> Contender:
    def state() -> TrainState:
        parameters = make_parameters(workload, 0, torch.device("cpu"))
        return TrainState.of([{"q": parameters.q, "gamma": parameters.gamma}] * models, seeds=1)

    optimizer = Adam(LEARNING_RATE)
    first = train_steps(state(), sampler, 1, optimizer=optimizer, backend=backend)
    exact = train_steps(state(), sampler, 1, optimizer=optimizer, backend="torch")
    held = state()

    def advance(steps: int) -> Any:
        return train_steps(held, sampler, steps, optimizer=optimizer, backend=backend)

    error = float(((first - exact) / exact).abs().max())
    return Contender(f"train_steps, {backend}, {kind}", False, models, advance, _checked(kind, error))


def _peer(workload: Workload, name: str, loss: Loss, sampled: bool) -> Contender:
    cpu = torch.device("cpu")
    q, gamma = make_parameters(workload, 0, cpu)
    optimizer = torch.optim.Adam([q, gamma], lr=LEARNING_RATE, fused=True)
    given = make_batch(workload, 1, cpu)
    found = loss(given.z, given.target, q, gamma, workload.n).detach()
    with torch.no_grad():
        exact = memformer_loss(given.z, given.target, q, gamma=gamma, context=workload.n, backend="torch")
    generator = torch.Generator().manual_seed(1)

    def advance(steps: int) -> Any:
        for _ in range(steps):
            batch = _draw(workload, generator) if sampled else given
            optimizer.zero_grad()
            value = loss(batch.z, batch.target, q, gamma, workload.n)
            torch.autograd.backward(value)
            optimizer.step()

    return Contender(name, True, 1, advance, _checked(name, float((found - exact).abs() / exact)))


def _checked(name: str, error: float) -> float:
    if not error <= LOSS_ERROR:
        raise RuntimeError(f"{name} has a first loss with a relative error of {error:.1e}, expected {LOSS_ERROR:.0e}")
    return error


def _draw(workload: Workload, generator: torch.Generator) -> Batch:
    """Fresh tasks, with as few operations as we know: features drawn in place, responses by one product."""
    z = torch.empty(workload.batch, workload.tokens, workload.d + 1, device="cpu", dtype=torch.float32).normal_(
        generator=generator
    )
    weights = torch.randn(
        workload.batch, workload.d, 1, generator=generator, device=generator.device, dtype=torch.float32
    )
    response = torch.bmm(z[..., :-1], weights)[..., 0]
    z[:, :-1, -1] = response[:, :-1]
    z[:, -1, -1] = 0
    return Batch(z, response[:, -1:])


def _interleaved(contenders: list[Contender], rounds: int) -> Iterator[Step]:
    counts = []
    for contender in contenders:
        contender.advance(3)
        begun = time.perf_counter()
        contender.advance(3)
        counts.append(max(1, round(0.02 / ((time.perf_counter() - begun) / 3))))
    samples: list[list[float]] = [[] for _ in contenders]
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for contender, count, found in zip(contenders, counts, samples, strict=True):
                begun = time.perf_counter()
                contender.advance(count)
                found.append((time.perf_counter() - begun) / count * 1e3)
    finally:
        if enabled:
            gc.enable()
    for contender, found in zip(contenders, samples, strict=True):
        median, q10, q90 = np.quantile(found, [0.5, 0.1, 0.9]).tolist()
        yield Step(contender.name, contender.peer, contender.models, median, q10, q90, contender.error)


def as_record(report: TrainerReport) -> dict[str, Any]:
    """For a JSON file, with the figures that targets are held against."""
    return {
        "format": FORMAT,
        "target_ms": TARGET_MS,
        "step_ms": report.step_ms,
        "best_peer_ms": report.best_peer_ms,
        "target_models_ratio": TARGET_MODELS,
        "models_ratio": report.models_ratio,
        **asdict(report),
    }


def print_trainer(report: TrainerReport, console: Console) -> None:
    """Both tables, and the two figures that are to be reached."""
    for title, steps in (("fresh tasks every step", report.fresh), ("given tasks", report.given)):
        console.print(_table(f"one optimiser step at B = {report.batch:,}, {title}", steps))
    console.print("x peer: the quickest peer's step over one model's here. Peers step torch's fused Adam.")
    if report.step_ms is not None and report.models_ratio is not None:
        console.print(f"native step with sampled statistics: {report.step_ms:.3g} ms, to be at most {TARGET_MS:g}")
        console.print(
            f"{MODELS} models in one call: {report.models_ratio:.3g}x cheaper than {MODELS} runs of the best peer, "
            f"to be at least {TARGET_MODELS:g}x"
        )


def _table(title: str, steps: tuple[Step, ...]) -> Table:
    best = min(step.median_ms for step in steps if step.peer)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    table.add_column("trainer", no_wrap=True)
    for header in ("models", "ms, median\n(q10..q90)", "us a\nmodel", "x\npeer"):
        table.add_column(header, justify="right", no_wrap=True)
    for step in sorted(steps, key=lambda step: step.median_ms / step.models):
        each = step.median_ms / step.models
        table.add_row(
            step.contender,
            str(step.models),
            f"{figure(step.median_ms)} ({figure(step.q10_ms)}..{figure(step.q90_ms)})",
            figure(each * 1e3),
            figure(best / each),
        )
    return table
