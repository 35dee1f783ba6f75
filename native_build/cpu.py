"""The CPU library: kernels once per instruction set, the rest once. Which set runs is chosen at run time."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from native_build import ninja
from native_build.errors import BuildFailed
from native_build.tools import KERNEL_STANDARD, Toolchain

LIBRARY = "memformer_cpu.so"
RECORD = "memformer_cpu.json"

WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized", "-Wno-psabi")
COMMON_FLAGS = (
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=fast",
    *WARNINGS,
)
OPTIMISED = ("-O3",)
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-fsanitize=thread",),
}
# Unoptimised: watching every access of what -O1 inlines and unrolls takes the compiler several times as long.
SANITIZED = ("-O0", "-g1", "-fno-omit-frame-pointer")


@dataclass(frozen=True)
class InstructionSet:
    """Kernels are compiled for it with these flags, and with MEMFORMER_ISA and MEMFORMER_VECTOR_BYTES defined.

    needs: what Linux calls the features that a processor must have.
    """

    name: str
    vector_bytes: int
    flags: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()

    def defines(self) -> tuple[str, ...]:
        return (f"-DMEMFORMER_ISA={self.name}", f"-DMEMFORMER_VECTOR_BYTES={self.vector_bytes}")


BASELINE = InstructionSet("baseline", 16)
AVX2 = InstructionSet("avx2", 32, ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"}))
AVX512 = InstructionSet(
    "avx512",
    64,
    (
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
    frozenset({"avx512f", "avx512vl", "avx512dq", "avx512bw", *AVX2.needs}),
)


def instruction_sets(machine: str) -> tuple[InstructionSet, ...]:
    """What ships for a machine, by its `platform.machine()`."""
    return (BASELINE, AVX2, AVX512) if machine in ("x86_64", "AMD64") else (BASELINE,)


def widest(machine: str, features: Collection[str]) -> InstructionSet:
    """What the library would choose on a processor with these features."""
    return [each for each in instruction_sets(machine) if each.needs <= set(features)][-1]


def features_here() -> set[str]:
    """Of this machine's processor, as far as Linux tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return {name for line in told.splitlines() if line.startswith("flags") for name in line.partition(":")[2].split()}


def objects(root: Path, toolchain: Toolchain, sets: Sequence[InstructionSet]) -> Iterator[ninja.Object]:
    """csrc/cpu/kernels once per instruction set, csrc/cpu and csrc/binding once; only the binding sees torch."""
    for instruction_set in sets:
        flags = (KERNEL_STANDARD, *instruction_set.defines(), *instruction_set.flags)
        for source in ninja.sources(root, "csrc/cpu/kernels"):
            yield ninja.Object(source, f"{instruction_set.name}/{source.stem}.o", flags)
    for source in ninja.sources(root, "csrc/cpu"):
        flags = (KERNEL_STANDARD, *(f"-DMEMFORMER_HAS_{each.name}" for each in sets))
        yield ninja.Object(source, f"cpu/{source.stem}.o", flags)
    include = toolchain.torch / "include"
    # Its checks name the header they stand in: without the folder, which is of this machine.
    headers = ("-isystem", str(include), f"-fmacro-prefix-map={include}/=")
    for source in ninja.sources(root, "csrc/binding"):
        flags = (toolchain.binding_standard(), toolchain.stable_abi(), *headers)
        yield ninja.Object(source, f"binding/{source.stem}.o", flags)


def ninja_lines(
    root: Path, folder: Path, toolchain: Toolchain, sanitizer: str | None, sets: Sequence[InstructionSet]
) -> list[str]:
    """The rules of the library and everything it is made of, watched by one of `SANITIZERS` or by none."""
    program = Path(shutil.which(toolchain.compiler[0]) or toolchain.compiler[0]).resolve()
    mode = OPTIMISED if sanitizer is None else (*SANITIZED, *SANITIZERS[sanitizer])
    # torch's libraries export pieces of the C++ library too: its own come first, so that nothing binds to torch's.
    libraries = ["-lstdc++", f"-L{toolchain.torch / 'lib'}", "-ltorch_cpu"]
    # A sanitizer's own symbols come from the process it runs in, not from a library that is linked.
    closed = ["-Wl,--no-undefined"] if sanitizer is None else []
    lines = [
        *ninja.compile_rule("compile", [*toolchain.compiler, *COMMON_FLAGS, *mode, "-Icsrc"]),
        *ninja.link_rule("link", [*toolchain.compiler, "-shared", "-pthread", "-Wl,-z,now", *mode, *closed], libraries),
    ]
    made = []
    for unit in objects(root, toolchain, sets):
        made.append(folder / unit.output)
        lines += ninja.made("compile", made[-1], [unit.source], [program], unit.flags)
    if not made:
        raise BuildFailed(f"there are no sources under {root / 'csrc'}")
    return [*lines, *ninja.made("link", folder / LIBRARY, made)]
