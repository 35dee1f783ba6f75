"""`python -m benchmarks.gpu.aot`: compiles every Triton kernel in every configuration for GPUs that need not be here.

The package's own calls are made on CPU tensors with launches observed instead of made, so that what is compiled is what
a GPU would be asked to run. One table: registers, spills, shared memory, and the instructions that multiply. Triton's
cache keeps what was compiled: a run that was stopped goes on where it was. The record is written after every case, and
names those still missing.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.aot_cases import HOT, cases
from benchmarks.measure.sources import ROOT, git_revision
from benchmarks.reports.record import write_json
from memformer_kernels.backends.triton.launch import compiling_for, interpreted, observed

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory a block may use, by architecture (CUDA C++ Programming Guide, compute capabilities)."""

ARCHITECTURES = tuple(SHARED_LIMIT)

RECORD = ROOT / "benchmarks" / "results" / "triton-aot.json"
FORMAT = 1

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
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


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """What a call would launch."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        launches.append(Launch(kernel, arguments))

    with observed(record):
        call()
    return launches


class _Signature:
    """What Triton's just-in-time path makes of arguments: their types, the constants among them, and what it assumes.

    A place in a signature is a tuple of indices, one for each tuple that an argument lies in.
    """

    def __init__(self) -> None:
        self.constants: dict[tuple[int, ...], Any] = {}
        self.assumed: dict[tuple[int, ...], list[list[Any]]] = {}

    def type_of(self, place: tuple[int, ...], value: Any, specialized: bool) -> Any:
        """The type of an argument, or of the parts of a tuple; constants and assumptions are noted."""
        if isinstance(value, tuple):
            parts = [self.type_of((*place, index), part, specialized) for index, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if value is None or (isinstance(value, int) and value == 1 and specialized):
            return self.constant(place, value)
        if isinstance(value, Tensor) or (value % 16 == 0 and specialized):
            self.assumed[place] = [["tt.divisibility", 16]]
        if isinstance(value, Tensor):
            return f"*{_TYPES[value.dtype]}"
        return "i64" if abs(value) >= 2**31 else "i32"

    def constant(self, place: tuple[int, ...], value: Any) -> str:
        """The type of what is compiled in."""
        self.constants[place] = value
        return "constexpr"


def _source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    signature = _Signature()
    types: dict[str, Any] = {}
    arguments = dict(launch.arguments)
    for place, parameter in enumerate(launch.kernel.params):
        value = arguments.pop(parameter.name)
        if parameter.is_constexpr:
            types[parameter.name] = signature.constant((place,), value)
        else:
            types[parameter.name] = signature.type_of((place,), value, not parameter.do_not_specialize)
    return ASTSource(launch.kernel, types, signature.constants, signature.assumed), arguments


def identity(launch: Launch) -> str:
    """Equal for launches that the same machine code serves."""
    source, options = _source(launch)
    return f"{source.hash()} {sorted(options.items())}"


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


def compile_case(name: str, architectures: tuple[int, ...], seen: set[tuple[str, ...]]) -> Iterator[Compiled]:
    """Every kernel that a case launches and that is not among `seen`, as each architecture would be asked to run it."""
    call = cases()[name]()
    launches: list[list[Launch]] = []
    for architecture in architectures:
        with compiling_for(architecture):
            launches.append(launches_of(call))
    for chosen in zip(*launches, strict=True):
        same = tuple(map(identity, chosen))
        if same not in seen:
            seen.add(same)
            for architecture, launch in zip(architectures, chosen, strict=True):
                yield compile_launch(name, launch, architecture)


ALLOWED = {("loss, tile D=128", 80): 2}
"""Instructions that put one register aside and take it back, by hot case and architecture."""


def is_green(made: Compiled) -> bool:
    """Whether a kernel fits, and if a headline workload runs it does not spill either, but as `ALLOWED`."""
    return made.fits and not (made.case in HOT and made.spills > ALLOWED.get((made.case, made.architecture), 0))


def as_table(kernels: list[Compiled]) -> Table:
    """A line for each kernel and case, with the figures of its architectures beside each other."""
    table = Table("case", "kernel", "sm", "registers", "spills", "shared", "tensor core", "FMA", box=box.SIMPLE_HEAD)
    lines: dict[tuple[str, str, int], list[Compiled]] = {}
    order: dict[int, int] = {}
    for made in kernels:
        # A case may launch a kernel in two configurations: the n-th of one architecture is the n-th of the others.
        place = order[made.architecture] = order.get(made.architecture, -1) + 1
        lines.setdefault((made.case, made.kernel, place), []).append(made)
    for (case, kernel, _), found in lines.items():
        figures = zip(
            *((x.architecture, x.registers, x.spills, x.shared, x.tensor_core, x.fma) for x in found), strict=True
        )
        table.add_row(case, kernel, *(" / ".join(map(str, column)) for column in figures))
    return table


def read_record(path: Path) -> list[Compiled]:
    """The kernels of a record."""
    return [Compiled(**made) for made in json.loads(path.read_text(encoding="utf-8"))["kernels"]]


def main(
    only: Annotated[list[str] | None, typer.Argument(help="cases whose name contains any of these; none: all")] = None,
    architecture: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; none: all")] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"where to write a record, {RECORD.name} for the committed one")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="print the committed record and compile nothing")] = False,
) -> None:
    """Print the table; exit status 1 where a kernel does not fit or a hot one spills more than it may."""
    console = Console(width=140)
    if show:
        console.print(as_table(read_record(RECORD)))
        return
    if interpreted():
        raise typer.BadParameter("nothing is compiled with TRITON_INTERPRET=1: unset it")
    names = [name for name in cases() if not only or any(word in name for word in only)]
    if not names:
        raise typer.BadParameter(f"no case's name contains {' or '.join(map(repr, only or []))}")
    kernels: list[Compiled] = []
    seen = set[tuple[str, ...]]()
    for place, name in enumerate(names):
        for made in compile_case(name, tuple(architecture or ARCHITECTURES), seen):
            kernels.append(made)
            console.print(f"{made.case}, {made.kernel}, sm_{made.architecture}", style="dim")
        if out is not None:
            versions = {"revision": git_revision(), "torch": torch.__version__, "triton": triton.__version__}
            found = {"missing": names[place + 1 :], "kernels": [asdict(made) for made in kernels]}
            write_json(out, {"format": FORMAT, **versions, **found})
    console.print(as_table(kernels))
    if not all(map(is_green, kernels)):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
