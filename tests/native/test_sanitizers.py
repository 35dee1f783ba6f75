"""The native tests again, with libraries that sanitizers watch: AddressSanitizer and UBSan, and ThreadSanitizer."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memformer_kernels import library
from native_build import cpu
from tests.native import watched

ROOT = Path(__file__).parents[2]
POOL = Path(__file__).with_name("watched_pool.cpp")
GXX = shutil.which("g++")
OPTIONS = {
    "address": {
        # Python and torch keep much on purpose until the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # The blocks of CUDA kernels that tests compile for the host.
        "CXXFLAGS": " ".join([*cpu.SANITIZED, *cpu.SANITIZERS["address"]]),
    },
    # What Python and torch do among their own threads is not compiled for it, and would only half be seen.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0"},
}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
FINDS = {"address": ("__asan_report", "__ubsan_handle"), "thread": ("__tsan_write",)}
FAULTS = ("ERROR: AddressSanitizer", "runtime error: ", "WARNING: ThreadSanitizer")
on_both = pytest.mark.parametrize("sanitizer", cpu.SANITIZERS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(GXX is None, reason="there is no g++ here, whose sanitizers these tests preload"),
    pytest.mark.skipif(library.status("cpu").path is None, reason=library.status("cpu").reason),
]


def _compiled(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CXX": str(GXX)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _runtime(name: str) -> str:
    done = subprocess.run([str(GXX), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _folder(sanitizer: str) -> Path:
    return ROOT / "build" / "sanitized" / sanitizer


class Watch:
    """Runs Python with a watched library; what a sanitizer says goes to files, past whatever captures output."""

    def __init__(self, sanitizer: str, reports: Path) -> None:
        self.reports = reports
        folder = _folder(sanitizer)
        _compiled([sys.executable, "setup.py", "-q", "build_native", f"--sanitizer={sanitizer}"])
        # The sanitizer first; the C++ library with it, so that it finds the functions it wraps.
        preloaded = [_runtime(RUNTIMES[sanitizer]), _runtime("libstdc++.so")]
        self.command = [sys.executable]
        if sanitizer == "thread":
            pool = folder / "watched_pool.so"
            flags = [*cpu.SANITIZED, *cpu.SANITIZERS[sanitizer], "-fPIC", "-shared", "-pthread", *cpu.WARNINGS]
            _compiled([str(GXX), *flags, str(POOL), "-o", str(pool)])
            preloaded.append(str(pool))
            # Addresses that are drawn at random may lie where the sanitizer keeps its own.
            if shutil.which("setarch"):
                self.command = ["setarch", platform.machine(), "-R", *self.command]
        options = {
            name: f"{value}:log_path={reports / 'report'}" if name.endswith("SAN_OPTIONS") else value
            for name, value in OPTIONS[sanitizer].items()
        }
        self.environment = {
            **os.environ,
            **options,
            "MEMFORMER_LIBRARY_DIR": str(folder),
            "LD_PRELOAD": " ".join(preloaded),
            # Tests of threads choose their own; for the rest, waiting for each other would take longer than the work.
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*self.command, *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def found(self) -> str:
        """What was found, without words on what a sanitizer may miss."""
        reports = [path.read_text(errors="replace") for path in sorted(self.reports.iterdir())]
        return "\n".join(report for report in reports if any(fault in report for fault in FAULTS))

    def run_tests(self, *options: str) -> None:
        chosen = [
            "-p",
            "tests.native.watched",
            "-m",
            "not gpu and (not slow or host_blocks)",
            "-p",
            "no:xdist",
            "--timeout",
            "1200",
        ]
        done = self.run("-m", "pytest", "-q", *chosen, *options)
        assert not self.found(), self.found()[:16000]
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
        assert " passed" in done.stdout


def test_what_stays_apart_is_there() -> None:
    for place in watched.APART:
        assert (ROOT / place).exists(), place
        assert place.startswith(watched.FOLDERS)
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in watched.TESTS_APART:
        assert f"def {name}(" in written


@on_both
def test_the_watched_library_is_the_one_that_runs(sanitizer: str, tmp_path: Path) -> None:
    watch = Watch(sanitizer, tmp_path)
    path = _folder(sanitizer) / cpu.LIBRARY
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True)
    for name in FINDS[sanitizer]:
        assert name in symbols.stdout
    code = (
        "from memformer_kernels import library\n"
        "library.load('cpu')\n"
        "print([line.split()[-1] for line in open('/proc/self/maps') if 'memformer_cpu' in line][0])\n"
    )
    done = watch.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(path)
    assert not watch.found()


def test_kernels_run_in_the_watched_pool(tmp_path: Path) -> None:
    watch = Watch("thread", tmp_path)
    code = (
        "import ctypes, torch\n"
        "from memformer_kernels import context_gram\n"
        "torch.set_num_threads(3)\n"
        "context_gram(torch.ones(5000, 4, 3))\n"
        "print(ctypes.CDLL(None).threads_started())\n"
    )
    done = watch.run("-c", code)
    assert (done.returncode, done.stdout, watch.found()) == (0, "2\n", ""), done.stderr


def test_a_race_in_the_pool_is_seen(tmp_path: Path) -> None:
    watch = Watch("thread", tmp_path)
    code = (
        "import ctypes, torch\n"
        "torch.set_num_threads(3)\n"
        "pool, total = ctypes.CDLL(None), ctypes.c_int64()\n"
        "pool.torch_parallel_for.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 2\n"
        "pool.torch_parallel_for(0, 30000, 1, pool.add_without_care, ctypes.addressof(total))\n"
    )
    assert watch.run("-c", code).returncode != 0
    assert "data race" in watch.found()
    assert "add_without_care" in watch.found()


@pytest.mark.parametrize("files", watched.parts(6).values(), ids=watched.parts(6))
def test_native_tests_touch_no_memory_that_is_not_theirs(files: list[str], tmp_path: Path) -> None:
    """Nor do anything undefined: every test file of native code but those that are named with a reason."""
    Watch("address", tmp_path).run_tests(*files)


def test_threads_race_for_nothing(tmp_path: Path) -> None:
    """Every test that chooses a number of threads: all kernels of torch's pool, on one thread and on several."""
    (files,) = watched.parts(1).values()
    Watch("thread", tmp_path).run_tests(*files, "--choose-threads")
