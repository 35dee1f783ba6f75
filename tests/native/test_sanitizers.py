"""The native tests again, with a library that AddressSanitizer and UBSan watch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memformer_kernels import library
from native_build import cpu

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "sanitized"
GXX = shutil.which("g++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(GXX is None, reason="there is no g++ here, whose sanitizers these tests preload"),
    pytest.mark.skipif(library.status("cpu").path is None, reason=library.status("cpu").reason),
]


def _runtime(name: str) -> str:
    assert GXX is not None
    done = subprocess.run([GXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Builds the watched library and returns what makes a Python process use it."""
    assert GXX is not None
    build = [sys.executable, "setup.py", "-q", "build_native", "--sanitize"]
    done = subprocess.run(build, cwd=ROOT, env={**os.environ, "CXX": GXX}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    symbols = subprocess.run(["nm", "-D", FOLDER / cpu.LIBRARY], capture_output=True, text=True, check=True)
    assert "__asan_report" in symbols.stdout
    assert "__ubsan_handle" in symbols.stdout
    return {
        **os.environ,
        "MEMFORMER_LIBRARY_DIR": str(FOLDER),
        # The sanitizer first; the C++ library with it, so that it finds the functions it wraps.
        "LD_PRELOAD": f"{_runtime('libasan.so')} {_runtime('libstdc++.so')}",
        # Python and torch keep much on purpose until the end.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }


def test_the_watched_library_is_the_one_that_runs(environment: dict[str, str]) -> None:
    code = (
        "from memformer_kernels import library\n"
        "library.load('cpu')\n"
        "print([line.split()[-1] for line in open('/proc/self/maps') if 'memformer_cpu' in line][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(FOLDER / cpu.LIBRARY)


def test_native_tests_touch_no_memory_that_is_not_theirs(environment: dict[str, str]) -> None:
    """Every size, layout, precision, range and instruction set; gradcheck and repeats of these take too long."""
    files = ("native", "golden", "sizes", "layouts", "dtypes", "ragged_and_padding", "ops", "parity")
    tests = [f"tests/memformer_kernels/test_{name}.py" for name in files]
    tests += [f"tests/memformer_kernels/training/test_{name}.py" for name in ("native", "native_draws")]
    tests += [f"tests/memformer_kernels/blocks/test_{name}.py" for name in ("attention", "register_update")]
    ours = "cpu or test_native or test_register_update or instruction_set"
    chosen = ["-m", "not gpu and not slow", "-k", ours, "-p", "no:xdist", "--timeout", "1800"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests, *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert " passed" in done.stdout
    assert "runtime error" not in done.stdout + done.stderr
