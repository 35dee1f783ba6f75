"""`python -m benchmarks.gpu.aot`: compiles every Triton kernel in every configuration for GPUs that need not be here.

The package's own calls are made on CPU tensors with launches observed instead of made, so that what is compiled is what
a GPU would be asked to run. One table: registers, spills, shared memory, the instructions that multiply, and what the
code does against `invariants`. Triton's cache keeps what was compiled: a run that was stopped goes on where it was. The
record is written after every case, which replaces what it had of that case, and names those still missing.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import triton
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.gpu.aot_cases import HOT, cases
from benchmarks.gpu.invariants import broken
from benchmarks.measure.sources import ROOT, of_kernels
from benchmarks.reports.record import write_json
from memformer_kernels.backends.triton.launch import compiling_for, interpreted, observed

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory a block may use, by architecture (CUDA C++ Programming Guide, compute capabilities)."""

ARCHITECTURES = tuple(SHARED_LIMIT)

RECORDED = (80, 90, 100)
"""What the committed record must have the hot cases for; of the others it has what was compiled."""

RECORD = ROOT / "benchmarks" / "results" / "triton-aot.json"
FORMAT = 2


class Launch(NamedTuple):
    """A kernel with the arguments it would be launched with."""

    kernel: Any
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What became of one launch on one architecture. spills: instructions that move registers to local memory or back.

    tensor_core, fma: multiplying instructions in the code, not executed ones. broken: what it does against
    `invariants`. triton: which release made it. sources: the digest of the backend's sources that it was made from.
    """

    case: str
    kernel: str
    architecture: int
    registers: int
    spills: int
    shared: int
    tensor_core: int
    fma: int
    broken: tuple[str, ...] = ()
    triton: str = ""
    sources: str = ""

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


class _Source(NamedTuple):
    """A kernel with the types, constants and assumptions that it is compiled for, and Triton's options."""

    source: ASTSource
    options: Any


def _source(launch: Launch, architecture: int) -> _Source:
    """What a launch on such a GPU would compile: by Triton's own binder, which looks at the arguments there too."""
    kernel, target = launch.kernel, GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, found, options = binder(**launch.arguments)
    options, *made = kernel._pack_args(backend, launch.arguments, bound, found, options)
    return _Source(ASTSource(kernel, *made), options)


def identity(launch: Launch, architecture: int) -> tuple[str, str]:
    """Equal for launches that the same machine code serves."""
    made = _source(launch, architecture)
    return made.source.hash(), made.options.hash()


def compile_launch(case: str, launch: Launch, architecture: int) -> Compiled:
    """Compiles for an architecture, with the assembler that comes with Triton."""
    source, options = _source(launch, architecture)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options.__dict__)
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
        broken=tuple(broken(made.asm["ttgir"], made.asm["ptx"])),
        triton=triton.__version__,
        sources=of_kernels("triton"),
    )


def _disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_case(name: str, architectures: tuple[int, ...], seen: set[tuple[object, ...]]) -> Iterator[Compiled]:
    """Every kernel that a case launches and that is not among `seen`, as each architecture would be asked to run it."""
    call = cases()[name]()
    launches: list[list[Launch]] = []
    for architecture in architectures:
        with compiling_for(architecture):
            launches.append(launches_of(call))
    for chosen in zip(*launches, strict=True):
        same = tuple(map(identity, chosen, architectures))
        if same not in seen:
            seen.add(same)
            for architecture, launch in zip(architectures, chosen, strict=True):
                yield compile_launch(name, launch, architecture)


ALLOWED = {("loss, tile D=64", 80): 2, ("layer, D=64", 80): 4, ("loss, tile D=128", 90): 22}
"""Instructions that put registers aside and take them back, by hot case and architecture."""

SPILLING = {
    "attend_kernel": 208,
    "columns_backward_kernel": 35,
    "columns_kernel": 10,
    "network_backward_kernel": 1026,
    "network_kernel": 18,
    "solve_backward_kernel": 170,
    "solve_kernel": 6,
    "update_backward_kernel": 2,
}
"""Kernels that are known to spill in cases that are not hot, and how much at most in any of them: to come down."""


def is_green(made: Compiled) -> bool:
    """Whether a kernel fits, is compiled by the rules, and spills no more than it is known to: mostly not at all."""
    hot = ALLOWED.get((made.case, made.architecture), 0)
    allowed = hot if made.case in HOT else SPILLING.get(made.kernel, 0)
    return made.fits and not made.broken and made.spills <= allowed


def as_table(kernels: list[Compiled]) -> Table:
    """A line for each kernel and case, with the figures of its architectures beside each other."""
    table = Table("case", "kernel", "sm", "registers", "spills", "shared", "tensor core", "FMA", box=box.SIMPLE_HEAD)
    lines: dict[tuple[str, str, int], list[Compiled]] = {}
    order: dict[tuple[str, int], int] = {}
    for made in kernels:
        # A case may launch a kernel in two configurations: the n-th of one architecture is the n-th of the others.
        place = order[made.case, made.architecture] = order.get((made.case, made.architecture), -1) + 1
        lines.setdefault((made.case, made.kernel, place), []).append(made)
    for (case, kernel, _), found in lines.items():
        figures = zip(
            *((x.architecture, x.registers, x.spills, x.shared, x.tensor_core, x.fma) for x in found), strict=True
        )
        table.add_row(case, kernel, *(" / ".join(map(str, column)) for column in figures))
    return table


class Record(NamedTuple):
    """A record's kernels, and by architecture the cases in it: one that launches nothing new has no kernel."""

    kernels: list[Compiled]
    done: dict[int, list[str]]

    def replaced(self, case: str, architectures: tuple[int, ...], kernels: list[Compiled]) -> "Record":
        """The record with a case compiled again for some architectures."""
        kept = [made for made in self.kernels if made.case != case or made.architecture not in architectures]
        names = {number: {*self.done.get(number, ())} for number in ARCHITECTURES}
        for number in architectures:
            names[number].add(case)
        order = {name: place for place, name in enumerate(cases())}
        return Record(
            sorted((made for made in [*kept, *kernels] if made.case in order), key=lambda made: order[made.case]),
            {number: sorted(found & order.keys(), key=order.__getitem__) for number, found in names.items()},
        )

    @property
    def missing(self) -> dict[int, list[str]]:
        """Cases that an architecture lacks."""
        return {number: [name for name in cases() if name not in self.done.get(number, ())] for number in ARCHITECTURES}

    def write(self, path: Path) -> None:
        found = {"missing": self.missing, "done": self.done, "kernels": [asdict(made) for made in self.kernels]}
        write_json(path, {"format": FORMAT, **found})


def read_record(path: Path) -> Record:
    """A record; one that is not there yet, or of another format, has nothing in it."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if content.get("format") != FORMAT:
        return Record([], {})
    kernels = [Compiled(**{**made, "broken": tuple(made["broken"])}) for made in content["kernels"]]
    return Record(kernels, {int(number): names for number, names in content["done"].items()})


def main(
    only: Annotated[list[str] | None, typer.Argument(help="cases whose name contains any of these; none: all")] = None,
    architecture: Annotated[list[int] | None, typer.Option(help="80, 86, 89, 90, 100 or 120; none: all")] = None,
    out: Annotated[Path | None, typer.Option(help=f"a record to write to, {RECORD.name} for the committed one")] = None,
    show: Annotated[bool, typer.Option("--show", help="print the committed record and compile nothing")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="leave out what the record has")] = False,
) -> None:
    """Print the table; exit status 1 where a kernel does not fit, breaks a rule or spills more than it may."""
    console = Console(width=140)
    if show:
        console.print(as_table(read_record(RECORD).kernels))
        return
    if interpreted():
        raise typer.BadParameter("nothing is compiled with TRITON_INTERPRET=1: unset it")
    names = [name for name in cases() if not only or any(word in name for word in only)]
    if not names:
        raise typer.BadParameter(f"no case's name contains {' or '.join(map(repr, only or []))}")
    record = Record([], {}) if out is None else read_record(out)
    kernels: list[Compiled] = []
    seen = set[tuple[object, ...]]()
    for name in names:
        chosen = tuple(architecture or ARCHITECTURES)
        if missing:
            chosen = tuple(number for number in chosen if name in record.missing[number])
        made_now = []
        for made in compile_case(name, chosen, seen):
            made_now.append(made)
            console.print(f"{made.case}, {made.kernel}, sm_{made.architecture}", style="dim")
        kernels += made_now
        record = record.replaced(name, chosen, made_now)
        if out is not None:
            record.write(out)
    console.print(as_table(kernels))
    for made in kernels:
        if not is_green(made):
            console.print(f"not green: {made}", markup=False, soft_wrap=True)
    if not all(map(is_green, kernels)):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
