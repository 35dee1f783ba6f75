"""What the built objects and the library hold: no code of one instruction set where another could run it."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from memformer_kernels import library
from native_build import cpu

ROOT = Path(__file__).parents[2]
OBJECTS = sorted((ROOT / "build" / "native").glob("*/*.o"))
SETS = {instruction_set.name for instruction_set in cpu.instruction_sets("x86_64")}
KERNELS = [path for path in OBJECTS if path.parent.name in SETS]
# The C and C++ libraries mark theirs with a version; weak ones without are the linker's own.
ALLOWED = re.compile(r"(U|w|v) (aoti_torch_\w+|torch_\w+|\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+)$|w (_ITM_|__gmon_)\w+$")

pytestmark = [
    pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm here"),
    pytest.mark.skipif(not OBJECTS, reason="the native library was not built here with `make native`"),
]


def _symbols(path: Path, *options: str) -> list[str]:
    done = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[-1] if line[0] != " " else line.strip() for line in done.stdout.splitlines() if line]


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", KERNELS, ids=_name)
def test_every_global_symbol_of_a_kernel_names_its_instruction_set(path: Path) -> None:
    """The linker keeps one of several equal weak symbols: an unnamed one could be AVX-512 code that every CPU runs."""
    name = path.parent.name
    mark = f"{len(name)}{name}"
    symbols = _symbols(path, "--defined-only", "--extern-only")
    assert symbols
    # A pointer to the C++ library's own handler of exceptions: data, alike in every object.
    assert [symbol for symbol in symbols if mark not in symbol and symbol != "V DW.ref.__gxx_personality_v0"] == []


@pytest.mark.parametrize("path", KERNELS, ids=_name)
def test_nothing_of_a_kernel_runs_when_the_library_loads(path: Path) -> None:
    """A constructor compiled for AVX-512 would stop every other CPU before anything was chosen."""
    sections = subprocess.run(["objdump", "-h", path], capture_output=True, text=True, check=True).stdout
    assert ".text" in sections
    assert ".init_array" not in sections
    assert ".ctors" not in sections


def test_every_kernel_source_is_built_for_every_instruction_set() -> None:
    sources = {path.stem for path in (ROOT / "csrc" / "cpu" / "kernels").glob("*.cpp")}
    names = {instruction_set.name for instruction_set in cpu.instruction_sets(platform.machine())}
    expected = {f"{name}/{source}.o" for name in names for source in sources}
    assert expected
    assert expected <= {_name(path) for path in KERNELS}


def _library() -> Path:
    path = library.status("cpu").path
    assert path is not None
    return path


def test_the_library_needs_the_stable_interface_of_torch_and_the_c_libraries_only() -> None:
    symbols = _symbols(_library(), "--dynamic", "--undefined-only")
    assert any("aoti_torch_library_init" in symbol for symbol in symbols)
    assert [symbol for symbol in symbols if not ALLOWED.match(symbol)] == []


def test_the_library_exports_no_function() -> None:
    exported = _symbols(_library(), "--dynamic", "--defined-only")
    assert [symbol for symbol in exported if symbol.startswith("T ")] == []


def test_the_library_names_no_folder_of_the_machine_that_built_it() -> None:
    data = _library().read_bytes()
    assert str(ROOT).encode() not in data
    dynamic = subprocess.run(["objdump", "-p", _library()], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
