"""The one way anything here is timed: first the correctness gate, then interleaved runs, then medians and quantiles."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure.clock import limited, milliseconds, peak_bytes
from benchmarks.measure.data import Batch, Parameters, make_batch, make_parameters
from benchmarks.measure.providers import Outcome, Provider, Step
from benchmarks.measure.workloads import DIRECTIONS, Workload
from benchmarks.peers import formulations, networks
from benchmarks.reports.record import Quantiles, Timing

# Relative error against float64 that a provider may show over the whole batch, by the parameters' dtype: (loss or
# predictions, gradients). The honest peers stay below a quarter of it at a million tasks; TF32 products, at 1e-3, are
# turned away. Half tokens are exact numbers to every provider alike.
BUDGETS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-10)}

# A batch below this was most likely just made by the same process, so it is timed out of the cache.
WARM_BYTES = 8 << 20
# Inputs above it are rotated until they exceed any cache together.
COLD_BYTES = 192 << 20
# Beyond this a batch pushes itself out of any cache.
ALONE_BYTES = 2 << 30
# What the reference takes at a time: tasks, and numbers of their tokens.
REFERENCE_CHUNK = 10_000
# Numbers of tokens of a chunk, 0.3 GB in float64: what the form keeps of it for its backward fits any GPU.
REFERENCE_NUMBERS = 2**25


@dataclass(frozen=True)
class Policy:
    """How long to time: about `seconds` per provider and workload, within [min_runs, max_runs], in bursts of about
    `burst_ms` so that a fast provider runs warm, as it does in a training loop. Where min_runs would take more than
    `longest_s`, as many as fit, and at least one.

    admit_s: seconds in which a provider must be built, checked and run once. total_s: seconds after which no further
    provider of a workload is. None: any time.
    """

    seconds: float = 2.0
    min_runs: int = 3
    max_runs: int = 400
    burst_ms: float = 5.0
    longest_s: float = 10.0
    admit_s: float | None = None
    total_s: float | None = None

    def runs(self, pass_ms: float) -> int:
        """How many times to run what takes `pass_ms` a pass."""
        least = int(np.clip(self.longest_s * 1e3 / pass_ms, 1, self.min_runs))
        return int(np.clip(self.seconds * 1e3 / pass_ms, least, self.max_runs))


STANDARD = Policy()
QUICK = Policy(seconds=0.2, max_runs=50)


@dataclass(frozen=True)
class _Entry:
    """A provider that passed the gate, and how it takes part: `runs` in bursts of `burst`."""

    provider: Provider
    step: Step
    runs: int
    burst: int


def run_workload(
    workload: Workload,
    providers: Sequence[Provider],
    device: torch.device,
    policy: Policy = STANDARD,
    announce: Callable[[str], None] = lambda text: None,
) -> tuple[Timing, ...]:
    """Gate and time every provider on one workload; results in the providers' order.

    Rounds go over all providers in turn, so that a disturbance of the machine hits them alike; slow providers sit
    rounds out, evenly. Each run takes the next of several input buffers.
    """
    torch.compiler.reset()
    parameters = make_parameters(workload, seed=0, device=device)
    buffers = [make_batch(workload, seed=1 + i, device=device) for i in range(buffer_count(workload))]
    reference = reference_outcome(workload, buffers[0], parameters)
    timings: dict[str, Timing] = {}
    entries: list[_Entry] = []
    begun = time.perf_counter()
    for provider in providers:
        if policy.total_s is not None and time.perf_counter() - begun > policy.total_s:
            reason = f"those before it took the {policy.total_s:g} s of this workload"
            timings[provider.name] = Timing(provider.name, provider.peer, workload, "skipped", reason)
            continue
        announce(f"{workload.name} B={workload.batch:,}: checking {provider.name}")
        timing, entry = _admit(provider, workload, parameters, buffers[0], reference, device, policy)
        timings[provider.name] = timing
        if entry:
            entries.append(entry)
    announce(f"{workload.name} B={workload.batch:,}: timing {len(entries)} providers")
    for name, samples in _rounds(entries, buffers, device).items():
        q10, median, q90 = np.quantile(samples, [0.1, 0.5, 0.9]).tolist()
        timings[name] = replace(timings[name], quantiles=Quantiles(median, q10, q90, len(samples)))
    return tuple(timings.values())


def buffer_count(workload: Workload) -> int:
    """How many input buffers to rotate: one for a batch that fits a cache, else enough to leave every cache cold."""
    if not WARM_BYTES <= workload.bytes_moved < ALONE_BYTES:
        return 1
    return max(2, -(-COLD_BYTES // workload.bytes_moved))


def reference_outcome(workload: Workload, batch: Batch, parameters: Parameters) -> Outcome:
    """What the whole batch gives in float64, by the re-associated form, a chunk of tasks at a time."""
    wide = parameters.double()
    chunk = max(1, min(REFERENCE_CHUNK, REFERENCE_NUMBERS // (workload.tokens * workload.width)))
    pieces = list(zip(*(torch.split(tensor, chunk) for tensor in batch), strict=True))

    def evaluate(z: Tensor, target: Tensor | None) -> Tensor:
        if workload.plain:
            q, gamma = wide
            return formulations.reassociated(z, target, q, gamma, workload.n)
        return networks.reassociated(z, target, wide.q, wide.gamma, wide.beta, wide.gate, wide.p, workload.n)

    if not workload.training:
        with torch.no_grad():
            return Outcome(torch.cat([evaluate(z.double(), None) for z, _ in pieces]), {})
    total = torch.zeros((), dtype=torch.float64, device=wide.q.device)
    gradients = {name: torch.zeros_like(x) for name, x in wide.named.items()}
    moved: list[Tensor] = []
    for z, target in pieces:
        leaf = z.double().requires_grad_()
        loss = evaluate(leaf, target.double()) * (z.shape[0] / workload.batch)
        wanted = (*wide, leaf) if workload.direction == DIRECTIONS[2] else tuple(wide)
        found = torch.autograd.grad(loss, wanted)
        for sum_, gradient in zip(gradients.values(), found, strict=False):
            sum_ += gradient
        moved.extend(found[len(gradients) :])
        total += loss.detach()
    return Outcome(total, {**gradients, "z": torch.cat(moved)} if moved else gradients)


def errors(outcome: Outcome, reference: Outcome) -> tuple[float, float]:
    """Relative errors ||x - x64|| / ||x64|| of the loss or the predictions, and of the worst gradient (0 if none).

    Raises:
        ValueError: a gradient is missing or has another shape.
    """
    if outcome.gradients.keys() != reference.gradients.keys():
        raise ValueError(f"gradients of {sorted(outcome.gradients)}, expected {sorted(reference.gradients)}")
    for name, gradient in outcome.gradients.items():
        expected = reference.gradients[name].shape
        if gradient.shape != expected:
            raise ValueError(f"gradient of {name} has shape {tuple(gradient.shape)}, expected {tuple(expected)}")
    gradients = [_relative(gradient, reference.gradients[name]) for name, gradient in outcome.gradients.items()]
    if outcome.loss.shape != reference.loss.shape:
        raise ValueError(f"predictions of shape {tuple(outcome.loss.shape)}, expected {tuple(reference.loss.shape)}")
    return _relative(outcome.loss, reference.loss), max(gradients, default=0.0)


def _relative(value: Tensor, reference: Tensor) -> float:
    error = ((value.double() - reference).norm() / reference.norm()).item()
    # A NaN would pass every "is larger than" comparison.
    return error if np.isfinite(error) else float("inf")


def _admit(
    provider: Provider,
    workload: Workload,
    parameters: Parameters,
    batch: Batch,
    reference: Outcome,
    device: torch.device,
    policy: Policy,
) -> tuple[Timing, _Entry | None]:
    """Build a provider, hold its result against the reference and find how often it can run."""
    timing = Timing(provider.name, provider.peer, workload, "timed", solver=provider.solution is not None)
    supported = provider.supports(workload, device)
    if not supported:
        return replace(timing, status="unsupported", reason=supported.reason), None
    begun = time.perf_counter()
    # Whatever a peer raises (no compiler, no memory, a bug in it) is its own result and must not end the others' run.
    try:
        with limited(policy.admit_s):
            step = provider.build(workload, parameters)
            outcome = provider.outcome(step(batch))
            if provider.solution is not None:
                reference = Outcome(provider.solution(workload, batch.z), {})
            loss_error, gradient_error = errors(outcome, reference)
            first_call_s = time.perf_counter() - begun
            loss_budget, gradient_budget = BUDGETS[workload.parameter_dtype]
            if loss_error > loss_budget or gradient_error > gradient_budget:
                reason = (
                    f"wrong result: relative error {loss_error:.1e} in the loss (budget {loss_budget:.0e}), "
                    f"{gradient_error:.1e} in the gradients (budget {gradient_budget:.0e})"
                )
                return replace(timing, status="rejected", reason=reason), None
            del outcome
            gc.collect()
            spent: list[float] = []
            peak = peak_bytes(lambda: spent.append(milliseconds(partial(step, batch), device)), device)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:200]
        return replace(timing, status="failed", reason=reason), None
    runs = policy.runs(spent[0])
    burst = int(np.clip(policy.burst_ms / spent[0], 1, runs))
    timing = replace(
        timing, loss_error=loss_error, gradient_error=gradient_error, first_call_s=first_call_s, peak_bytes=peak
    )
    return timing, _Entry(provider, step, runs, burst)


def _rounds(entries: Sequence[_Entry], buffers: Sequence[Batch], device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every run, by provider."""
    samples: dict[str, list[float]] = {entry.provider.name: [] for entry in entries}
    bursts = [-(-entry.runs // entry.burst) for entry in entries]
    rounds = max(bursts, default=0)
    following = cycle(buffers)
    for i in range(rounds):
        for entry, count in zip(entries, bursts, strict=True):
            if (i + 1) * count // rounds == i * count // rounds:
                continue
            for _ in range(entry.burst):
                samples[entry.provider.name].append(milliseconds(partial(entry.step, next(following)), device))
    return samples
