"""Finding and loading the native library: lazily, once, and with a way to fix it where it is missing or broken."""

import _json
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memformer_kernels import library
from tests.marks import slow_but


def _python(code: str, folder: Path | None) -> str:
    """Runs code in a fresh interpreter whose libraries are in a folder, and returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MEMFORMER_LIBRARY_DIR", None)
    if folder is not None:
        environment["MEMFORMER_LIBRARY_DIR"] = str(folder)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


MISSING = """
from memformer_kernels import library
found = library.status("cpu")
assert found.path is None and found.instruction_sets == ()
try:
    library.load("cpu")
except RuntimeError as error:
    assert found.reason in str(error)
    print(error)
"""


def test_a_missing_library_names_the_mend(tmp_path: Path) -> None:
    printed = _python(MISSING, tmp_path)
    assert "memformer_cpu.so" in printed
    assert "--no-build-isolation" in printed


def test_the_reason_that_the_build_left_is_told(tmp_path: Path) -> None:
    (tmp_path / "memformer_cpu.json").write_text(json.dumps({"reason": "no C++ compiler was found"}))
    assert "no C++ compiler was found" in _python(MISSING, tmp_path)


OF_ANOTHER_PROCESSOR = """
import torch
from memformer_kernels import build_info, library
load = torch.ops.load_library

def load_for_none(path):
    load(path)
    torch.ops.memformer_native.instruction_set = lambda: ""

torch.ops.load_library = load_for_none
found = build_info().backends["cpu"]
assert not found.available
print(found.reason)
"""


@pytest.mark.skipif(library.status("cpu").path is None, reason="the native library is not built here")
def test_a_library_for_other_processors_is_not_available() -> None:
    assert "alone, which this processor lacks" in _python(OF_ANOTHER_PROCESSOR, None)


BROKEN = """
from memformer_kernels import library
assert library.status("cpu").path is not None
for _ in range(2):
    try:
        library.load("cpu")
    except RuntimeError as error:
        print(error)
found = library.status("cpu")
assert found.path is None
print(found.reason)
"""


@pytest.mark.parametrize("record", slow_but(["not JSON"], ["", "not JSON", "[1]"]))
def test_a_library_that_does_not_load_is_an_error_that_stays(tmp_path: Path, record: str) -> None:
    (tmp_path / "memformer_cpu.so").write_bytes(b"no library")
    (tmp_path / "memformer_cpu.json").write_text(record)
    lines = _python(BROKEN, tmp_path).splitlines()
    assert len(lines) == 3
    assert all("does not load into torch" in line and "--no-build-isolation" in line for line in lines)


LOADED = """
import sys, threading
opened = []
sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "ctypes.dlopen" else None)
from memformer_kernels import build_info, library
found = library.status("cpu")
assert not any("memformer" in name for name in opened), opened
threads = [threading.Thread(target=library.load, args=("cpu",)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.load("cpu")
build_info()
assert [name for name in opened if "memformer" in name] == [str(found.path)], opened
print("once")
"""


@pytest.mark.skipif(library.status("cpu").path is None, reason=library.status("cpu").reason)
def test_a_library_is_loaded_when_asked_for_and_once() -> None:
    assert _python(LOADED, None).strip() == "once"


UNDER_A_BROKEN_LIBRARY = """
import torch
from memformer_kernels import build_info, explain, memformer_predict
z, q = torch.randn(4, 9, 5), torch.randn(2, 1, 4, 4)
if {asked_first}: build_info()
made = memformer_predict(z, q)
assert torch.equal(made, memformer_predict(z, q, backend="torch"))
chosen, info = explain(z, q), build_info().backends["cpu"]
assert chosen.backend == "torch" and not info.available, (chosen, info)
assert "does not load into torch" in info.reason and info.reason in chosen.reason, (chosen, info)
try:
    memformer_predict(z, q, backend="cpu")
except RuntimeError as error:
    assert info.reason in str(error)
    print("agreed")
"""


def _broken(kind: str, path: Path) -> None:
    """A file that is no library, another library, or the first part of this one."""
    whole = library.status("cpu").path
    if kind == "garbage":
        path.write_bytes(b"no library")
    elif kind == "another library":
        if not hasattr(_json, "__file__"):
            pytest.skip("this Python has no library of its own to copy")
        shutil.copy(_json.__file__, path)
    elif whole is None:
        pytest.skip(library.status("cpu").reason)
    else:
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["garbage", "another library", "cut off"])
@pytest.mark.parametrize("asked_first", slow_but([False], [False, True]))
def test_a_broken_library_leaves_auto_to_torch_and_all_say_why(tmp_path: Path, kind: str, asked_first: bool) -> None:
    _broken(kind, tmp_path / "memformer_cpu.so")
    assert _python(UNDER_A_BROKEN_LIBRARY.format(asked_first=asked_first), tmp_path).strip() == "agreed"
