"""The layer for other people's models: attention against its peers over sequence length, and the register update
against the copy bandwidth. Forward and backward to every argument, each behind a correctness gate.

Peers of attention: softmax attention as PyTorch fuses it (another function, of quadratic time), torch.compile of the
same sum in chunks, and flash-linear-attention's nearest operation where it is installed and a GPU is at hand. What is
timed is divided into cases, so that a run can be stopped and go on.
"""

import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure.clock import milliseconds, peak_bytes
from memformer_kernels import linear_attention, reference, register_update
from memformer_kernels.backends import BACKENDS
from memformer_kernels.calls.plan import plan_update
from memformer_kernels.calls.register_update import check_update
from memformer_kernels.testing import relative_error

HEADS = 4
WIDTHS = (64, 32)
LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536)
QUICK_LENGTHS = (64, 256)
LONGEST_QUADRATIC = 16_384
"""Beyond it softmax attention takes minutes on a CPU."""
SLOW_MS, SLOW_ROUNDS = 500.0, 3
"""Providers slower than this have fewer rounds."""
GATE_LENGTH, GATE_ERROR = 300, 1e-4
REGISTERS = (1, 4, 8)
CHUNK = 64

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class AttentionCase:
    """One sample of `tokens` tokens, HEADS heads that are `width` wide."""

    width: int
    causal: bool
    tokens: int


@dataclass(frozen=True)
class UpdateCase:
    """Tokens 512 wide with J registers and one coefficient per feature or per token, on so many threads."""

    threads: int
    granularity: str
    registers: int


@dataclass(frozen=True)
class AttentionTiming:
    """One provider. ms: median of a forward and backward. peak_mb: its peak memory without the arguments, or None."""

    case: AttentionCase
    provider: str
    ms: float
    peak_mb: float | None


@dataclass(frozen=True)
class UpdateTiming:
    """One pass, "forward" or "backward". of_copy: its rate over that of a copy which took turns with it.

    Rates are of bytes that must move: 2 numbers an entry for the copy, J + 2 forward (J + 1 read, 1 written), 2 J + 1
    backward (J + 1 read, J written; gamma and its gradient are next to nothing). Whether a write reads its line first
    is counted for neither. Results are written to memory that is there already.
    """

    case: UpdateCase
    name: str
    ms: float
    of_copy: float


def attention_cases(quick: bool) -> list[AttentionCase]:
    lengths = QUICK_LENGTHS if quick else LENGTHS
    return [AttentionCase(width, causal, n) for width in WIDTHS for causal in (False, True) for n in lengths]


def update_cases(device: torch.device) -> list[UpdateCase]:
    several = torch.get_num_threads() if device.type == "cpu" else 1
    threads = sorted({1, several}, reverse=True)
    return [UpdateCase(t, granularity, j) for t in threads for granularity in ("feature", "token") for j in REGISTERS]


def _softmax(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    heads_first = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)


def chunked(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The same sum in chunks as one writes it in PyTorch; what torch.compile is given. N is a multiple of CHUNK."""
    batch, tokens, heads, width = q.shape
    if not causal:
        return torch.einsum("bnhe,bhef->bnhf", q, torch.einsum("bnhe,bnhf->bhef", k, v)) / tokens
    queries, keys, values = (x.transpose(1, 2).reshape(batch, heads, -1, CHUNK, width) for x in (q, k, v))
    states = (keys.mT @ values).cumsum(2)
    before = F.pad(states[:, :, :-1], (0, 0, 0, 0, 1, 0))
    out = (queries @ keys.mT).tril() @ values + queries @ before
    counts = torch.arange(1, tokens + 1, device=q.device, dtype=q.dtype)
    return out.reshape(batch, heads, tokens, width).transpose(1, 2) / counts[:, None, None]


def providers(device: torch.device) -> dict[str, Attend]:
    """Attention by name; the first is ours."""
    compiled = torch.compile(chunked, fullgraph=True, dynamic=False)
    made: dict[str, Attend] = {
        "memformer_kernels": lambda q, k, v, causal: linear_attention(q, k, v, causal=causal),
        "the same, torch.compile": lambda q, k, v, causal: compiled(q, k, v, causal),
        "scaled_dot_product_attention": _softmax,
    }
    if device.type == "cuda" and importlib.util.find_spec("fla"):
        flash = importlib.import_module("fla.ops.linear_attn")

        def flash_linear(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            out: Tensor = flash.chunk_linear_attn(q, k, v, scale=1.0, normalize=False)[0]
            return out / torch.arange(1, q.shape[1] + 1, device=q.device, dtype=torch.int64)[:, None, None]

        made["flash-linear-attention, causal"] = flash_linear
    return made


def _draw(tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(1, tokens, HEADS, width, generator=generator, device=generator.device, dtype=torch.float32)
        .to(device, dtype)
        .requires_grad_()
        for _ in range(3)
    ]


def check(attend: Attend, device: torch.device, dtype: torch.dtype) -> None:
    """Raises RuntimeError where ours and the n-by-n form in float64 differ, forward or in a gradient."""
    for causal in (False, True):
        leaves = _draw(GATE_LENGTH, WIDTHS[0], device, dtype)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        q, k, v = leaves
        made, exact = attend(q, k, v, causal), reference.linear_attention(*wide, causal=causal)
        grads = torch.autograd.grad(made.square().sum(), leaves)
        values = torch.autograd.grad(exact.square().sum(), wide)
        allowed = GATE_ERROR if dtype == torch.float32 else 0.02
        for ours, value in zip((made.detach(), *grads), (exact.detach(), *values), strict=True):
            if not relative_error(ours, value) <= allowed:
                raise RuntimeError(f"attention is wrong on {device}: relative error {relative_error(ours, value):.2g}")


def time_attention(
    case: AttentionCase, device: torch.device, rounds: int, dtype: torch.dtype = torch.float32
) -> list[AttentionTiming]:
    """Every provider, in rounds that take turns."""
    torch.compiler.reset()  # a compiled peer gets the length it is timed at
    leaves = _draw(case.tokens, case.width, device, dtype)
    grad = torch.ones_like(leaves[0])
    steps: dict[str, Callable[[], object]] = {}
    for name, attend in providers(device).items():
        quadratic = name == "scaled_dot_product_attention" and case.tokens > LONGEST_QUADRATIC
        if not (quadratic and device.type == "cpu") and (case.causal or "causal" not in name):
            steps[name] = _step(attend, leaves, grad, case.causal)
            steps[name]()
    own_rounds = {
        name: rounds if milliseconds(step, device) < SLOW_MS else min(rounds, SLOW_ROUNDS)
        for name, step in steps.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name, step in steps.items():
            if turn < own_rounds[name]:
                spent[name].append(milliseconds(step, device))
    timings = []
    for name, step in steps.items():
        peak = peak_bytes(step, device)
        megabytes = None if peak is None else peak / 2**20
        timings.append(AttentionTiming(case, name, statistics.median(spent[name]), megabytes))
    return timings


def _step(attend: Attend, leaves: Sequence[Tensor], grad: Tensor, causal: bool) -> Callable[[], object]:
    q, k, v = leaves
    return lambda: torch.autograd.grad(attend(q, k, v, causal), leaves, grad)


def time_update(case: UpdateCase, device: torch.device, rounds: int, entries: int) -> list[UpdateTiming]:
    """Both passes, with a copy in every round."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        source = torch.ones(entries, device=device, dtype=torch.float32)
        target = torch.empty_like(source).copy_(source)
        passes = {"copy": lambda: target.copy_(source), **_passes(case, device, entries)}
        spent: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(rounds):
            for name, run in passes.items():
                spent[name].append(milliseconds(run, device))
    finally:
        torch.set_num_threads(before)
    copy = min(spent.pop("copy")) / 2
    numbers = {"forward": case.registers + 2, "backward": 2 * case.registers + 1}
    return [
        UpdateTiming(case, name, statistics.median(samples), copy * numbers[name] / min(samples))
        for name, samples in spent.items()
    ]


def _passes(case: UpdateCase, device: torch.device, entries: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of the backend that a call would take, gated."""
    count = case.registers
    z = torch.randn(entries // 512, 512, device=device, dtype=torch.float32)
    registers = [torch.randn_like(z) for _ in range(count)]
    gamma = torch.randn(
        (count, 512) if case.granularity == "feature" else (count, len(z), 1), device=device, dtype=torch.float32
    )
    exact = reference.register_update(z, registers, gamma)
    if not relative_error(register_update(z, registers, gamma), exact) <= 1e-6:
        raise RuntimeError(f"the register update is wrong on {device}")
    call = check_update(z, registers, gamma)
    name = plan_update(z.dtype, device.type, "auto").backend
    if name == "cpu":
        # The native kernels write where they are told: no page of a result is touched for the first time here.
        native = torch.ops.memformer_native
        result, grads, total = (
            torch.zeros_like(call.z),
            [torch.zeros_like(call.z) for _ in registers],
            call.gamma.clone(),
        )
        return {
            "forward": lambda: native.register_update(call.z, call.registers, call.gamma, result),
            "backward": lambda: native.register_update_backward(
                call.z, call.registers, call.gamma, grads, [True] * count, total
            ),
        }
    backend = BACKENDS[name]
    return {
        "forward": lambda: backend.register_update(*call),
        "backward": lambda: backend.register_update_backward(*call, [True] * (count + 1)),
    }
