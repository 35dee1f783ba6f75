"""Learned iterative shrinkage on small tasks: recovery error and its gradients in the parameters, against its peers.

Each task has a dictionary of its own, so that h is read for each. A network learns a step size and a threshold a layer
(as ALISTA does) or a matrix and a threshold (as LISTA). Each provider is held against float64 before it is timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.measure.clock import milliseconds, peak_bytes
from benchmarks.peers.shrinkage_formulations import FORMULATIONS, Shrinkage
from memformer_kernels import build_info, lfom_solve
from memformer_kernels.calls.checks import Backend
from memformer_kernels.testing import relative_error

FORMAT = 1
LEARNED = ("sizes", "matrices")
DEPTHS = (4, 16)
BATCHES = (1000, 100_000)
QUICK_DEPTHS, QUICK_BATCHES = (4,), (256,)

GATE_TASKS, GATE_ERROR = 512, 1e-4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProximalCase:
    """`batch` tasks of d weights and `measured` measurements; a network of `layers` layers and what it learns."""

    batch: int
    layers: int
    learned: str
    d: int = 8
    measured: int = 6

    @property
    def multiply_adds(self) -> int:
        """Of a task, forward and backward, by the cheapest known method: nothing is learned of h and b."""
        d, layers = self.d, self.layers
        products = 2 * (layers - 1) * d * d  # h w but for w = 0, and its transpose
        steps = 2 * layers * d if self.learned == "sizes" else (3 * layers - 1) * d * d
        return products + steps + d

    @property
    def bytes_moved(self) -> int:
        """Of a task in float32: h, b and the code."""
        return 4 * (self.d * self.d + 2 * self.d)


@dataclass(frozen=True)
class ProximalTiming:
    """One provider. ms: median of the error and its gradients in the parameters. peak_mb: its peak memory, or None."""

    case: ProximalCase
    provider: str
    ms: float
    peak_mb: float | None


def providers() -> dict[str, Shrinkage]:
    """By name; ours first."""

    def ours(backend: Backend) -> Shrinkage:
        def codes(h: Tensor, b: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
            eye = torch.eye(b.shape[1], device=b.device, dtype=b.dtype)
            a = -steps if steps.ndim == 3 else -steps[:, None, None] * eye
            return lfom_solve(h, b, a, level=levels[:, None], backend=backend)

        return codes

    known: tuple[Backend, ...] = ("cpu", "torch")
    built = [name for name in known if build_info().backends[name].available]
    made = {f"memformer_kernels ({name})": ours(name) for name in built}
    for name, codes in FORMULATIONS.items():
        made[f"{name}, eager"] = codes
        made[f"{name}, compiled"] = torch.compile(codes, fullgraph=True, dynamic=False)
    return made


def _draw(case: ProximalCase) -> list[Tensor]:
    """h, b, codes with half of their entries, and the parameters, which are near those of ISTA."""
    generator = torch.Generator(CPU).manual_seed(case.batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=CPU, dtype=torch.float32)

    dictionary = normal(case.batch, case.measured, case.d) / case.measured**0.5
    h = dictionary.mT @ dictionary
    codes = normal(case.batch, case.d) * (normal(case.batch, case.d) > 0)
    b = (h @ codes[..., None])[..., 0]
    steps = 0.15 + 0.01 * normal(case.layers)
    if case.learned == "matrices":
        near = 0.1 * normal(case.layers, case.d, case.d) + torch.eye(case.d, device=CPU, dtype=torch.float32)
        steps = steps[:, None, None] * near
    levels = 0.02 + 0.002 * normal(case.layers)
    return [h, b, codes, steps.requires_grad_(), levels.requires_grad_()]


def _step(shrinkage: Shrinkage, drawn: list[Tensor]) -> Callable[[], list[Tensor]]:
    h, b, codes, steps, levels = drawn

    def step() -> list[Tensor]:
        error = (shrinkage(h, b, steps, levels) - codes).square().mean()
        return [error.detach(), *torch.autograd.grad(error, [steps, levels])]

    return step


def check(shrinkage: Shrinkage, case: ProximalCase) -> None:
    """Raises RuntimeError where a provider's error or gradients differ from those of a peer in float64."""
    drawn = _draw(replace(case, batch=min(case.batch, GATE_TASKS)))
    double = [x.detach().double().requires_grad_(x.requires_grad) for x in drawn]
    exact = _step(FORMULATIONS["LISTA"], double)()
    for ours, value in zip(_step(shrinkage, drawn)(), exact, strict=True):
        if not relative_error(ours, value) <= GATE_ERROR:
            raise RuntimeError(f"learned shrinkage is wrong: relative error {relative_error(ours, value):.2g}")


def measure(quick: bool, announce: Callable[[str], object] = lambda _: None) -> list[ProximalTiming]:
    """Every provider on every case, in rounds that take turns."""
    timings, rounds = [], 2 if quick else 9
    depths, batches = (QUICK_DEPTHS, QUICK_BATCHES) if quick else (DEPTHS, BATCHES)
    for case in (ProximalCase(batch, layers, kind) for kind in LEARNED for layers in depths for batch in batches):
        torch.compiler.reset()
        drawn = _draw(case)
        steps: dict[str, Callable[[], list[Tensor]]] = {}
        for name, shrinkage in providers().items():
            announce(f"{name}, {case.learned}, {case.layers} layers, {case.batch:,} tasks")
            check(shrinkage, case)
            steps[name] = _step(shrinkage, drawn)
            steps[name]()
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                spent[name].append(milliseconds(step, CPU))
        for name, step in steps.items():
            peak = peak_bytes(step, CPU)
            megabytes = None if peak is None else peak / 2**20
            timings.append(ProximalTiming(case, name, statistics.median(spent[name]), megabytes))
    return timings
