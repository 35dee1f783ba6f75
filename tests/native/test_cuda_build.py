"""The build of the CUDA library: decided by the compiler that is here, for architectures that are asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_build import cuda, instances
from native_build.errors import BuildFailed, CannotBuild
from tests.native.conftest import ROOT, Build

LIB = Path("memformer_kernels", "_lib")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
KNOWN = {75, 80, 86, 90, 100, 120, 121}

LAUNCH = """
#pragma once
namespace memformer::cuda {
template <class T>
__global__ void scale(T* x, long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) x[i] *= T(2);
}
template <class T>
int launch(T* x, long n, void* stream) {
  scale<T><<<(n + 255) / 256, 256, 0, static_cast<cudaStream_t>(stream)>>>(x, n);
  return cudaGetLastError();
}
}
"""
KERNEL = """
#include "cuda/machine/grid.cuh"
#include "cuda/scale.h"
#include "instances/grid.h"
int memformer::scale(float* x, long n, void* stream) { return cuda::launch(x, n, stream); }
"""
INSTANCES = "# One kernel.\n[cuda/machine/grid.cuh]\nscale_float  launch<float>\n"
HEADER = "#pragma once\nnamespace memformer { int scale(float* x, long n, void* stream); }\n"
BINDING = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include "cuda/scale.h"
extern "C" __attribute__((visibility("default"))) int run(float* x, long n) {
  void* stream = nullptr;
  return aoti_torch_get_current_cuda_stream(0, &stream) || memformer::scale(x, n, stream);
}
"""


def _names(listed: str, known: set[int] = KNOWN) -> list[str]:
    return [name for architecture in cuda.architectures(listed, known) for name in architecture.names()]


def test_architectures_are_those_of_torchs_own_variable() -> None:
    assert _names("8.0;9.0a 10.0+PTX") == ["sm_80", "sm_90a", "sm_100", "compute_90"]
    assert _names("9.0") == ["sm_90"]
    assert _names("5.2 7.0 7.5 8.6; 12.0+PTX;") == ["sm_86", "sm_120", "compute_90"]


def test_the_default_serves_every_gpu_from_ampere_on_as_far_as_the_compiler_goes() -> None:
    assert _names("") == ["sm_80", "sm_90", "sm_100", "compute_90"]
    assert _names("", {70, 75, 80, 86, 90}) == ["sm_80", "sm_90", "compute_90"]
    with pytest.raises(BuildFailed, match="TORCH_CUDA_ARCH_LIST"):
        _names("", {110, 121})


@pytest.mark.parametrize("listed", ["Hopper", "90", "9.0+ptx", "sm_90", "7.5", ";"])
def test_other_words_are_refused_by_name(listed: str) -> None:
    with pytest.raises(BuildFailed, match="TORCH_CUDA_ARCH_LIST: expected compute capabilities") as caught:
        cuda.architectures(listed, KNOWN)
    assert repr(listed) in str(caught.value) or listed == ";"


def _flags(listed: str) -> tuple[str, ...]:
    return cuda.Cuda("nvcc", (13, 0), (), cuda.architectures(listed, KNOWN)).flags()


def test_a_family_of_architectures_is_compiled_from_one_ptx() -> None:
    assert _flags("") == (
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90,code=[sm_90,sm_100,compute_90]",
    )
    assert _flags("10.0;8.6") == (
        "-gencode=arch=compute_90,code=[sm_100]",
        "-gencode=arch=compute_80,code=[sm_86]",
    )
    assert _flags("9.0a+PTX 9.0") == (
        "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
        "-gencode=arch=compute_90,code=[sm_90]",
    )


def _source_of(architecture: str, flags: tuple[str, ...]) -> str:
    (found,) = (flag.split(",")[0] for flag in flags if architecture in re.findall(r"sm_\w+", flag))
    return found


def test_an_architecture_gets_the_same_code_from_every_build() -> None:
    """What `make` builds and what pip does, and either beside other architectures."""
    (made,) = re.findall(r"TORCH_CUDA_ARCH_LIST \?= (\S+)", (ROOT / "Makefile").read_text())
    for listed in (made, "", "9.0", "8.0;9.0", "9.0;12.0", "7.5;8.6;9.0+PTX"):
        assert _source_of("sm_90", _flags(listed)) == "-gencode=arch=compute_90", listed
    for listed in ("", "8.0", "8.0;8.6+PTX"):
        assert _source_of("sm_80", _flags(listed)) == "-gencode=arch=compute_80", listed
    for listed in ("", "10.0", "8.0;10.0+PTX"):
        assert _source_of("sm_100", _flags(listed)) == "-gencode=arch=compute_90", listed


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CUDA_HOME",
        "MEMFORMER_SKIP_CUDA",
        "MEMFORMER_FORCE_CUDA",
        "TORCH_CUDA_ARCH_LIST",
        "CUDAHOSTCXX",
        "CXX",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unset")
def test_without_nvcc_the_reason_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(CannotBuild, match=r"no nvcc was found .*install"):
        cuda.find_cuda()
    monkeypatch.setenv("MEMFORMER_FORCE_CUDA", "1")
    with pytest.raises(BuildFailed, match="MEMFORMER_FORCE_CUDA=1 is set, but no nvcc"):
        cuda.find_cuda()
    monkeypatch.setenv("MEMFORMER_SKIP_CUDA", "1")
    with pytest.raises(BuildFailed, match="contradict"):
        cuda.find_cuda()


@pytest.mark.usefixtures("unset")
def test_skipping_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFORMER_SKIP_CUDA", "1")
    with pytest.raises(CannotBuild, match="MEMFORMER_SKIP_CUDA=1 was set"):
        cuda.find_cuda()
    monkeypatch.setenv("MEMFORMER_SKIP_CUDA", "yes")
    with pytest.raises(BuildFailed, match="must be 0 or 1, not 'yes'"):
        cuda.find_cuda()


@pytest.mark.usefixtures("unset")
def test_a_toolkits_folder_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match="holds no bin/nvcc"):
        cuda.find_cuda()


@pytest.mark.usefixtures("unset")
def test_the_toolkit_is_the_one_that_cuda_home_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()

    def pretend(version: str) -> None:
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\necho compute_80\n")
        nvcc.chmod(0o755)

    pretend("12.4")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/opt/my-g++")
    found = cuda.find_cuda()
    assert (found.nvcc, found.version, found.driver) == (str(nvcc), (12, 4), 12000)
    assert found.host == ("-ccbin=/opt/my-g++",)
    assert found.targets() == ["sm_80", "compute_80"]
    monkeypatch.setenv("CXX", "ccache g++")
    assert cuda.find_cuda().host == ()
    monkeypatch.setenv("CUDAHOSTCXX", "g++-12")
    assert cuda.find_cuda().host == ("-ccbin=g++-12",)
    pretend("11.8")
    with pytest.raises(CannotBuild, match=r"not of CUDA 12\.0 or newer"):
        cuda.find_cuda()


def _listed(root: Path, text: str) -> list[instances.Instance]:
    (root / instances.LIST).parent.mkdir(parents=True, exist_ok=True)
    (root / instances.LIST).write_text(text)
    return instances.read(root)


def test_a_list_of_instances_is_written_as_sources_and_declarations(tmp_path: Path) -> None:
    """One source an object; what has not changed is left alone, what has left the list is removed."""
    text = (
        "# All.\n[cuda/a.cuh]\none  run<float, 1>  # the first\nboth run<float, 2>\n\n[cuda/b.cuh]\nboth  go<A<int>>\n"
    )
    assert [vars(one) for one in _listed(tmp_path, text)] == [
        {"name": "one", "header": "cuda/a.cuh", "function": "run<float, 1>"},
        {"name": "both", "header": "cuda/a.cuh", "function": "run<float, 2>"},
        {"name": "both", "header": "cuda/b.cuh", "function": "go<A<int>>"},
    ]
    folder = tmp_path / "build"
    instances.write(tmp_path, folder)
    both = instances.source(folder, "both").read_text()
    assert '#include "cuda/a.cuh"' in both
    assert '#include "cuda/b.cuh"' in both
    assert re.findall("^template .*", both, re.MULTILINE) == [
        "template decltype(run<float, 2>) run<float, 2>;",
        "template decltype(go<A<int>>) go<A<int>>;",
    ]
    declared = (folder / "instances" / "a.h").read_text()
    assert re.findall(r"^extern template .*\) (.*);", declared, re.MULTILINE) == ["run<float, 1>", "run<float, 2>"]
    assert cuda.kernels(tmp_path, folder) == [Path("build/instances/one.cu"), Path("build/instances/both.cu")]
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "instances").iterdir()}
    _listed(tmp_path, text.replace("one ", "once"))
    instances.write(tmp_path, folder)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "instances").iterdir()}
    assert {name for name in {**times, **after} if times.get(name) != after.get(name)} == {"one.cu", "once.cu"}
    for wrong in ("one run<float>", "[cuda/a.cuh]\none", "[cuda/a.cuh]\none run"):
        with pytest.raises(BuildFailed, match=r"instances\.txt:\d: expected"):
            _listed(tmp_path, wrong)
    (tmp_path / "csrc/cuda/kernels/once.cu").write_text("")
    _listed(tmp_path, "[cuda/a.cuh]\nonce run<float>\n")
    with pytest.raises(BuildFailed, match="has the name of an object"):
        cuda.kernels(tmp_path, folder)


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc here")
@pytest.mark.skipif(sys.platform != "linux", reason="the libraries are built on Linux")
def test_the_library_needs_torchs_cuda_library_by_name_and_brings_its_runtime(source: Path, setup: Build) -> None:
    """Against whatever torch is installed, with no GPU: what it needs of a torch with CUDA is there by name alone."""
    files = {
        "scale.h": HEADER,
        "machine/grid.cuh": LAUNCH,
        "kernels/scale.cu": KERNEL,
        "../binding/cuda/run.cpp": BINDING,
    }
    for name, text in {**files, "kernels/instances.txt": INSTANCES}.items():
        path = source / "csrc" / "cuda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(ROOT / "csrc/binding/cuda/stubs", source / "csrc/binding/cuda/stubs")
    wanted = {"MEMFORMER_SKIP_CUDA": None, "TORCH_CUDA_ARCH_LIST": "9.0", "CUDA_VISIBLE_DEVICES": ""}
    done = setup("build_native", "--inplace", **wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((source / LIB / cuda.RECORD).read_text())
    assert record["instruction_sets"] == ["sm_90"]
    assert record["driver"] >= 12000
    library = source / LIB / cuda.LIBRARY
    dynamic = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[1] for line in dynamic.splitlines() if "NEEDED" in line}
    assert "libtorch_cuda.so" in needed
    assert not any("cudart" in name or name.startswith("libcuda.") for name in needed)
    assert not {"RPATH", "RUNPATH"} & set(dynamic.split())
    exported = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in exported.stdout.splitlines() if " T " in line] == ["run"]
    code = f"import ctypes, torch; print(ctypes.CDLL({str(library)!r}).run(None, 1))"
    folder = source / "build/native/stubs"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # It loads, and the launch says in a number that there is no GPU to run on.
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) != 0
    objects = {path: path.stat().st_mtime_ns for path in (source / "build/native/cuda/kernels").glob("*.o")}
    assert {path.stem for path in objects} == {"scale", "scale_float"}
    before = library.stat().st_mtime_ns
    assert setup("build_native", "--inplace", **wanted).returncode == 0
    assert library.stat().st_mtime_ns == before
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    done = setup("build_native", "--inplace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not library.exists()
    assert "MEMFORMER_SKIP_CUDA" in json.loads((source / LIB / cuda.RECORD).read_text())["reason"]
