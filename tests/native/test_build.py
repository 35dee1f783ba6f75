"""What the build compiles, what it does not compile again, and what it says when it cannot."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from native_build import cpu
from tests.native.conftest import Build

LIB = Path("memformer_kernels", "_lib")
NAMES = [instruction_set.name for instruction_set in cpu.instruction_sets(platform.machine())]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))) or sys.platform != "linux",
    reason="there is no C++ compiler here, or this is not Linux",
)


def _record(folder: Path) -> dict[str, object]:
    record = json.loads((folder / LIB / cpu.RECORD).read_text())
    assert isinstance(record, dict)
    return record


def _times(folder: Path) -> dict[str, int]:
    base = folder / "build" / "native"
    return {str(path.relative_to(base)): path.stat().st_mtime_ns for path in base.rglob("*.o")}


@needs_compiler
def test_kernels_are_compiled_once_per_instruction_set_and_the_rest_once(source: Path, setup: Build) -> None:
    done = setup("build_native", "--inplace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(_times(source)) == {f"{name}/scale.o" for name in NAMES} | {"cpu/driver.o"}
    record = _record(source)
    assert record["instruction_sets"] == NAMES
    assert record["sanitizer"] is None
    assert (source / LIB / cpu.LIBRARY).is_file()
    defined = subprocess.run(
        ["nm", "-C", "--defined-only", source / LIB / cpu.LIBRARY], capture_output=True, text=True, check=True
    )
    assert {name for name in NAMES if f"memformer::{name}::scale" in defined.stdout} == set(NAMES)


@needs_compiler
def test_a_first_build_for_this_processor_alone(source: Path, setup: Build) -> None:
    """What is in place later stays, and is brought up to date."""
    own = cpu.widest(platform.machine(), cpu.features_here()).name
    assert setup("build_native", "--inplace", "--here").returncode == 0
    assert set(_times(source)) == {f"{own}/scale.o", "cpu/driver.o"}
    assert _record(source)["instruction_sets"] == [own]
    assert "make native" in json.loads((source / LIB / "memformer_cuda.json").read_text())["reason"]
    assert setup("build_native", "--inplace", "--here").returncode == 0
    assert _record(source)["instruction_sets"] == [own]
    (source / LIB / cpu.RECORD).unlink()
    assert setup("build_native", "--inplace", "--here").returncode == 0
    assert _record(source)["instruction_sets"] == [own]
    for option in ((), ("--here",)):
        assert setup("build_native", "--inplace", *option).returncode == 0
        assert _record(source)["instruction_sets"] == NAMES


def test_the_widest_set_that_a_processor_has() -> None:
    some = {"fpu", "avx2", "fma", "f16c"}
    assert cpu.widest("x86_64", {"fpu", "avx2"}) == cpu.BASELINE
    assert cpu.widest("x86_64", some) == cpu.AVX2
    assert cpu.widest("x86_64", some | {"avx512f", "avx512vl", "avx512dq"}) == cpu.AVX2
    assert cpu.widest("x86_64", some | cpu.AVX512.needs) == cpu.AVX512
    assert cpu.widest("aarch64", some) == cpu.BASELINE


@needs_compiler
def test_a_sanitizer_watches_a_library_of_its_own(source: Path, setup: Build) -> None:
    for sanitizer, symbol in (("address", "__asan_"), ("thread", "__tsan_")):
        done = setup("build_native", f"--sanitizer={sanitizer}")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = source / "build" / "sanitized" / sanitizer
        assert json.loads((folder / cpu.RECORD).read_text())["sanitizer"] == sanitizer
        symbols = subprocess.run(["nm", folder / cpu.LIBRARY], capture_output=True, text=True, check=True)
        assert symbol in symbols.stdout
    assert not (source / LIB).exists()
    refused = setup("build_native", "--sanitizer=memory")
    assert refused.returncode != 0
    assert "--sanitizer=memory is not one of address, thread" in refused.stderr


@needs_compiler
def test_only_what_depends_on_a_change_is_built_again(source: Path, setup: Build) -> None:
    assert setup("build_native", "--inplace").returncode == 0
    before = _times(source)
    library = (source / LIB / cpu.LIBRARY).stat()
    assert setup("build_native", "--inplace").returncode == 0
    assert _times(source) == before
    assert (source / LIB / cpu.LIBRARY).stat().st_mtime_ns == library.st_mtime_ns
    header = source / "csrc" / "core" / "number.h"
    header.write_text(header.read_text().replace("2.0f", "3.0f"))
    assert setup("build_native", "--inplace").returncode == 0
    after = _times(source)
    assert {name for name in after if after[name] != before[name]} == {f"{name}/scale.o" for name in NAMES}
    replaced = (source / LIB / cpu.LIBRARY).stat()
    # A new file under the old name: a process that has the old one loaded keeps it.
    assert replaced.st_ino != library.st_ino


@needs_compiler
def test_a_removed_source_leaves_the_library(source: Path, setup: Build) -> None:
    assert setup("build_native", "--inplace").returncode == 0
    (source / "csrc" / "cpu" / "driver.cpp").unlink()
    assert setup("build_native", "--inplace").returncode == 0
    defined = subprocess.run(["nm", "-C", source / LIB / cpu.LIBRARY], capture_output=True, text=True, check=True)
    assert "memformer::answer" not in defined.stdout


@needs_compiler
def test_a_compiler_that_fails_is_an_error_with_its_message(source: Path, setup: Build) -> None:
    (source / "csrc" / "cpu" / "driver.cpp").write_text("int answer() { return undeclared_name; }\n")
    done = setup("build_native", "--inplace")
    assert done.returncode != 0
    assert "undeclared_name" in done.stdout + done.stderr
    assert "MEMFORMER_SKIP_NATIVE=1" in done.stderr
    assert not (source / LIB / cpu.LIBRARY).exists()


@needs_compiler
def test_undefined_symbols_are_an_error_when_linking(source: Path, setup: Build) -> None:
    (source / "csrc" / "cpu" / "driver.cpp").write_text("int missing();\nint answer() { return missing(); }\n")
    done = setup("build_native", "--inplace")
    assert done.returncode != 0
    assert "missing" in done.stdout + done.stderr


@needs_compiler
def test_a_wheel_holds_the_library_and_serves_every_python(source: Path, setup: Build, tmp_path: Path) -> None:
    done = setup("bdist_wheel", "-d", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {str(LIB / cpu.LIBRARY), str(LIB / cpu.RECORD)} <= set(names)
    assert not any(name.startswith("csrc") or "native_build" in name for name in names)


@needs_compiler
def test_the_compiler_is_the_one_that_cxx_names(source: Path, setup: Build, tmp_path: Path) -> None:
    compiler = tmp_path / "my compiler"
    compiler.write_text(f'#!/bin/sh\necho used >> "{tmp_path}/log"\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    done = setup("build_native", "--inplace", CXX=f"'{compiler}'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "log").read_text().count("used") > len(NAMES)


def _tools_without_compiler(folder: Path) -> str:
    """A search path that leads to no compiler."""
    folder.mkdir()
    return str(folder)


def test_without_a_compiler_the_reason_is_left_and_an_old_library_is_not(
    source: Path, setup: Build, tmp_path: Path
) -> None:
    stale = source / LIB / cpu.LIBRARY
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    done = setup("build_native", "--inplace", PATH=_tools_without_compiler(tmp_path / "bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not stale.exists()
    assert "no C++ compiler" in str(_record(source)["reason"])
    assert (done.stdout + done.stderr).count("\n") == 1
    assert "no C++ compiler" in done.stderr


def test_skipping_is_said(source: Path, setup: Build) -> None:
    done = setup("build_native", "--inplace", MEMFORMER_SKIP_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MEMFORMER_SKIP_NATIVE" in str(_record(source)["reason"])
    assert (done.stdout + done.stderr).count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MEMFORMER_FORCE_NATIVE": "1"}, "no C++ compiler"),
        ({"MEMFORMER_FORCE_NATIVE": "yes"}, "MEMFORMER_FORCE_NATIVE must be 0 or 1, not 'yes'"),
        ({"MEMFORMER_SKIP_NATIVE": "1", "MEMFORMER_FORCE_NATIVE": "1"}, "contradict"),
        ({"CXX": "no-such-compiler -O2"}, "CXX='no-such-compiler -O2' names no program"),
    ],
)
def test_what_was_asked_for_and_is_not_there_is_an_error(
    setup: Build, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    done = setup("build_native", "--inplace", PATH=_tools_without_compiler(tmp_path / "bin"), **variables)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["no compiler", "skip"])
def test_pip_installs_a_pure_package_that_works_and_says_why(
    source: Path, environment: dict[str, str], tmp_path: Path, setting: str
) -> None:
    change = (
        {"MEMFORMER_SKIP_NATIVE": "1"} if setting == "skip" else {"PATH": _tools_without_compiler(tmp_path / "bin")}
    )
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*install, "--target", str(target), str(source)],
        env={**environment, **change},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "import memformer_kernels, torch\n"
        "from memformer_kernels import library\n"
        "assert library.status('cpu').path is None\n"
        "print(memformer_kernels.__file__, library.status('cpu').reason)\n"
        "z = torch.ones(1, 3, 2)\n"
        "print(memformer_kernels.memformer_predict(z, torch.ones(1, 1, 1, 1)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1", "PATH": os.defpath},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert str(target) in run.stdout
    assert ("MEMFORMER_SKIP_NATIVE" if setting == "skip" else "no C++ compiler") in run.stdout


def test_the_build_is_for_the_machine_that_runs_it() -> None:
    assert [instruction_set.name for instruction_set in cpu.instruction_sets("x86_64")] == [
        "baseline",
        "avx2",
        "avx512",
    ]
    assert [instruction_set.name for instruction_set in cpu.instruction_sets("aarch64")] == ["baseline"]
    baseline = cpu.instruction_sets("x86_64")[0]
    assert baseline.flags == ()
    everything = [*cpu.COMMON_FLAGS, *cpu.OPTIMISED]
    assert not any("march" in flag or "fast-math" in flag for flag in everything)
