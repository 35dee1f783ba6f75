"""What the compiler made of the CUDA kernels, read from the objects that `make native` built, on every architecture."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.sass import DIVISION, DOUBLE, LOCAL, Code, find_cuobjdump, read_code
from native_build import cuda

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "build" / "native"
OBJECTS = sorted((NATIVE / "cuda" / "kernels").glob("*.o"))
# Small matrices: d <= 8 or D <= 6 with one task a thread; D <= 6 in tiles of 3 by 3, or rows of tasks or of matrices,
# with a few lanes a task.
SMALL = re.compile(
    r"(response_gram|quadratics)_[1-8]$|thread_(gram|context)_[2-9]$|token_rows_[2-8]$|split_gram_float$"
    r"|response_tokens_float_[58]$|\w+_float_3x2$"
)
HOT = re.compile(
    r"(response_gram|quadratics|token_rows)_5$|thread_(gram|context)_6$|response_tokens_float_5$|\w+_float_3x2$"
)
WARPS = {"response_gram_5": 11, "quadratics_5": 16, "context_gram_float_3x2": 16, "thread_context_6": 12}
"""One-warp blocks that a multiprocessor is planned to hold, by its registers."""

REGISTERS = 65_536
"""Of a multiprocessor, on every architecture here; a warp gets them in lots of 256."""

OF_ONE_DIVISION = 6
"""Reciprocals in the code of one division in full precision, its slow path included."""

pytestmark = [
    pytest.mark.skipif(not OBJECTS, reason="the CUDA library was not built here with `make native`"),
    pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump here to read code with"),
]


def _name(path: Path) -> str:
    return path.stem


def _usage(path: Path) -> list[tuple[str, str, int, int]]:
    """Kernel, architecture, registers and bytes of stack, without disassembling."""
    tool = find_cuobjdump()
    assert tool is not None
    text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = []
    for part in re.split("Fatbin (?:elf|ptx) code:", text)[1:]:
        (architecture,) = re.findall(r"^arch = (\S+)$", part, flags=re.MULTILINE)
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", part):
            found.append((name, architecture, int(registers), int(stack)))
    return found


@pytest.mark.parametrize("path", [path for path in OBJECTS if SMALL.match(path.stem)], ids=_name)
def test_small_tasks_stay_in_registers(path: Path) -> None:
    """No stack, and so no spill, and the registers of the planned occupancy, on every architecture that is built."""
    used = _usage(path)
    assert used
    assert {(name, architecture): stack for name, architecture, _, stack in used if stack} == {}
    most = REGISTERS // WARPS.get(path.stem, 8) // 256 * 256 // 32
    assert {(name, architecture): count for name, architecture, count, _ in used if count > most} == {}


def test_tasks_of_any_size_keep_in_local_memory_what_their_head_says() -> None:
    """1.4 to 4.2 KB a thread (csrc/cuda/thread/response_gram.cuh)."""
    paths = [path for path in OBJECTS if path.stem in ("response_gram_float", "response_gram_double")]
    stacks = [stack for path in paths for _, architecture, _, stack in _usage(path) if architecture == "sm_90"]
    assert (round(min(stacks), -2), round(max(stacks), -2)) == (1400, 4200)


def _hot_sources() -> list[Path]:
    """Of the kernels that the goals are of, and of the trainer's hot instance."""
    hot = re.compile(rf"{HOT.pattern}|split_gram_float$|train_statistics_5x4$")
    return [source for source in cuda.kernels(ROOT, NATIVE) if hot.match(source.stem)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("source", _hot_sources(), ids=_name)
def test_hot_kernels_stay_in_registers_on_an_a100(source: Path, tmp_path: Path) -> None:
    """`make native` compiles for 9.0 alone. The trainer has room for two blocks of four warps."""
    compiler, made = cuda.find_cuda(), tmp_path / "kernel.cubin"
    flags = [*cuda.device_flags(ROOT, NATIVE), "-arch=sm_80", "-cubin"]
    subprocess.run([compiler.nvcc, *compiler.host, *flags, str(source), "-o", str(made)], cwd=ROOT, check=True)
    tool = find_cuobjdump()
    assert tool is not None
    text = subprocess.run([tool, "-res-usage", made], capture_output=True, text=True, check=True).stdout
    used = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", text)
    assert used
    assert {name: int(stack) for name, _, stack in used if int(stack)} == {}
    most = REGISTERS // (2 * 4 if source.stem.startswith("train") else WARPS.get(source.stem, 8)) // 256 * 256 // 32
    assert {name: int(count) for name, count, _ in used if int(count) > most} == {}


@pytest.mark.parametrize("path", [path for path in OBJECTS if path.stem.startswith("train_")], ids=_name)
def test_trainers_fit_the_planned_blocks(path: Path) -> None:
    """Three blocks of four warps, two before 9.0; the hot instance keeps its tasks in registers, without a spill."""
    used = [row for row in _usage(path) if "TrainSteps" in row[0]]
    assert {architecture for _, architecture, _, _ in used} >= {"sm_90"}
    for name, architecture, count, stack in used:
        blocks = 2 if architecture < "sm_90" and len(architecture) == 5 else 3
        assert count * 128 * blocks <= REGISTERS, (name, architecture)
        assert stack == 0 or path.stem != "train_statistics_5x4", (name, architecture)


def test_the_hot_trainer_holds_what_it_should_on_hopper() -> None:
    """The barrier of a cluster, shared memory by its own loads, and doubles in the update alone."""
    path = ROOT / "build" / "native" / "cuda" / "kernels" / "train_statistics_5x4.o"
    (code,) = (code for code in read_code(path, "sm_90") if "TrainSteps" in code.name)
    assert code.count("UCGABAR_ARV") == code.count("UCGABAR_WAIT") == 2
    assert code.count(*LOCAL, "LD", "ST") == 0
    assert code.count("LDS") > 300
    assert code.count("DFMA") < 100


def test_every_source_is_built_for_every_architecture() -> None:
    sources = {source.stem for source in cuda.kernels(ROOT, ROOT / "build" / "native")}
    assert len(sources) > 40
    assert sources <= {path.stem for path in OBJECTS}
    made = {path.stem: {architecture for _, architecture, _, _ in _usage(path)} for path in OBJECTS}
    everywhere = set().union(*made.values())
    assert {stem: found for stem, found in made.items() if found and found != everywhere} == {}


def _divisions(code: Code) -> int:
    """Reciprocals that are no part of an integer division, which converts its divisor right before."""
    integer = sum(n for name, n in code.instructions.items() if name.startswith("I2F.") and name.endswith(".RP"))
    integer += code.instructions["I2F.RP"]
    return code.count(*DIVISION) - integer


def _problems(code: Code, source: str) -> list[str]:
    """What a float kernel must not hold: doubles but in sums of a parameter's heads, divisions but a task's 1 / n."""
    found = [name for name in (*LOCAL, *DOUBLE) if code.count(name) and name != "DADD"]
    if _divisions(code) > OF_ONE_DIVISION:
        found.append("divisions")
    if code.count("FFMA") and not any(code.count(load) for load in _wide_loads(code, source)):
        found.append("no wide loads")
    return found


def _wide_loads(code: Code, source: str) -> tuple[str, ...]:
    """How tokens may come in: by bulk copies from 9.0 on, else by asynchronous copies or loads of several numbers.

    Where teams of lanes share a task, neighbouring lanes read neighbouring numbers: any load is wide for the warp.
    """
    if source.startswith("thread_gram"):
        return ("LDGSTS",)
    if not source.startswith(("response_gram", "quadratics", "thread_context", "token_rows", "split_gram")):
        return ("LDG",)
    return ("LDGSTS", "LDG.E.128", "LDG.E.64") if code.architecture == "sm_80" else ("UBLKCP",)


@pytest.mark.parametrize("path", [path for path in OBJECTS if HOT.match(path.stem)], ids=_name)
def test_hot_kernels_hold_what_they_should_on_hopper(path: Path) -> None:
    codes = read_code(path, "sm_90")
    assert any(code.count("FFMA") > 50 for code in codes)
    assert {code.name: _problems(code, path.stem) for code in codes if _problems(code, path.stem)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in OBJECTS if SMALL.match(path.stem)], ids=_name)
def test_small_kernels_hold_what_they_should_everywhere(path: Path) -> None:
    codes = read_code(path)
    assert {code.name: _problems(code, path.stem) for code in codes if _problems(code, path.stem)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in OBJECTS if "float" in path.stem], ids=_name)
def test_float_kernels_of_any_size_do_not_work_in_double(path: Path) -> None:
    """But for the sums over blocks of tasks, which are a kernel of their own."""
    for code in read_code(path, "sm_90"):
        assert code.count("DFMA", "DMUL") == 0, code.name


def test_there_is_a_reader_where_there_is_a_compiler() -> None:
    """Else the tests above would be missing without a word."""
    assert shutil.which("nvcc") is None or find_cuobjdump() is not None
