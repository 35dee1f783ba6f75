"""What kernels share among threads, watched by ThreadSanitizer in a program of its own: torch's pool is not watched."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from native_build import cpu
from native_build.tools import KERNEL_STANDARD

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
FLAGS = ("-O0", "-g1", "-fsanitize=thread", "-pthread", KERNEL_STANDARD, f"-I{CSRC}", *cpu.WARNINGS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here, whose sanitizer this test uses"),
]


def test_threads_race_for_nothing_and_end_a_call_together(tmp_path: Path) -> None:
    """One instruction set stands for all: what is shared, and how, is the same source."""
    sources = [
        Path(__file__).with_name("tsan_driver.cpp"),
        *(path for path in (CSRC / "cpu").glob("*.cpp") if path.stem != "dispatch"),
        *(CSRC / "cpu" / "kernels").glob("*.cpp"),
    ]

    def compiled(source: Path) -> Path:
        made = tmp_path / f"{source.stem}.o"
        command = ["g++", *FLAGS, *cpu.BASELINE.defines(), "-c", str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        objects = list(workers.map(compiled, sources))
    program = tmp_path / "driver"
    subprocess.run(["g++", "-fsanitize=thread", "-pthread", *map(str, objects), "-o", str(program)], check=True)
    # Addresses that are drawn at random may lie where the sanitizer keeps its own.
    fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    done = subprocess.run([*fixed, str(program)], capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "done\n"
    assert "WARNING: ThreadSanitizer" not in done.stderr
