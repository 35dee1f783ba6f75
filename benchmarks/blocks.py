"""The layer for other people's models: attention against its peers over sequence length, and the register update
against the copy bandwidth. Forward and backward to every argument, each behind a correctness gate.

Peers of attention: softmax attention as PyTorch fuses it (another function, of quadratic time), torch.compile of the
same sum in chunks, and flash-linear-attention's nearest operation where it is installed and a GPU is at hand.
"""

import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.clock import milliseconds, peak_bytes
from benchmarks.record import Machine
from memformer_kernels import linear_attention, reference_blocks, register_update
from memformer_kernels.backends import BLOCKS
from memformer_kernels.plan import plan_update
from memformer_kernels.problem_blocks import check_update
from memformer_kernels.testing import relative_error

FORMAT = 1
HEADS, WIDTH = 4, 64
LENGTHS = (256, 1024, 4096, 16_384, 65_536)
QUICK_LENGTHS = (256, 1024)
LONGEST_QUADRATIC = 16_384
"""Beyond it softmax attention takes minutes on a CPU."""
GATE_LENGTH, GATE_ERROR = 300, 1e-4
REGISTERS = (1, 4, 8)
CHUNK = 64

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class AttentionTiming:
    """One provider at one length. ms: median of a forward and backward. peak_mb: memory at its peak, or None."""

    provider: str
    causal: bool
    tokens: int
    ms: float
    peak_mb: float | None


@dataclass(frozen=True)
class UpdateTiming:
    """One pass of the register update. of_copy: its bytes over its time, over the bandwidth of a copy in its rounds.

    The native kernels' results are written to memory that is there already, as the copy's is.
    """

    pass_: str
    granularity: str
    registers: int
    ms: float
    of_copy: float


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
            return out / torch.arange(1, q.shape[1] + 1, device=q.device)[:, None, None]

        made["flash-linear-attention, causal"] = flash_linear
    return made


def _draw(tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(1, tokens, HEADS, WIDTH, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)
    ]


def check(attend: Attend, device: torch.device, dtype: torch.dtype) -> None:
    """Raises RuntimeError where ours and the n-by-n form in float64 differ, forward or in a gradient."""
    for causal in (False, True):
        leaves = _draw(GATE_LENGTH, device, dtype)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        q, k, v = leaves
        made, exact = attend(q, k, v, causal), reference_blocks.linear_attention(*wide, causal=causal)
        grads = torch.autograd.grad(made.square().sum(), leaves)
        values = torch.autograd.grad(exact.square().sum(), wide)
        allowed = GATE_ERROR if dtype == torch.float32 else 0.02
        for ours, value in zip((made.detach(), *grads), (exact.detach(), *values), strict=True):
            if not relative_error(ours, value) <= allowed:
                raise RuntimeError(f"attention is wrong on {device}: relative error {relative_error(ours, value):.2g}")


def time_attention(
    device: torch.device, lengths: Sequence[int], rounds: int, dtype: torch.dtype = torch.float32
) -> list[AttentionTiming]:
    """Every provider at every length, in rounds that take turns."""
    attends = providers(device)
    check(attends["memformer_kernels"], device, dtype)
    timings = []
    for causal in (False, True):
        for tokens in lengths:
            torch.compiler.reset()  # a compiled peer gets the length it is timed at
            leaves = _draw(tokens, device, dtype)
            grad = torch.ones_like(leaves[0])
            steps: dict[str, Callable[[], object]] = {}
            for name, attend in attends.items():
                quadratic = name == "scaled_dot_product_attention" and tokens > LONGEST_QUADRATIC
                if (quadratic and device.type == "cpu") or ("causal" in name and not causal):
                    continue
                steps[name] = _step(attend, leaves, grad, causal)
            for step in steps.values():
                step()
            spent: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    spent[name].append(milliseconds(step, device))
            for name, step in steps.items():
                peak = peak_bytes(step, device)
                megabytes = None if peak is None else peak / 2**20
                timings.append(AttentionTiming(name, causal, tokens, statistics.median(spent[name]), megabytes))
    return timings


def _step(attend: Attend, leaves: Sequence[Tensor], grad: Tensor, causal: bool) -> Callable[[], object]:
    q, k, v = leaves
    return lambda: torch.autograd.grad(attend(q, k, v, causal), leaves, grad)


def time_updates(device: torch.device, rounds: int, entries: int) -> list[UpdateTiming]:
    """The register update on tokens 512 wide, per feature and per token, with a copy in every round."""
    source = torch.ones(entries, device=device)
    target = torch.empty_like(source).copy_(source)
    timings = []
    for granularity in ("feature", "token"):
        for count in REGISTERS:
            passes = _passes(device, count, granularity, entries)
            spent: dict[str, list[float]] = {name: [] for name in ("copy", *passes)}
            for _ in range(rounds):
                spent["copy"].append(milliseconds(lambda: target.copy_(source), device))
                for name, run in passes.items():
                    spent[name].append(milliseconds(run, device))
            bandwidth = 2 * source.nbytes / min(spent.pop("copy"))
            for name, samples in spent.items():
                moved = source.nbytes * (count + 2 if name == "forward" else 2 * count + 1)
                timings.append(
                    UpdateTiming(name, granularity, count, statistics.median(samples), moved / min(samples) / bandwidth)
                )
    return timings


def _passes(device: torch.device, count: int, granularity: str, entries: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of the backend that a call would take, gated."""
    z = torch.randn(entries // 512, 512, device=device)
    registers = [torch.randn_like(z) for _ in range(count)]
    gamma = torch.randn((count, 512) if granularity == "feature" else (count, len(z), 1), device=device)
    exact = reference_blocks.register_update(z, registers, gamma)
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
    backend = BLOCKS[name]
    return {
        "forward": lambda: backend.register_update(*call),
        "backward": lambda: backend.register_update_backward(*call, [True] * (count + 1)),
    }


def as_record(
    machine: Machine, attention: Sequence[AttentionTiming], updates: Sequence[UpdateTiming]
) -> dict[str, object]:
    """What is written to JSON."""
    return {
        "format": FORMAT,
        "machine": asdict(machine),
        "heads": HEADS,
        "width": WIDTH,
        "attention": [asdict(timing) for timing in attention],
        "register_update": [asdict(timing) for timing in updates],
    }


def print_blocks(attention: Sequence[AttentionTiming], updates: Sequence[UpdateTiming], console: Console) -> None:
    """Two tables."""
    for causal in (False, True):
        lengths = sorted({timing.tokens for timing in attention})
        title = (
            f"attention, {'causal' if causal else 'full'}: forward + backward, ms (peak MB), H = {HEADS}, E = {WIDTH}"
        )
        table = Table("provider", *(f"N = {n:,}" for n in lengths), title=title, box=box.SIMPLE_HEAD)
        for name in dict.fromkeys(timing.provider for timing in attention):
            found = {t.tokens: t for t in attention if t.provider == name and t.causal == causal}
            if found:
                table.add_row(name, *(_cell(found.get(n)) for n in lengths))
        console.print(table)
    table = Table("pass", "gamma", "J", "ms", "of copy", title="register update, 512 wide", box=box.SIMPLE_HEAD)
    for t in updates:
        table.add_row(t.pass_, f"per {t.granularity}", str(t.registers), f"{t.ms:.3g}", f"{t.of_copy:.2f}")
    console.print(table)


def _cell(timing: AttentionTiming | None) -> str:
    if timing is None:
        return ""
    return f"{timing.ms:.3g}" + ("" if timing.peak_mb is None else f" ({timing.peak_mb:,.0f})")
