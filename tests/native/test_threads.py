"""How calls share work among threads and end, watched by ThreadSanitizer in a program of its own, without Python."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from native_build import cpu
from native_build.tools import KERNEL_STANDARD

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
FLAGS = (*cpu.SANITIZED, *cpu.SANITIZERS["thread"], "-pthread", KERNEL_STANDARD, f"-I{CSRC}", *cpu.WARNINGS)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here, whose sanitizer this uses")


def test_threads_race_for_nothing_and_end_a_call_together(tmp_path: Path) -> None:
    sources = [
        Path(__file__).with_name("tsan_driver.cpp"),
        *(CSRC / "cpu" / name for name in ("threads.cpp", "scratch.cpp")),
    ]
    program = tmp_path / "driver"
    done = subprocess.run(
        ["g++", *FLAGS, *map(str, sources), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Addresses that are drawn at random may lie where the sanitizer keeps its own.
    fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    done = subprocess.run([*fixed, str(program)], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "done\n"
    assert "WARNING: ThreadSanitizer" not in done.stderr
