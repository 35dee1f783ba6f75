"""Compiles what random calls of every public function launch, to PTX, for a GPU that need not be here.

`python -m tests.memformer_kernels.backends.triton.compile_calls ARCHITECTURE SEED CALLS narrow|all`, in a process that
does not interpret kernels; narrow: at most 15 features, which compile soonest. The calls are the public ones with
backend="triton" and their gradients, on tensors of the CPU; each launch compiles its kernel through Triton's own
just-in-time path, as `warmup` does, and runs nothing. Printed, with exit status 1: the calls whose kernels do not
compile, do not fit in shared memory, make an offset of a stride in 32 bits, or fuse a product into another lane's sum.
"""

import random
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import (
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
)
from memformer_kernels.backends.triton import launch
from memformer_kernels.torch_ops import ops
from tests.memformer_kernels.cases import GRANULARITIES, RULES, STRUCTURES, make_case
from virtual_gpu import Device
from virtual_gpu.triton import driver_of

SIZES = {
    "batch",
    "beta_size",
    "blocks",
    "chunk_tasks",
    "column_blocks",
    "columns",
    "context",
    "count",
    "depth",
    "gamma_size",
    "heads",
    "kept",
    "lanes",
    "layers",
    "middle",
    "others",
    "outputs",
    "partial_size",
    "predicted",
    "queries",
    "room",
    "row_blocks",
    "rows",
    "scratch_size",
    "size",
    "split_tokens",
    "splits",
    "together",
    "tokens",
    "width",
}
"""Numbers that kernels are given and that are no strides: all others are used in 64 bits alone."""


def narrow_strides(ttir: str) -> list[str]:
    """The integers among a kernel's arguments that are no sizes and are used as they are, not widened to 64 bits."""
    head = next(line for line in ttir.splitlines() if "tt.func public" in line)
    found = []
    for name in re.findall(r"%(\w+): i32\b", head):
        uses = [line for line in ttir.splitlines() if re.search(rf"%{name}\b", line) and line != head]
        # The second number of a tuple, and those after it, have the tuple's name and a count.
        if re.sub(r"_\d+$", "", name) not in SIZES and any(
            f"arith.extsi %{name} : i32 to i64" not in line for line in uses
        ):
            found.append(name)
    return found


def fused_exchanges(ptx: str) -> list[str]:
    """The instructions that add a lane's own product, not rounded, to what came from another lane.

    The other lane does the same the other way round, and the two hold sums whose last bits differ.
    """
    received: set[str] = set()
    found = []
    for line in ptx.splitlines():
        registers = re.findall(r"%\w+", line)
        if "shfl.sync" in line:
            received.add(registers[0].split("|")[0])
        elif re.search(r"\bmov\.\w+", line) and received.intersection(registers[1:]):
            received.add(registers[0])
        elif "fma.rn" in line and line.rstrip(" ;").split(", ")[-1] in received:
            found.append(line.strip())
        else:
            received.difference_update(registers[:1])
    return found


def compiled(call: Callable[[], object], device: Device) -> list[str]:
    """Compiles what a call launches; what is wrong with the kernels, a line each."""
    faults: list[str] = []

    def compile_one(kernel: Any, _: int, arguments: dict[str, Any]) -> None:
        made = kernel.warmup(grid=(1,), **arguments)
        if ".entry" not in made.asm["ptx"]:
            faults.append(f"{kernel.__name__}: no PTX")
        faults.extend(f"{kernel.__name__}: {line}" for line in fused_exchanges(made.asm["ptx"]))
        faults.extend(f"{kernel.__name__}: {name} makes 32-bit offsets" for name in narrow_strides(made.asm["ttir"]))
        if made.metadata.shared > device.shared_of_block:
            faults.append(f"{kernel.__name__}: {made.metadata.shared} bytes of shared memory")

    try:
        with launch.observed(compile_one):
            call()
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    return faults


def _moved(draw: random.Random, tensor: Tensor) -> Tensor:
    """The same numbers, sometimes with other strides or at an address that is a multiple of nothing."""
    kind = draw.choice(("contiguous", "contiguous", "turned", "cut"))
    if kind == "turned":
        order = list(range(tensor.ndim))
        draw.shuffle(order)
        back = [order.index(axis) for axis in range(tensor.ndim)]
        return tensor.permute(order).contiguous().permute(back)
    if kind == "cut":
        room = tensor.new_zeros([size + 1 for size in tensor.shape])
        view = room[tuple(slice(1, None) for _ in tensor.shape)]
        return view.copy_(tensor)
    return tensor


def _backward(draw: random.Random, results: Tensor | tuple[Tensor, ...], leaves: list[Tensor]) -> None:
    """Gradients of some of the leaves."""
    outputs = results if isinstance(results, tuple) else (results,)
    asked = [leaf for leaf in leaves if draw.random() < 0.7] or leaves
    torch.autograd.grad(outputs, asked, [torch.ones_like(x) for x in outputs], allow_unused=True)


def _leaf(draw: random.Random, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return _moved(draw, tensor.detach().to(dtype)).detach().requires_grad_()


def _dtypes(draw: random.Random) -> tuple[torch.dtype, torch.dtype]:
    """Of tokens and of parameters."""
    tokens = draw.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    half = tokens in (torch.bfloat16, torch.float16)
    return tokens, draw.choice((torch.float32, tokens)) if half else tokens


def _context(draw: random.Random, tasks: int, tokens: int, queries: int) -> int | Tensor:
    most = max(tokens - queries, 1)
    if draw.random() < 0.3:
        return torch.randint(1, most + 1, (tasks,), dtype=draw.choice((torch.int64, torch.int32)))
    return draw.randint(1, most)


def _network(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    rule, structure = draw.choice(RULES), draw.choice(tuple(STRUCTURES))
    granularity, width = draw.choice(GRANULARITIES), draw.choice(widths)
    structure = structure if width > 1 else "dense"  # a response slot alone has no block of features
    tokens = draw.choice((1, 2, 7, 16, 21, 40) if granularity in ("token", "full") else (2, 7, 21, 40, 600))
    tasks, layers, heads = draw.choice((1, 3, 300)), draw.randint(1, 3), draw.randint(1, 2)
    case = make_case(
        rule=rule,
        granularity=granularity,
        structure=structure,
        tasks=tasks,
        tokens=tokens,
        width=width,
        layers=layers,
        heads=heads,
    )
    dtype, parameter_dtype = _dtypes(draw)
    z = _leaf(draw, case.z, dtype)
    parameters = [None if x is None else _leaf(draw, x, parameter_dtype) for x in (case.q, *case.parameters)]
    leaves = [z, *(x for x in parameters if x is not None)]
    queries = draw.randint(1, max(1, min(tokens - 1, 9)))
    options: dict[str, Any] = {
        "context": _context(draw, tasks, tokens, queries),
        "algorithm": "token" if case.token_axis else draw.choice(("gram", "token")),
        "backend": "triton",
    }
    kind = draw.choice(("stack", "predict", "layers", "loss")) if tokens > 1 else "stack"

    def call() -> None:
        if kind == "stack":
            results = memformer_stack(z, *parameters, **options)  # type: ignore[arg-type]
        elif kind == "loss":
            target = torch.zeros(tasks, queries, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
            results = memformer_loss(z, target, *parameters, queries=queries, **options)  # type: ignore[arg-type]
        else:
            results = memformer_predict(z, *parameters, queries=queries, layers=kind == "layers", **options)  # type: ignore[arg-type]
        _backward(draw, results, leaves)

    return call


def _layer(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    tasks, tokens, width = draw.choice((1, 3)), draw.choice((1, 7, 21, 40)), draw.choice(widths)
    heads, earlier = draw.randint(1, 2), draw.randint(0, 3)
    dtype, parameter_dtype = _dtypes(draw)

    def axes(*leading: int) -> Tensor:
        shape = (*leading, draw.choice((1, heads)), draw.choice((1, tokens)), draw.choice((1, width)))
        return _leaf(draw, torch.ones(shape), parameter_dtype)

    gamma = axes(earlier + 1) if draw.random() < 0.7 else None
    beta = axes() if earlier and draw.random() < 0.6 else None
    kept = heads if any(x is not None and x.shape[-3] > 1 for x in (gamma, beta)) else 1
    side = width if width == 1 or draw.random() < 0.5 else width - 1
    p_side = width if width == 1 or draw.random() < 0.5 else width - 1
    z = _leaf(draw, torch.ones(tasks, tokens, width), dtype)
    q = _leaf(draw, torch.ones(heads, side, side), parameter_dtype)
    p = _leaf(draw, torch.ones(heads, p_side, p_side), parameter_dtype) if draw.random() < 0.7 else None
    registers = [_leaf(draw, torch.ones(tasks, kept, tokens, width), dtype) for _ in range(earlier)]
    context = _context(draw, tasks, tokens, 0)
    leaves = [x for x in (z, q, p, *registers, gamma, beta) if x is not None]

    def call() -> None:
        results = memformer_layer(z, q, p, registers, gamma, beta, context=context, backend="triton")
        _backward(draw, results, leaves)

    return call


def _gram(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    tasks, tokens = draw.choice((1, 3, 300)), draw.choice((1, 7, 40, 600))
    z = _leaf(draw, torch.ones(tasks, tokens, draw.choice(widths)), _dtypes(draw)[0])
    context = _context(draw, tasks, tokens, 0)
    ragged = isinstance(context, Tensor)
    # `context_gram` has no argument for the backend, which is chosen by device: this is what it calls.
    return lambda: _backward(
        draw, ops.context_gram(z, context if ragged else None, tokens if ragged else context, "triton"), [z]
    )


def _quadratics(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    tasks, width, layers = draw.choice((1, 3, 70)), draw.choice(widths), draw.randint(1, 3)
    dtype = draw.choice((torch.float32, torch.float64))
    shapes = (tasks, width, width), (tasks, width), (layers, width, width)
    h, b, a = (_leaf(draw, torch.ones(shape), dtype) for shape in shapes)
    gamma = _leaf(draw, torch.ones(layers, layers, draw.choice((1, width))), dtype) if draw.random() < 0.6 else None
    beta = _leaf(draw, torch.ones(layers, draw.choice((1, width))), dtype) if draw.random() < 0.6 else None
    w0 = _leaf(draw, torch.ones(tasks, width), dtype) if draw.random() < 0.5 else None
    leaves = [x for x in (h, b, a, gamma, beta, w0) if x is not None]
    every = draw.random() < 0.5
    return lambda: _backward(draw, lfom_solve(h, b, a, gamma, beta, w0=w0, layers=every, backend="triton"), leaves)


def _attention(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    batch, tokens, heads = draw.choice((1, 2)), draw.choice((1, 40, 70, 700)), draw.choice((1, 2))
    dtype = _dtypes(draw)[0]
    width, value_width = draw.choice(widths), draw.choice(widths)
    shapes = [(batch, tokens, heads, size) for size in (width, width, value_width)]
    leaves = [_leaf(draw, torch.ones(shape), dtype) for shape in shapes]
    options: dict[str, Any] = {"causal": draw.random() < 0.5}
    kind = draw.choice(("mask", "packed", "context", "nothing"))
    if kind == "mask":
        options["mask"] = _moved(draw, torch.ones(batch, tokens, dtype=torch.bool))
    elif kind == "packed":
        options["cu_seqlens"] = torch.tensor([0, tokens // 2, tokens], dtype=draw.choice((torch.int32, torch.int64)))
    elif kind == "context" and not options["causal"]:
        options["context"] = _context(draw, batch, tokens, 0)
    return lambda: _backward(draw, linear_attention(*leaves, backend="triton", **options), leaves)


def _update(draw: random.Random, widths: tuple[int, ...]) -> Callable[[], object]:
    shape = draw.choice(((9000,), (300, 70), (3, 7, 33), (150, 4, 40), (2, 5, 1), (1, 1)))
    count, (dtype, gamma_dtype) = draw.randint(1, 4), _dtypes(draw)
    kept = draw.randint(0, len(shape))
    gamma_shape = (count, *(draw.choice((1, size)) for size in shape[kept:]))
    gamma = _leaf(draw, torch.ones(gamma_shape), gamma_dtype)
    z, *registers = (_leaf(draw, torch.ones(shape), dtype) for _ in range(count + 1))
    return lambda: _backward(draw, register_update(z, registers, gamma, backend="triton"), [z, *registers, gamma])


KINDS = (_network, _network, _network, _layer, _layer, _gram, _quadratics, _attention, _attention, _update)

NARROW = (1, 2, 3, 6, 8, 9, 15)
WIDTHS = (*NARROW, 16, 17, 33, 65, 130)


def random_call(seed: int, widths: tuple[int, ...] = WIDTHS) -> tuple[str, Callable[[], object]]:
    """A call's description and the call, which computes its gradients too: ten in a row are of every kind."""
    kind = KINDS[seed % len(KINDS)]
    return f"{kind.__name__[1:]} {seed}", kind(random.Random(seed), widths)


def main(architecture: int, first: int, calls: int, widths: tuple[int, ...]) -> int:
    """How many calls are at fault."""
    torch.manual_seed(0)
    bad = 0
    with driver_of(Device(capability=architecture)) as driver:
        for seed in range(first, first + calls):
            name, call = random_call(seed, widths)
            faults = compiled(call, driver.device)
            bad += bool(faults)
            for fault in faults:
                print(f"{name}: {fault}", flush=True)
    print(f"{calls - bad} of {calls} calls compile for sm_{architecture}")
    return bad


if __name__ == "__main__":
    architecture, first, calls = map(int, sys.argv[1:4])
    sys.exit(bool(main(architecture, first, calls, WIDTHS if sys.argv[4] == "all" else NARROW)))
