"""PTX for a virtual device: what the library of this checkout holds, or what another build of it would hold.

What the Makefile builds is for 9.0. PTX for older devices is compiled when a kernel of it is first launched, by nvcc
with the build's own flags, and kept until a source changes.
"""

import functools
import os
import re
import subprocess
from pathlib import Path

from benchmarks.gpu.virtual_cuda.devices import AMPERE, WHOLE_AMPERE
from benchmarks.gpu.virtual_cuda.library import FOLDER, NATIVE
from benchmarks.measure.sources import ROOT
from native_build import cuda, find_toolchain, ninja
from virtual_gpu.cuda import Binary, Ptx, fatbinary
from virtual_gpu.locks import locked

LINES = os.environ.get("MEMFORMER_VIRTUAL_LINES") == "1"
"""Whether kernels are compiled again with lines of source, which reports then name."""


def choose(binary: Binary, kernel: str, device: int) -> Ptx | None:
    """The PTX for a kernel on a device of benchmarks.gpu.virtual_cuda.devices, by number; 10.0 takes code for 9.0."""
    target = 80 if device in (AMPERE, WHOLE_AMPERE) else 90
    held = next((one for one in binary.programs if one.target == target), None)
    return _compiled(_sources()[kernel].stem, target) if held is None or LINES else held


@functools.cache
def _sources() -> dict[str, Path]:
    """Where each kernel is compiled, by the kernel's name."""
    found = {}
    for source in cuda.kernels(ROOT, NATIVE):
        unit = NATIVE / cuda.kernel_object(source)
        for program in fatbinary.in_file(unit.read_bytes()):
            found.update(dict.fromkeys(re.findall(r"\.entry\s+(\w+)", program.text), source))
    return found


@functools.cache
def _compiled(stem: str, target: int) -> Ptx:
    made = FOLDER / f"ptx_{target}" / f"{stem}.ptx"
    rules = FOLDER / f"ptx_{target}.ninja"
    with locked(FOLDER / "lock"):
        rules.write_text("\n".join(_rules(made.parent, target)) + "\n")
        subprocess.run([find_toolchain().ninja, "--quiet", "-f", str(rules), str(made)], cwd=ROOT, check=True)
        return Ptx(target, made.read_text())


def _rules(folder: Path, target: int) -> list[str]:
    compiler = cuda.find_cuda()
    flags = [*cuda.device_flags(ROOT, NATIVE), "-lineinfo", "-ptx", f"-arch=compute_{target}"]
    command = ninja.command([compiler.nvcc, *compiler.host, *flags])
    lines = [
        *ninja.header(folder),
        "rule ptx",
        f"  command = {command} -MD -MF $out.d $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for source in cuda.kernels(ROOT, NATIVE):
        lines += ninja.made("ptx", folder / f"{source.stem}.ptx", [source])
    return lines
