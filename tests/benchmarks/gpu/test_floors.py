"""The sheet: what work must move, what kernels need by their counters, and a record that says nothing was measured."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu.floors import COUNTED, HEAD, print_sheet, row_of, sheet
from benchmarks.gpu.virtual_record import CHANGED, write
from benchmarks.measure.sources import ROOT, of_kernels
from benchmarks.reports.record import write_json
from tests.benchmarks.gpu.virtual_records import counted, use
from virtual_gpu.hardware import H200

RECORD = COUNTED.with_name("h200-floors.json")


def test_kernels_run_one_after_another() -> None:
    """A share of a kernel's time is a resource's work; the others together take as long as the longest of them."""
    first = use("first", 132.0, 60_000, issue=0.5, float=0.25, special=0.1, convert=0.2)
    second = use("second", 13.2, 0, integer=0.5, shared=1.0)
    row = row_of(counted(first, second))
    assert row.bytes == 600
    assert row.ns["issue"] == pytest.approx(0.5 * 132e3 / 100 / H200.multiprocessors)
    assert row.ns["float"] == pytest.approx(2.5)
    assert (row.ns["integer"], row.ns["shared"]) == (pytest.approx(0.5), pytest.approx(1.0))
    assert row.ns["others"] == pytest.approx(2.0)
    assert row.ns["memory"] == pytest.approx(600e9 / H200.copied)
    assert (row.bound, row.need_ns) == ("issue", pytest.approx(5.0))
    assert row.predicted_ns == pytest.approx(10 + 1)


def test_a_floor_is_of_the_work_and_a_need_of_the_kernels() -> None:
    """The floor knows nothing of what the kernels touched, and what they need of memory nothing of the floor."""
    one, other = (row_of(counted(use("only", 1.0, touched, issue=0.0), floor=480)) for touched in (60_000, 600_000))
    assert one.floor_ns == other.floor_ns == pytest.approx(480e9 / H200.bandwidth)
    assert (one.bound, one.need_ns) == ("memory", pytest.approx(600e9 / H200.copied))
    assert other.need_ns == pytest.approx(10 * one.need_ns)
    assert row_of(counted(use("only", 1.0, 60_000), floor=0)).floor_ns == 0


def test_other_architectures_have_no_row(tmp_path: Path) -> None:
    one = use("only", 1.0, 100, issue=0.5)
    path = tmp_path / "counted.json"
    write(path, [counted(one), counted(one, architecture=80)])
    assert [row.name for row in sheet(path)] == ["W"]


def test_the_committed_sheet_is_that_of_the_committed_counters(tmp_path: Path) -> None:
    write_json(tmp_path / "sheet.json", HEAD, {"cases": sheet()})
    assert RECORD.read_bytes() == (tmp_path / "sheet.json").read_bytes()
    assert json.loads(RECORD.read_text(encoding="utf-8"))["measured"] is False


def test_the_page_on_training_has_what_the_trainer_needs() -> None:
    (row,) = (row for row in sheet() if row.name == "trainer, statistics")
    text = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    rate = f"{1e9 / row.need_ns:.2g}".replace("e+0", "e").replace("e+", "e")
    assert f"(`python -m benchmarks gpu-floors`), {rate} tasks/s are the most that go through" in text
    assert f"With latencies the model predicts {1e9 / row.predicted_ns:.2g}".replace("e+0", "e") in text


def test_no_floor_is_above_a_need_and_no_need_above_what_the_schedule_predicts() -> None:
    for row in sheet():
        assert row.floor_ns <= row.need_ns <= row.predicted_ns


def test_the_command_writes_a_record_that_says_it_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "floors.json"
    result = CliRunner().invoke(app, ["gpu-floors", "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(path.read_text()) == json.loads(RECORD.read_text(encoding="utf-8"))
    assert "…" not in result.output
    for said in ("worked out", "floor: what any kernel must move", "Need: of these kernels as they are"):
        assert said in " ".join(result.output.split())
    missing = CliRunner().invoke(app, ["gpu-floors", "--counted", str(tmp_path / "none.json"), "--json", str(path)])
    assert missing.exit_code == 2


def test_the_sheet_says_which_kernels_have_changed_since() -> None:
    def shown(*sources: str) -> str:
        rows = [row_of(counted(use("only", 1.0, 100, issue=0.5), sources=one)) for one in sources]
        console = Console(width=140, record=True, file=io.StringIO())
        print_sheet(rows, console)
        return console.export_text()

    assert CHANGED in shown("other")
    assert "cuda, W *" in shown("other")
    assert "*" not in shown(of_kernels("cuda"))
    assert CHANGED in shown("other", of_kernels("cuda"))
