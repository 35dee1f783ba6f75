"""docs/compatibility.md is the registry of cells, and the registry leaves nothing out."""

import inspect
import subprocess
import sys
from pathlib import Path

import memformer_kernels
from memformer_kernels import nn
from tests.compatibility.matrix import CELLS, COLUMNS, ERRORS, NOTES, ROWS, SLOW
from tests.compatibility.table import PAGE, render

ROOT = Path(__file__).parents[2]
ASKED = (
    "compile", "torch.func", "legacy vmap", "autocast", "checkpoint", "export",
    "DDP", "FSDP2", "DTensor", "fork", "threads", "signals",
)  # fmt: skip


def test_the_page_is_what_the_cells_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "python -m tests.compatibility.table"


def test_every_operation_and_module_has_a_row_and_every_concern_a_column() -> None:
    made_by_ops = {"context_gram", "lfom_solve", "linear_attention", "register_update"}
    operations = {
        f"memformer_{name}" for name in ("stack", "predict", "loss", "prefix_predict", "prefix_loss", "layer")
    } | made_by_ops
    assert operations <= set(memformer_kernels.__all__)
    classes = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    modules = {f"nn.{name}" for name in classes if hasattr(getattr(nn, name), "forward")}
    assert set(ROWS) == operations | modules | {"train_steps"}
    assert set(ASKED) <= set(COLUMNS)


def test_every_cell_is_a_collected_case() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "tests/compatibility/test_cells.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    collected = {line.split("test_cell[")[1][:-1] for line in done.stdout.splitlines() if "test_cell[" in line}
    assert collected == {f"{column}-{row}" for column in COLUMNS for row in ROWS}
    assert len(CELLS) == len(collected)


def test_what_is_said_is_said_of_cells() -> None:
    cells = {(cell.row, cell.column) for cell in CELLS}
    assert set(NOTES) | set(ERRORS) <= cells
    assert not set(NOTES) & set(ERRORS)
    assert set(SLOW) <= set(COLUMNS)
