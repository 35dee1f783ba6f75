"""Every prefix in one pass: the loss at every prompt length and its gradients in the parameters, against its peers.

The network is that of W (d = 5, 20 examples and a query, 4 layers, LFOM) with all of its 20 prefixes. Each provider is
held against float64 before it is timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure.clock import milliseconds, peak_bytes
from benchmarks.peers.prefix_formulations import FORMULATIONS
from memformer_kernels import build_info, memformer_prefix_loss
from memformer_kernels.calls.checks import Backend
from memformer_kernels.testing import relative_error

FORMAT = 1
BATCHES = (1000, 100_000)
QUICK_BATCHES = (256,)
TARGET_RATIO = 15.0
"""So many times as fast as the fastest peer, for 100,000 tasks."""

GATE_TASKS, GATE_ERROR = 512, 1e-4
CPU = torch.device("cpu")

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class PrefixCase:
    """Tasks of `d` features and `tokens` tokens through `layers` layers; tokens `first` and later are predicted."""

    batch: int
    d: int = 5
    tokens: int = 21
    layers: int = 4
    first: int = 1

    @property
    def multiply_adds(self) -> int:
        """Of a task, forward and backward, by the cheapest known method: the running H and b, then every layer."""
        d, layers = self.d, self.layers
        pairs = layers * (layers + 1) // 2
        forward = (2 * layers - 1) * d * d + pairs * d + d
        backward = (2 * layers - 1) * d * d + layers * d * d + 2 * pairs * d + d
        return (self.tokens - 1) * d * (d + 3) // 2 + (self.tokens - self.first) * (forward + backward)

    @property
    def bytes_moved(self) -> int:
        """Of a task in float32: its tokens, whose responses are the target."""
        return 4 * self.tokens * (self.d + 1)


@dataclass(frozen=True)
class PrefixTiming:
    """One provider. ms: median of the loss and its gradients in q and gamma. peak_mb: its peak memory, or None."""

    case: PrefixCase
    provider: str
    ms: float
    peak_mb: float | None


def providers() -> dict[str, Loss]:
    """By name; ours first."""

    def ours(backend: Backend) -> Loss:
        def loss(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, first: int) -> Tensor:
            return memformer_prefix_loss(z, target, q, None, gamma, first=first, backend=backend)

        return loss

    known: tuple[Backend, ...] = ("cpu", "torch")
    built = [name for name in known if build_info().backends[name].available]
    made = {f"memformer_kernels ({name})": ours(name) for name in built}
    for name, loss in FORMULATIONS.items():
        made[f"{name}, eager"] = loss
        made[f"{name}, compiled"] = torch.compile(loss, fullgraph=True, dynamic=False)
    return made


def _draw(case: PrefixCase) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(CPU).manual_seed(case.batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=CPU, dtype=torch.float32)

    x, w = normal(case.batch, case.tokens, case.d), normal(case.batch, case.d, 1)
    q = 0.3 * normal(case.layers, 1, case.d, case.d)
    gamma = 0.3 * normal(case.layers, case.layers, 1, 1, case.d + 1)
    return torch.cat([x, x @ w], -1), q.requires_grad_(), gamma.requires_grad_()


def _step(loss: Loss, case: PrefixCase, z: Tensor, q: Tensor, gamma: Tensor) -> Callable[[], list[Tensor]]:
    target = z[:, case.first :, -1]

    def step() -> list[Tensor]:
        value = loss(z, target, q, gamma, case.first)
        return [value.detach(), *torch.autograd.grad(value, [q, gamma])]

    return step


def check(loss: Loss, case: PrefixCase) -> None:
    """Raises RuntimeError where a provider's loss or gradients differ from those of a peer in float64."""
    small = PrefixCase(min(case.batch, GATE_TASKS), case.d, case.tokens, case.layers, case.first)
    z, q, gamma = _draw(small)
    double = [x.detach().double().requires_grad_() for x in (q, gamma)]
    exact = _step(FORMULATIONS["cumulative Gram"], small, z.double(), *double)()
    for ours, value in zip(_step(loss, small, z, q, gamma)(), exact, strict=True):
        if not relative_error(ours, value) <= GATE_ERROR:
            raise RuntimeError(f"every prefix is wrong: relative error {relative_error(ours, value):.2g}")


def measure(quick: bool, announce: Callable[[str], object] = lambda _: None) -> list[PrefixTiming]:
    """Every provider on every batch, in rounds that take turns."""
    timings = []
    for batch in QUICK_BATCHES if quick else BATCHES:
        case, rounds = PrefixCase(batch), 2 if quick else 9
        torch.compiler.reset()
        steps: dict[str, Callable[[], list[Tensor]]] = {}
        for name, loss in providers().items():
            announce(f"{name}, {batch:,} tasks")
            check(loss, case)
            steps[name] = _step(loss, case, *_draw(case))
            steps[name]()
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                spent[name].append(milliseconds(step, CPU))
        for name, step in steps.items():
            peak = peak_bytes(step, CPU)
            megabytes = None if peak is None else peak / 2**20
            timings.append(PrefixTiming(case, name, statistics.median(spent[name]), megabytes))
    return timings
