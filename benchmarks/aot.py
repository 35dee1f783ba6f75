"""`python -m benchmarks.aot`: compiles every Triton kernel in every configuration for GPUs that need not be here.

The package's own calls are made on small CPU tensors with the launch replaced by a recorder, so that what is compiled
is what a GPU would be asked to run. One table: registers, spills, shared memory, and the instructions that multiply.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from memformer_kernels.backends import triton_calls
from memformer_kernels.backends.base import Layer, Network, Quadratics
from memformer_kernels.kernels import attention, call_network, call_solve, gram, register_update, sums
from memformer_kernels.kernels.launch import interpreted

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory a block may use, by architecture (CUDA C++ Programming Guide, compute capabilities)."""

ARCHITECTURES = tuple(SHARED_LIMIT)

SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
}
_HOLDERS = {
    "gram_kernel": gram,
    "gram_backward_kernel": gram,
    "sum_kernel": sums,
    "solve_kernel": call_solve,
    "solve_backward_kernel": call_solve,
    "network_kernel": call_network,
    "network_backward_kernel": call_network,
    "state_kernel": attention,
    "attend_kernel": attention,
    "update_kernel": register_update,
    "update_backward_kernel": register_update,
}


class Launch(NamedTuple):
    """A kernel with the arguments it would be launched with."""

    kernel: Any
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What became of one launch on one architecture. spills: instructions that move registers to local memory or back.

    tensor_core, fma: multiplying instructions in the code, not executed ones.
    """

    case: str
    kernel: str
    architecture: int
    registers: int
    spills: int
    shared: int
    tensor_core: int
    fma: int

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED_LIMIT[self.architecture]


class _Recorder:
    """Stands in for a kernel: `kernel[grid](...)` keeps the arguments and launches nothing."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(*arguments: Any, **named: Any) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            self.launches.append(Launch(self.kernel, {**dict(zip(names, arguments, strict=False)), **named}))

        return record


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    kept = {name: getattr(holder, name) for name, holder in _HOLDERS.items()}
    for name, holder in _HOLDERS.items():
        setattr(holder, name, _Recorder(kept[name], launches))
    try:
        yield launches
    finally:
        for name, holder in _HOLDERS.items():
            setattr(holder, name, kept[name])


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """What a call would launch."""
    with _recorded() as launches:
        call()
    return launches


def _source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    arguments = dict(launch.arguments)
    for place, parameter in enumerate(launch.kernel.params):
        value = arguments.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, tuple):
            signature[parameter.name] = tuple(f"*{_TYPES[one.dtype]}" for one in value)
            attributes |= {(place, index): [["tt.divisibility", 16]] for index in range(len(value))}
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i64" if abs(value) >= 2**31 else "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes), arguments


def compile_launch(case: str, launch: Launch, architecture: int) -> Compiled:
    """Compiles for an architecture, with the assembler that comes with Triton."""
    source, options = _source(launch)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assembly = _disassemble(made.asm["cubin"])
    return Compiled(
        case=case,
        kernel=launch.kernel.__name__,
        architecture=architecture,
        registers=int(max(re.findall(r"REG:(\d+)", assembly), default="0", key=int)),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        shared=made.metadata.shared,
        tensor_core=len(re.findall(r"\b(?:HMMA|DMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTCMMA)\b", assembly)),
        fma=len(re.findall(r"\b(?:FFMA2?|DFMA)\b", assembly)),
    )


def _disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _network(width: int, tokens: int, structure: str, space: str, dtype: torch.dtype, token_axis: bool) -> Network:
    side = width if structure == "dense" else width - 1
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    q = _draw(4, 1, side, side, dtype=parameter)
    p = None if structure == "response-only" else q
    gamma = _draw(4, 4, 1, tokens if token_axis else 1, width, dtype=parameter)
    return Network(_draw(2048, tokens, width, dtype=dtype), q, p, gamma, None, None, tokens - 1, space)


def _loss(network: Network) -> Callable[[], object]:
    target = _draw(network.z.shape[0], 1)
    response = network.p is None and network.algorithm == "gram"
    calls = triton_calls.ResponseCalls(network) if response else triton_calls.NetworkCalls.of_network(network)
    return lambda: calls.loss(target, 1, need_z=False)


def _layer(width: int, tokens: int, backward: bool, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    z, q = _draw(512, tokens, width, dtype=dtype), _draw(1, width, width)
    past = _draw(512, 1, tokens, width, dtype=dtype)
    calls = triton_calls.NetworkCalls.of_layer(Layer(z, q, q, [past], _draw(2, 1, 1, width), None, None, tokens - 1))
    if backward:
        return lambda: calls.layer_backward(z, past, need_z=True)
    return calls.layer


def _quadratics(width: int) -> Callable[[], object]:
    h, b, a = _draw(512, width, width), _draw(512, width), _draw(4, width, width)
    calls = triton_calls.QuadraticCalls(Quadratics(h, b, a, None, None, None))
    return lambda: (calls.solve(layers=False), calls.backward(b[None]))


def _attention(width: int, form: str, dtype: torch.dtype, weighed: bool, packed: bool = False) -> Callable[[], object]:
    tokens = _draw(2, 4096, 4, width, dtype=dtype)
    weights = _draw(2, 4096, dtype=DOUBLE if dtype == DOUBLE else SINGLE)
    bounds = torch.tensor([0, 1000, 4096]) if packed else None
    keys = weights if weighed else None
    return lambda: attention.attend(tokens, tokens, tokens, weights, keys, bounds, form)


def _update(registers: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], object]:
    z, gamma = _draw(*shape, dtype=dtype), _draw(registers, shape[1])
    past = [z] * registers
    return lambda: (register_update.update(z, past, gamma), register_update.update_backward(z, past, gamma))


Case = Callable[[], Callable[[], object]]
"""Makes a call's arguments; what it returns makes the call."""


def _fused_loss(
    width: int, tokens: int, structure: str, space: str, dtype: torch.dtype = SINGLE, token_axis: bool = False
) -> Callable[[], object]:
    return _loss(_network(width, tokens, structure, space, dtype, token_axis))


def _gram(width: int, dtype: torch.dtype) -> Callable[[], object]:
    z = _draw(512, 100, width, dtype=dtype)
    return lambda: gram.gram_backward(gram.gram(z, None, 99), z, None, 99)


HOT: dict[str, Case] = {
    "loss, W": partial(_fused_loss, 6, 21, "response-only", "gram"),
    "loss, tile D=64": partial(_fused_loss, 64, 512, "response-only", "gram"),
    "loss, tile D=128": partial(_fused_loss, 128, 2048, "response-only", "gram"),
    "layer, D=64": partial(_layer, 64, 512, backward=False),
}
"""The configurations of the headline workloads: none may spill on NO_SPILLS_ON."""

NO_SPILLS_ON = 90
"""Hopper, which the figures to reach are set for; elsewhere the table says how much the assembler spills."""

WIDTHS = (3, 6, 9, 16, 64, 128)


def cases() -> dict[str, Case]:
    """Every kernel in every configuration: all block sizes, both spaces, and the dtypes at a packed and a tile size."""
    made = dict(HOT)
    for width in WIDTHS:
        for dtype in (SINGLE, HALF, DOUBLE) if width in (6, 64) else (SINGLE,):
            kind = f"D={width} {_TYPES[dtype]}"
            made[f"response-only, {kind}"] = partial(_fused_loss, width, 40, "response-only", "gram", dtype)
            made[f"block, Gram space, {kind}"] = partial(_fused_loss, width, 40, "block", "gram", dtype)
            made[f"block, tokens, {kind}"] = partial(_fused_loss, width, 40, "block", "token", dtype, True)
            made[f"Gram matrix, {kind}"] = partial(_gram, width, dtype)
        made[f"quadratics, d={width}"] = partial(_quadratics, width)
        made[f"layer, D={width} bf16"] = partial(_layer, width, 100, backward=False, dtype=HALF)
        made[f"layer backward, D={width}"] = partial(_layer, width, 100, backward=True)
    for width in (16, 64, 128, 256):
        for dtype in (SINGLE, HALF, DOUBLE) if width == 64 else (SINGLE, HALF):
            kind = f"E={width} {_TYPES[dtype]}"
            made[f"attention, full, {kind}"] = partial(_attention, width, "full", dtype, weighed=False)
            made[f"attention, causal, {kind}"] = partial(_attention, width, "causal", dtype, weighed=False)
            made[f"attention, anticausal, {kind}"] = partial(_attention, width, "anticausal", dtype, weighed=True)
    made["attention, packed"] = partial(_attention, 64, "full", SINGLE, weighed=True, packed=True)
    made["attention, causal packed"] = partial(_attention, 64, "causal", SINGLE, weighed=True, packed=True)
    made["register update, per feature"] = partial(_update, 4, (4096, 512, 1), SINGLE)
    made["register update, per token"] = partial(_update, 4, (2, 512, 512), HALF)
    return made


def compile_all(names: list[str], architectures: tuple[int, ...]) -> Iterator[Compiled]:
    """Every kernel of the named cases on every architecture, each once."""
    known = cases()
    for name in names or list(known):
        for launch in launches_of(known[name]()):
            for architecture in architectures:
                yield compile_launch(name, launch, architecture)


def main(
    only: Annotated[list[str] | None, typer.Argument(help="cases whose name contains any of these; none: all")] = None,
    architecture: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; none: all")] = None,
) -> None:
    """Print the table; exit status 1 where a kernel does not fit or a hot one spills on sm_90."""
    if interpreted():
        raise typer.BadParameter("nothing is compiled with TRITON_INTERPRET=1: unset it")
    names = [name for name in cases() if not only or any(word in name for word in only)]
    if not names:
        raise typer.BadParameter(f"no case's name contains {' or '.join(map(repr, only or []))}")
    table = Table("case", "kernel", "sm", "registers", "spills", "shared", "tensor core", "FMA")
    broken = False
    console = Console(width=110)
    for made in compile_all(names, tuple(architecture or ARCHITECTURES)):
        broken |= not made.fits or (made.case in HOT and made.architecture == NO_SPILLS_ON and made.spills > 0)
        figures = (made.architecture, made.registers, made.spills, made.shared, made.tensor_core, made.fma)
        table.add_row(made.case, made.kernel, *map(str, figures))
    console.print(table)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
