"""The CUDA library that `make native` built: what it needs, what it holds, and that it loads without a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memformer_kernels import library
from native_build import cuda, tools

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "build" / "native" / Path(cuda.STUB).parent
OPERATORS = (
    *("forward", "backward", "loss", "context_gram", "context_gram_backward", "lfom_solve", "lfom_solve_backward"),
    *("layer", "layer_backward", "train_steps"),
)
OTHERS = re.compile(r"(U|w|v) \w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$|w (_ITM_|__gmon_)\w+$|w __cxa_\w+$")

pytestmark = [
    pytest.mark.skipif(library.status("cuda").path is None, reason=library.status("cuda").reason),
    pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm here"),
]


def _file() -> Path:
    path = library.status("cuda").path
    assert path is not None
    return path


def _symbols(*options: str) -> list[str]:
    done = subprocess.run(["nm", "--dynamic", *options, _file()], capture_output=True, text=True, check=True)
    return [line[17:] if line[0] != " " else line.strip() for line in done.stdout.splitlines() if line]


def _of_torch() -> set[str]:
    return {symbol.split()[-1] for symbol in _symbols("--undefined-only") if not OTHERS.match(symbol)}


def test_it_needs_torchs_stable_interface_and_the_c_libraries_only() -> None:
    needed = _of_torch()
    assert "aoti_torch_get_current_cuda_stream" in needed
    assert [name for name in needed if not name.startswith(("aoti_torch_", "torch_"))] == []


def test_everything_it_needs_of_torch_was_there_in_the_oldest_torch_that_is_served(tmp_path: Path) -> None:
    """Torch's headers say since when a function has been there: those of 2.10 alone declare them all."""
    source = tmp_path / "declared.cpp"
    headers = ("inductor/aoti_torch/c/shim.h", "inductor/aoti_torch/generated/c_shim_aten.h", "stable/c/shim.h")
    source.write_text("".join(f"#include <torch/csrc/{header}>\n" for header in headers))
    found = tools.find_toolchain()
    options = ["-std=c++20", "-E", "-P", "-DUSE_CUDA", found.stable_abi(), "-isystem", str(found.torch / "include")]
    done = subprocess.run([*found.compiler, *options, source], capture_output=True, text=True, check=True)
    declared = set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", done.stdout))
    assert "torch_stream_native_handle" not in declared  # since 2.13
    assert _of_torch() - declared == set()


def test_what_a_torch_without_cuda_lacks_is_in_the_stub_and_nothing_else() -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", STUBS / "libtorch_cuda.so"], capture_output=True, text=True, check=True
    )
    stub = {line.split()[-1] for line in done.stdout.splitlines() if " T " in line}
    assert stub <= _of_torch()
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    done = subprocess.run(["nm", "-D", "--defined-only", torch_cpu], capture_output=True, text=True, check=True)
    defined = {line.split()[-1] for line in done.stdout.splitlines()}
    assert _of_torch() - defined <= stub


def test_it_exports_no_function_and_names_no_folder_of_the_machine_that_built_it() -> None:
    assert [symbol for symbol in _symbols("--defined-only") if symbol.startswith("T ")] == []
    assert str(ROOT).encode() not in _file().read_bytes()
    dynamic = subprocess.run(["objdump", "-p", _file()], capture_output=True, text=True, check=True).stdout
    assert not {"RPATH", "RUNPATH"} & set(dynamic.split())
    assert "cudart" not in dynamic


def test_no_function_that_only_a_gpu_has_is_called_on_the_host() -> None:
    """nvcc compiles such a call, without a word, to one that ends the process."""
    assert [symbol for symbol in _symbols("--undefined-only") if re.match(r"U (_?exit|abort)\b", symbol)] == []


def test_it_is_small_enough_to_ship() -> None:
    assert _file().stat().st_size < 50e6


LOADED = """
import json, torch
from memformer_kernels import library
library.load("cuda")
has = lambda name, key: torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("memformer_native::")]
z, gram = torch.ones(2, 3, 2), torch.empty(2, 2, 2)
torch.ops.memformer_native.context_gram.default(z, None, 3, gram)
kernels = {name.split("::")[1]: [has(name, "CPU"), has(name, "CUDA")] for name in names}
print(json.dumps({"sum": gram.sum().item(), **kernels}))
"""


def _python(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA: nothing stands in for its library")
def test_it_loads_beside_the_cpu_library_where_something_stands_in_for_torchs_cuda() -> None:
    done = _python(LOADED, LD_LIBRARY_PATH=str(STUBS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("sum") == 24.0
    assert {name for name, kernels in found.items() if kernels == [True, True]} == set(OPERATORS)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_without_torchs_cuda_it_is_not_offered_and_does_not_load() -> None:
    code = (
        "from memformer_kernels import build_info, library\n"
        "print(build_info().backends['cuda'])\n"
        "library.load('cuda')\n"
    )
    done = _python(code)
    assert "available=False" in done.stdout
    assert "without CUDA" in done.stdout
    assert "does not load into torch" in done.stderr
    assert "--no-build-isolation" in done.stderr
