"""What one optimiser step costs, tasks sampled, gradients made, Adam applied: the native trainer compared with PyTorch.

Workload W (d = 5, n = 20, L = 4, float32, response-only LFOM, gamma per feature) at batches of 1000 tasks. Peers draw
fresh tokens with torch's generator, run one of the `formulations` forward and backward, and step torch's fused Adam.
Twenty models side by side are held against twenty such runs. A second table leaves sampling out: the same given tasks
every step.

Contenders take turns, round by round, so that a disturbance of the machine hits them alike. Each is timed only after
its first loss has been found right: ours against the definition in plain PyTorch, peers' against `memformer_loss`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from benchmarks.measure.clock import taking_turns
from benchmarks.measure.data import Batch, make_batch, make_parameters
from benchmarks.measure.providers import FORMULATIONS
from benchmarks.measure.results import Machine
from benchmarks.measure.workloads import W, Workload
from benchmarks.peers.formulations import Loss
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
from memformer_kernels.training.steps import Backend as TrainingBackend

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

    RECORDED: ClassVar = ("step_ms", "best_peer_ms", "models_ratio")

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
    all_backends: tuple[TrainingBackend, ...] = ("cpu", "torch")
    backends = [name for name in all_backends if build_info().backends[name].available]
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


def _ours(workload: Workload, kind: str, sampler: Sampler, backend: TrainingBackend, models: int) -> Contender:
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
    actions = [partial(one.advance, count) for one, count in zip(contenders, counts, strict=True)]
    for contender, count, found in zip(contenders, counts, taking_turns(actions, rounds), strict=True):
        median, q10, q90 = (1e3 / count * np.quantile(found, [0.5, 0.1, 0.9])).tolist()
        yield Step(contender.name, contender.peer, contender.models, median, q10, q90, contender.error)
