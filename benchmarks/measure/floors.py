"""Where a backend's time goes on a workload, by leaving parts out, with the two floors no method can pass.

Every part runs in the same rounds, in turn, on the same rotated buffers, so that differences between parts and their
distance from the memory's own rate survive a machine whose bandwidth drifts. The read limit is measured there too: the
fastest of a few reductions of those very tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure.clock import milliseconds
from benchmarks.measure.data import Batch, Parameters, make_batch, make_parameters
from benchmarks.measure.harness import buffer_count
from benchmarks.measure.results import Machine, operations_floor_ms
from benchmarks.measure.workloads import W_FULL, W, Workload
from memformer_kernels import context_gram, memformer_loss
from memformer_kernels.calls.checks import Backend

FORMAT = 1
ROUNDS = 40
BATCH = 100_000
WORKLOADS = (W.with_batch(BATCH), W_FULL.with_batch(BATCH))
DEEP = 8

GRADIENTS = "loss + gradients"
ONE_THREAD = f"{GRADIENTS}, one thread"


@dataclass(frozen=True)
class Part:
    """One measured part: milliseconds of a pass over the batch, median and spread over the rounds."""

    name: str
    median_ms: float
    q10_ms: float
    q90_ms: float


@dataclass(frozen=True)
class Profile:
    """A workload's floors in milliseconds and its parts on one backend.

    read_ms       reading the tokens and nothing else, in the same rounds
    operations_ms the cheapest method's multiply-adds at the rate of a large matrix product
    """

    workload: Workload
    backend: Backend
    read_ms: float
    operations_ms: float
    parts: tuple[Part, ...]

    def median(self, name: str) -> float:
        """A part's median, in milliseconds."""
        return next(part.median_ms for part in self.parts if part.name == name)

    RECORDED: ClassVar = ("attribution_ms",)

    @property
    def attribution_ms(self) -> dict[str, float]:
        """The measured pass as a sum of milliseconds: what each further part adds to the one before it."""
        layers = f"loss, L = {self.workload.layers}"
        return {
            "reading the tokens": self.read_ms,
            "first layer and all that is done once": self.median("loss, L = 1") - self.read_ms,
            f"layers 2 to {self.workload.layers}": self.median(layers) - self.median("loss, L = 1"),
            "backward": self.median(GRADIENTS) - self.median(layers),
        }


def profile(workload: Workload, backend: Backend, machine: Machine, rounds: int = ROUNDS) -> Profile:
    """Measure one workload on the CPU, every part in turn in every round.

    Raises:
        ValueError: a workload of fewer than two layers, from which no layer can be left out.
    """
    if workload.layers < 2:
        raise ValueError(f"layers must be at least 2, got {workload.layers}")
    cpu = torch.device("cpu")
    buffers = [make_batch(workload, 1 + i, cpu) for i in range(buffer_count(workload))]
    parts = _parts(workload, backend)
    samples = _rounds({**_reads(), **parts}, buffers, rounds)
    read_ms = min(float(np.median(samples[name])) for name in _reads())
    found = []
    for name in parts:
        q10, median, q90 = np.quantile(samples[name], [0.1, 0.5, 0.9]).tolist()
        found.append(Part(name, median, q10, q90))
    return Profile(workload, backend, read_ms, operations_floor_ms(workload, machine), tuple(found))


def _rounds(
    actions: Mapping[str, Callable[[Batch], object]], buffers: Sequence[Batch], rounds: int
) -> dict[str, list[float]]:
    cpu = torch.device("cpu")
    following = cycle(buffers)
    for action in actions.values():
        action(next(following))
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            samples[name].append(milliseconds(partial(action, next(following)), cpu))
    return samples


def _reads() -> dict[str, Callable[[Batch], Tensor]]:
    return {
        "sum of the tokens": lambda batch: batch.z.sum(),
        "largest of the tokens": lambda batch: batch.z.amax(),
        "dot product of the tokens with themselves": lambda batch: torch.dot(batch.z.view(-1), batch.z.view(-1)),
    }


def _parts(workload: Workload, backend: Backend) -> dict[str, Callable[[Batch], object]]:
    """The workload whole, and with parts left out; `context_gram` chooses its backend itself."""

    def loss(batch: Batch, parameters: Parameters, gradients: bool) -> object:
        with torch.set_grad_enabled(gradients):
            value = memformer_loss(
                batch.z, batch.target, parameters.q, gamma=parameters.gamma, context=workload.n, backend=backend
            )
        return torch.autograd.grad(value, tuple(parameters)) if gradients else value

    def one_thread(batch: Batch, parameters: Parameters) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            loss(batch, parameters, True)
        finally:
            torch.set_num_threads(threads)

    def with_layers(layers: int) -> Parameters:
        return make_parameters(replace(workload, layers=layers), 0, torch.device("cpu"))

    full, shallow, deep = with_layers(workload.layers), with_layers(1), with_layers(DEEP)
    return {
        "context_gram (writes B D D)": lambda batch: context_gram(batch.z, workload.n),
        "loss, L = 1": partial(loss, parameters=shallow, gradients=False),
        f"loss, L = {workload.layers}": partial(loss, parameters=full, gradients=False),
        f"{GRADIENTS}, L = 1": partial(loss, parameters=shallow, gradients=True),
        GRADIENTS: partial(loss, parameters=full, gradients=True),
        f"{GRADIENTS}, L = {DEEP}": partial(loss, parameters=deep, gradients=True),
        ONE_THREAD: partial(one_thread, parameters=full),
    }
