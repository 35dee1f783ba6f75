"""The registry: everything that can compute a workload's loss and gradients. A new backend is one line in OURS."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.dlpack import from_dlpack

from benchmarks import formulations
from benchmarks.data import Batch, Parameters
from benchmarks.workloads import Workload
from memformer_kernels import build_info, memformer_loss

# What one provider may take for intermediates, so that a whole run fits a machine with 24 GB.
MEMORY_LIMIT = 12e9

NO_JAX = "jax is not installed"
NO_FLA = "flash-linear-attention is not installed"


class Outcome(NamedTuple):
    """One forward and backward pass: the scalar loss and its gradients by parameter name."""

    loss: Tensor
    gradients: dict[str, Tensor]


class Support(NamedTuple):
    """Whether a provider computes a workload on a device; if not, why."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


# One forward and backward pass, awaited. What it returns is a provider's own; `Provider.outcome` reads it.
Step = Callable[[Batch], Any]
# The values torch.compile takes in `options`.
CompileOption = str | int | bool | Callable[..., Any]
Supports = Callable[[Workload, torch.device], Support]


def _as_returned(found: Outcome) -> Outcome:
    return found


@dataclass(frozen=True)
class Provider:
    """One way to compute a workload.

    name      unique, as the table shows it
    peer      True for what memformer_kernels is compared with
    supports  (workload, device) -> Support
    build     (workload, parameters) -> a function of a batch that runs one forward and backward pass; called once per
              workload, outside the timing
    outcome   what such a function returned, as an Outcome; outside the timing
    """

    name: str
    peer: bool
    supports: Supports
    build: Callable[[Workload, Parameters], Step]
    outcome: Callable[[Any], Outcome] = _as_returned


@dataclass(frozen=True)
class Formulation:
    """A peer's loss, where it applies, and the compiler options that serve it best."""

    name: str
    loss: formulations.Loss
    supports: Supports
    compile_options: Mapping[str, CompileOption] = field(default_factory=dict)


def _everywhere(workload: Workload, device: torch.device) -> Support:
    return Support(True)


def _n_by_n(workload: Workload, device: torch.device) -> Support:
    # Kept for the backward pass: per layer the masked attention matrix and three (N, D) tensors; on top, while it runs,
    # the matrix before masking and the gradients of both.
    square, rows = workload.tokens**2, workload.tokens * workload.width
    numbers = workload.layers * (workload.heads * square + 3 * rows) + 3 * square
    needed = workload.batch * numbers * workload.torch_dtype.itemsize
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


FORMULATIONS = (
    Formulation("published n-by-n", formulations.published, _n_by_n),
    Formulation("re-associated", formulations.reassociated, _everywhere),
    Formulation("Gram", formulations.gram, _gram_space),
    Formulation("batch-last Gram", formulations.batch_last_gram, _gram_space),
    # With explicit vectors Inductor splits this form's short token sums over threads, task block by task block, which
    # is 5 times slower than leaving the vectorising to the C++ compiler.
    Formulation("batch-last tokens", formulations.batch_last_tokens, _token_space, {"cpp.simdlen": 1}),
)


def _step(loss: formulations.Loss, workload: Workload, parameters: Parameters) -> Step:
    def step(batch: Batch) -> Outcome:
        value = loss(batch.z, batch.target, parameters.q, parameters.gamma, workload.n)
        q, gamma = torch.autograd.grad(value, parameters)
        return Outcome(value.detach(), {"q": q, "gamma": gamma})

    return step


def _eager(formulation: Formulation) -> Provider:
    def build(workload: Workload, parameters: Parameters) -> Step:
        return _step(formulation.loss, workload, parameters)

    return Provider(f"{formulation.name}, eager", True, formulation.supports, build)


def _compiled(formulation: Formulation) -> Provider:
    def build(workload: Workload, parameters: Parameters) -> Step:
        # Static shapes: a compiled peer gets the batch size it is timed at.
        options = dict(formulation.compile_options) or None
        loss = torch.compile(formulation.loss, fullgraph=True, dynamic=False, options=options)
        return _step(loss, workload, parameters)

    return Provider(f"{formulation.name}, compiled", True, formulation.supports, build)


def automatic() -> Provider:
    """The package as most people call it: the backend that `plan` chooses."""
    return _ours("auto", ("cpu", "cuda"))


def _ours(backend: str, devices: tuple[str, ...]) -> Provider:
    def supports(workload: Workload, device: torch.device) -> Support:
        if backend == "auto":
            return Support(True)
        if device.type not in devices:
            return Support(False, f"backend {backend} runs on {' and '.join(devices)}, not on {device.type}")
        info = build_info().backends[backend]
        return Support(info.available, "" if info.available else info.reason)

    def loss(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, n: int) -> Tensor:
        return memformer_loss(z, target, q, gamma=gamma, context=n, backend=backend)

    def build(workload: Workload, parameters: Parameters) -> Step:
        return _step(loss, workload, parameters)

    return Provider(f"memformer_kernels ({backend})", False, supports, build)


def _jax(form: str, fits: Supports) -> Provider:
    def supports(workload: Workload, device: torch.device) -> Support:
        if importlib.util.find_spec("jax") is None:
            return Support(False, NO_JAX)
        support = fits(workload, device)
        missing = _jax_misses(device) if support else ""
        return Support(False, missing) if missing else support

    def build(workload: Workload, parameters: Parameters) -> Step:
        from benchmarks import jax_formulations

        return jax_formulations.build(form, workload, parameters)

    def outcome(found: Any) -> Outcome:
        loss, (q, gamma) = found
        return Outcome(from_dlpack(loss), {"q": from_dlpack(q), "gamma": from_dlpack(gamma)})

    return Provider(f"{form}, JAX jit", True, supports, build, outcome)


def _jax_misses(device: torch.device) -> str:
    """Why an installed JAX cannot run on a device, empty if it can."""
    # Not imported before it is asked for: XLA starts threads.
    try:
        from benchmarks import jax_formulations
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
        return _gram_space(workload, device)

    def build(workload: Workload, parameters: Parameters) -> Step:
        from fla.ops.linear_attn import chunk_linear_attn

        def loss(z: Tensor, target: Tensor, q: Tensor, gamma: Tensor, n: int) -> Tensor:
            width = z.shape[2]
            # Its kernels work on tiles of 16 columns and more.
            rows = pad(z[:, :n], (0, -width % 16))[:, :, None]
            _, state = chunk_linear_attn(rows, rows, rows, scale=1.0, output_final_state=True, normalize=False)
            return formulations.from_gram(state[:, 0, :width, :width] / n, z, target, q, gamma, n)

        return _step(loss, workload, parameters)

    return Provider("Gram, flash-linear-attention", True, supports, build)


OURS = (
    _ours("torch", ("cpu", "cuda")),
    _ours("cpu", ("cpu",)),
    _ours("triton", ("cuda",)),
    _ours("cuda", ("cuda",)),
)

PROVIDERS: tuple[Provider, ...] = (
    *(make(formulation) for formulation in FORMULATIONS for make in (_eager, _compiled)),
    _jax("Gram", _gram_space),
    _jax("re-associated", _token_space),
    _flash_linear_attention(),
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
