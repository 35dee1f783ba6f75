"""The registry: everything that can compute a workload's loss and gradients, or its predictions, and what solves its
tasks instead. A new backend is one line in OURS.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.dlpack import from_dlpack

from benchmarks.measure.data import Batch, Parameters
from benchmarks.measure.workloads import DIRECTIONS, Workload
from benchmarks.peers import formulations, networks, solvers
from memformer_kernels import build_info, memformer_loss, memformer_predict

# What one provider may take for intermediates, so that a whole run fits a machine with 24 GB.
MEMORY_LIMIT = 12e9

NO_JAX = "jax is not installed"
NO_FLA = "flash-linear-attention is not installed"


class Outcome(NamedTuple):
    """One pass: the scalar loss and its gradients by name, or forward alone the predictions (B, 1) and no gradients."""

    loss: Tensor
    gradients: dict[str, Tensor]


class Support(NamedTuple):
    """Whether a provider computes a workload on a device; if not, why."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


# One pass in the workload's direction, awaited. What it returns is a provider's own; `Provider.outcome` reads it.
Step = Callable[[Batch], Any]
# The values torch.compile takes in `options`.
CompileOption = str | int | bool | Callable[..., Any]
Supports = Callable[[Workload, torch.device], Support]
# (z, target or None) -> the loss, or without a target the predictions.
Evaluate = Callable[[Tensor, Tensor | None], Tensor]


def _as_returned(found: Outcome) -> Outcome:
    return found


@dataclass(frozen=True)
class Provider:
    """One way to compute a workload.

    name      unique, as the table shows it
    peer      True for what memformer_kernels is compared with
    supports  (workload, device) -> Support
    build     (workload, parameters) -> a function of a batch that runs one pass; called once per workload, outside the
              timing
    outcome   what such a function returned, as an Outcome; outside the timing
    solution  for a solver, which has no parameters and answers the tasks themselves instead of running the network:
              (workload, z) -> its exact predictions, in float64, to hold it against
    """

    name: str
    peer: bool
    supports: Supports
    build: Callable[[Workload, Parameters], Step]
    outcome: Callable[[Any], Outcome] = _as_returned
    solution: Callable[[Workload, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Formulation:
    """A peer's loss for response-only LFOM, for every other network if it has one, where it applies, and the compiler
    options that serve it best. deepest: the most layers that it is compiled with, unrolled as they are.
    """

    name: str
    loss: formulations.Loss
    network: networks.Form | None
    supports: Supports
    compile_options: Mapping[str, CompileOption] = field(default_factory=dict)
    deepest: int = 16


def _everywhere(workload: Workload, device: torch.device) -> Support:
    return Support(True)


def _n_by_n(workload: Workload, device: torch.device) -> Support:
    # Kept for the backward pass: per layer the masked attention matrix and three (N, D) tensors; on top, while it runs,
    # the matrix before masking and the gradients of both.
    square, rows = workload.tokens**2, workload.tokens * workload.width
    numbers = workload.layers * (workload.heads * square + 3 * rows) + 3 * square
    needed = workload.batch * numbers * workload.parameter_dtype.itemsize
    if needed > MEMORY_LIMIT:
        return Support(False, f"needs about {needed / 1e9:.0f} GB of n-by-n intermediates")
    return Support(True)


def _gram_space(workload: Workload, device: torch.device) -> Support:
    if workload.token_axis:
        return Support(False, f"{workload.granularity} gamma has a token axis, which Gram space cannot hold")
    return Support(True)


def _token_space(workload: Workload, device: torch.device) -> Support:
    if not workload.token_axis:
        return Support(False, "a Gram form costs less, since gamma has no token axis")
    return Support(True)


def _trained(fits: Supports, workload: Workload, device: torch.device) -> Support:
    """What JAX's peers are written for: gradients of response-only LFOM to the parameters."""
    if not workload.plain or workload.direction != DIRECTIONS[1] or workload.dtype not in ("float32", "float64"):
        return Support(False, "written for the loss of response-only LFOM and its gradients in parameters alone")
    return fits(workload, device)


FORMULATIONS = (
    Formulation("published n-by-n", formulations.published, networks.published, _n_by_n),
    Formulation("re-associated", formulations.reassociated, networks.reassociated, _everywhere),
    Formulation("Gram", formulations.gram, networks.gram, _gram_space, deepest=32),
    Formulation("batch-last Gram", formulations.batch_last_gram, None, _gram_space, deepest=32),
    # With explicit vectors Inductor splits this form's short token sums over threads, task block by task block, which
    # is 5 times slower than leaving the vectorising to the C++ compiler.
    Formulation("batch-last tokens", formulations.batch_last_tokens, None, _token_space, {"cpp.simdlen": 1}),
)


def _step(evaluate: Evaluate, workload: Workload, parameters: Parameters) -> Step:
    if not workload.training:

        def predict(batch: Batch) -> Outcome:
            with torch.no_grad():
                return Outcome(evaluate(batch.z, None), {})

        return predict

    # On one task a dictionary made anew in every pass shows: what can be made once is made here.
    to_tokens = workload.direction == DIRECTIONS[2]
    names, learned = (*parameters.named, *(["z"] if to_tokens else [])), tuple(parameters)

    def step(batch: Batch) -> Outcome:
        z = batch.z.detach().requires_grad_() if to_tokens else batch.z
        value = evaluate(z, batch.target)
        gradients = torch.autograd.grad(value, (*learned, z) if to_tokens else learned)
        return Outcome(value.detach(), dict(zip(names, gradients, strict=True)))

    return step


def _formula(formulation: Formulation, workload: Workload, parameters: Parameters, compiled: bool) -> Evaluate:
    """A formulation on its parameters; tokens in half precision are widened inside what is compiled."""
    chosen: Callable[..., Tensor] = formulation.loss
    if not workload.plain and formulation.network is not None:
        chosen = formulation.network
    arguments = tuple(parameters) if workload.plain else tuple(vars(parameters).values())

    def widened(z: Tensor, target: Tensor | None, *rest: Any) -> Tensor:
        dtype = workload.parameter_dtype
        return chosen(z.to(dtype), None if target is None else target.to(dtype), *rest)

    form = chosen if workload.torch_dtype == workload.parameter_dtype else widened
    if compiled:
        # Static shapes: a compiled peer gets the batch size it is timed at.
        options = dict(formulation.compile_options) or None
        form = torch.compile(form, fullgraph=True, dynamic=False, options=options)
    return lambda z, target: form(z, target, *arguments, workload.n)


def _peer(formulation: Formulation, compiled: bool) -> Provider:
    def supports(workload: Workload, device: torch.device) -> Support:
        if not workload.plain and formulation.network is None:
            return Support(False, "written for response-only LFOM alone")
        if compiled and workload.layers > formulation.deepest:
            return Support(False, f"more than {formulation.deepest} unrolled layers take minutes to compile")
        return formulation.supports(workload, device)

    def build(workload: Workload, parameters: Parameters) -> Step:
        return _step(_formula(formulation, workload, parameters, compiled), workload, parameters)

    return Provider(f"{formulation.name}, {'compiled' if compiled else 'eager'}", True, supports, build)


def _solver(
    name: str,
    solve: Callable[[Tensor, int, int], Tensor],
    solution: Callable[[Tensor, int, int], Tensor],
) -> Provider:
    """A solver of the tasks themselves, for the cost of what a network learns to do."""

    def supports(workload: Workload, device: torch.device) -> Support:
        if workload.training or workload.n < workload.d or workload.layers > workload.d:
            return Support(False, "a solver has no parameters, needs d examples, and takes at most d steps")
        if workload.torch_dtype != workload.parameter_dtype:
            return Support(False, f"torch.linalg has no solver in {workload.dtype}")
        return Support(True)

    def build(workload: Workload, parameters: Parameters) -> Step:
        def step(batch: Batch) -> Outcome:
            with torch.no_grad():
                return Outcome(solve(batch.z, workload.n, workload.layers), {})

        return step

    def exact(workload: Workload, z: Tensor) -> Tensor:
        return solution(z.double(), workload.n, workload.layers)

    return Provider(name, True, supports, build, solution=exact)


def _built(backend: str, *devices: str) -> Supports:
    """Where a backend is built, and on which kinds of device it runs."""

    def supports(workload: Workload, device: torch.device) -> Support:
        if device.type not in devices:
            return Support(False, f"backend {backend} runs on {' and '.join(devices)}, not on {device.type}")
        info = build_info().backends[backend]
        return Support(info.available, "" if info.available else info.reason)

    return supports


def _ours(backend: str, supports: Supports) -> Provider:
    def build(workload: Workload, parameters: Parameters) -> Step:
        given: dict[str, Any] = {**parameters.named, "context": workload.n, "backend": backend}

        def evaluate(z: Tensor, target: Tensor | None) -> Tensor:
            return memformer_predict(z, **given) if target is None else memformer_loss(z, target, **given)

        return _step(evaluate, workload, parameters)

    return Provider(f"memformer_kernels ({backend})", False, supports, build)


def _jax(form: str, fits: Supports) -> Provider:
    def supports(workload: Workload, device: torch.device) -> Support:
        if importlib.util.find_spec("jax") is None:
            return Support(False, NO_JAX)
        support = fits(workload, device)
        missing = _jax_misses(device) if support else ""
        return Support(False, missing) if missing else support

    def build(workload: Workload, parameters: Parameters) -> Step:
        from benchmarks.peers import jax_formulations

        return jax_formulations.build(form, workload, parameters)

    def outcome(found: Any) -> Outcome:
        loss, (q, gamma) = found
        return Outcome(from_dlpack(loss), {"q": from_dlpack(q), "gamma": from_dlpack(gamma)})

    return Provider(f"{form}, JAX jit", True, supports, build, outcome)


def _jax_misses(device: torch.device) -> str:
    """Why an installed JAX cannot run on a device, empty if it can."""
    # Not imported before it is asked for: XLA starts threads.
    try:
        from benchmarks.peers import jax_formulations
    except ImportError as error:
        return f"jax is installed and cannot be imported: {error}"
    return jax_formulations.missing(device.type)


def _flash_linear_attention() -> Provider:
    """Gram space with the context's Gram matrix by flash-linear-attention (fla-org/flash-linear-attention).

    It has causal linear attention only, which no layer of a Memformer is: all tokens attend to the whole context. What
    it shares is the state: `chunk_linear_attn` with the context as queries, keys and values ends in sum_i z_i z_i^T.
    Its causal outputs, of the tokens' own size, are made on the way and dropped. The layers are those of "Gram, eager".
    """

    def supports(workload: Workload, device: torch.device) -> Support:
        if importlib.util.find_spec("fla") is None:
            return Support(False, NO_FLA)
        if device.type != "cuda":
            return Support(False, f"flash-linear-attention runs on cuda, not on {device.type}")
        return _trained(_gram_space, workload, device)

    def build(workload: Workload, parameters: Parameters) -> Step:
        from fla.ops.linear_attn import chunk_linear_attn

        def loss(z: Tensor, target: Tensor | None, q: Tensor, gamma: Tensor, n: int) -> Tensor:
            width = z.shape[2]
            # Its kernels work on tiles of 16 columns and more.
            rows = pad(z[:, :n], (0, -width % 16))[:, :, None]
            _, state = chunk_linear_attn(rows, rows, rows, scale=1.0, output_final_state=True, normalize=False)
            return formulations.from_gram(state[:, 0, :width, :width] / n, z, target, q, gamma, n)

        q, gamma = parameters
        return _step(lambda z, target: loss(z, target, q, gamma, workload.n), workload, parameters)

    return Provider("Gram, flash-linear-attention", True, supports, build)


OURS = (
    _ours("torch", _built("torch", "cpu", "cuda")),
    _ours("cpu", _built("cpu", "cpu")),
    _ours("triton", _built("triton", "cuda")),
    _ours("cuda", _built("cuda", "cuda")),
)

AUTOMATIC = _ours("auto", _everywhere)
"""The package as most people call it: the backend that `plan` chooses. Held against all others by `dispatch`."""

PROVIDERS: tuple[Provider, ...] = (
    *(_peer(formulation, compiled) for formulation in FORMULATIONS for compiled in (False, True)),
    _jax("Gram", partial(_trained, _gram_space)),
    _jax("re-associated", partial(_trained, _token_space)),
    _flash_linear_attention(),
    _solver("L steps of CG, torch", solvers.conjugate_gradient, solvers.krylov),
    _solver("least squares, torch.linalg", solvers.cholesky, solvers.least_squares),
    *OURS,
)


def select(words: list[str]) -> tuple[Provider, ...]:
    """The providers whose name contains any of the words (no words: all), in the registry's order.

    Raises:
        ValueError: a word that no provider's name contains.
    """
    for word in words:
        if not any(word in provider.name for provider in PROVIDERS):
            names = "; ".join(provider.name for provider in PROVIDERS)
            raise ValueError(f"provider {word!r} matches no name; the names are: {names}")
    return tuple(p for p in PROVIDERS if not words or any(word in p.name for word in words))
