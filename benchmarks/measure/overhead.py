"""What a public call costs beyond its arithmetic: one task of workload W against an empty registered operation.

The empty operation has the same signature and autograd (`empty_ops`). Both run in the same rounds, in turn, so that a
disturbance of the machine hits them alike. Three nested parts of the public call, timed in the same rounds, say where
its time goes: the public function, the registered operation, and the backend's own function.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure.clock import taking_turns
from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.workloads import W
from benchmarks.peers import empty_ops
from memformer_kernels import memformer_loss, memformer_predict
from memformer_kernels.backends import BACKENDS
from memformer_kernels.calls.arguments import Network, form_named
from memformer_kernels.calls.checks import Backend
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

    backend: Backend
    rounds: int
    calls: int
    comparisons: tuple[Comparison, ...]

    RECORDED: ClassVar = ("ratios",)

    @property
    def ratios(self) -> dict[str, float]:
        """By the way of calling."""
        return {comparison.call: comparison.ratio for comparison in self.comparisons}


def measure(backend: Backend, rounds: int = ROUNDS, calls: int = CALLS) -> Overhead:
    """Time every way of calling; each round makes `calls` calls of each contender in turn."""
    comparisons = []
    for name, contenders in _ways(backend).items():
        found = _costs(contenders, rounds, calls)
        comparisons.append(
            Comparison(name, found["public"], found["empty"], found.get("operation"), found.get("kernel"))
        )
    return Overhead(backend, rounds, calls, tuple(comparisons))


def _costs(contenders: Mapping[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, Cost]:
    def called(contender: Callable[[], Any]) -> None:
        for _ in range(calls):
            contender()

    actions = [partial(called, contender) for contender in contenders.values()]
    for action in actions:
        action()
    found = 1e6 / calls * np.array(taking_turns(actions, rounds))
    return dict(zip(contenders, map(Cost, *np.quantile(found, [0.5, 0.1, 0.9], axis=1).tolist()), strict=True))


def _ways(backend: Backend) -> dict[str, dict[str, Callable[[], Any]]]:
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


def _predictions(backend: Backend, z: Tensor, q: Tensor, gamma: Tensor) -> dict[str, Callable[[], Any]]:
    n = W.n
    network = (z, q, None, gamma, None, None, None)
    options = (n, _FORM, 1, False, backend)
    # As the dispatcher hands them to a backend: below autograd.
    inner = Network(z, q.detach(), None, gamma.detach(), None, None, n, form_named(_FORM))
    return {
        "public": lambda: memformer_predict(z, q, gamma=gamma, context=n, backend=backend),
        "empty": lambda: empty_ops.predict(*network, *options)[0],
        "operation": lambda: ops.predict(*network, *options),
        "kernel": lambda: BACKENDS[backend].predict(inner, 1, False),
    }


def _losses(backend: Backend, z: Tensor, target: Tensor, q: Tensor, gamma: Tensor) -> dict[str, Callable[[], Any]]:
    n = W.n
    needs = [tensor is not None and tensor.requires_grad for tensor in (z, target, q, None, gamma, None, None, None)]
    network = (z, target, q, None, gamma, None, None, None)
    options = (n, _FORM, 1, needs, backend)
    inner = Network(z, q.detach(), None, gamma.detach(), None, None, n, form_named(_FORM))
    return {
        "public": lambda: memformer_loss(z, target, q, gamma=gamma, context=n, backend=backend),
        "empty": lambda: empty_ops.loss(*network, *options)[0],
        "operation": lambda: ops.loss(*network, *options),
        "kernel": lambda: BACKENDS[backend].loss(inner, target, 1, needs[:-1]),
    }


def _with_backward(forward: Callable[[], Tensor], parameters: tuple[Tensor, ...]) -> Callable[[], Any]:
    seed: list[Tensor] = [torch.ones_like(forward())]

    def both() -> Any:
        return torch.autograd.grad(forward(), parameters, seed)

    return both
