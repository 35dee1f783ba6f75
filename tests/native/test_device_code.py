"""The core is device code too: compiled by nvcc for a real architecture, it keeps a small task in registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc to compile device code with")
@pytest.mark.parametrize(
    ("source", "kernels"),
    [("device_code.cu", {"gram_loss", "token_loss"}), ("training_code.cu", {"statistics_step", "adam_step"})],
)
def test_a_task_stays_in_registers(source: str, kernels: set[str], tmp_path: Path) -> None:
    """d = 5 with run-time L for sm_90: no stack, no spills, and registers for at least 512 threads on a processor."""
    command = [
        str(NVCC),
        *("-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-I", str(ROOT / "csrc")),
        *(str(ROOT / "tests" / "native" / source), "-o", str(tmp_path / "device_code.cubin")),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    functions = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        finished.stderr,
        re.DOTALL,
    )
    assert {name for name, *_ in functions} == kernels
    for name, stack, stores, loads, registers in functions:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), name
        assert int(registers) <= 128, name


def test_nvcc_is_told_nothing_to_assume() -> None:
    """From what it was told of an address's kind, nvcc 13.0 concluded that other pointers are not null."""
    assumed = re.compile(r"\b(__builtin_assume|__assume|__builtin_unreachable)\s*\(|\[\[assume")
    device = [path for folder in ("core", "cuda") for path in (ROOT / "csrc" / folder).rglob("*.*")]
    code = {path.name: re.sub("//.*", "", path.read_text(encoding="utf-8")) for path in device}
    assert "execution.cuh" in code
    assert [name for name, text in code.items() if assumed.search(text)] == []
