"""The GPU command without a GPU, and its record with stand-ins for the parts that need one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from benchmarks import gpu
from benchmarks.machine import ROOT
from benchmarks.workloads import TILE_64
from tests.benchmarks.test_record import MACHINE


def test_without_a_gpu_it_says_so_and_writes_nothing() -> None:
    before = sorted(gpu.RECORDS.iterdir())
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    assert "No NVIDIA GPU" in finished.stdout
    assert sorted(gpu.RECORDS.iterdir()) == before


@pytest.fixture
def _pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "RECORDS", tmp_path)
    monkeypatch.setattr(gpu, "measure_machine", lambda device: MACHINE.__class__(**{**vars(MACHINE), "gpu": "GPU X-1"}))


@pytest.mark.usefixtures("_pretended")
def test_the_record_holds_the_machine_and_every_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(console: Console) -> dict[str, Any]:
        return {"figure": 3}

    monkeypatch.setattr(gpu, "PARTS", (("first", part), ("second", part)))
    gpu.main()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("gpu-x-1-")
    record = json.loads(path.read_text())
    assert record["machine"]["gpu"] == "GPU X-1"
    assert record["first"] == record["second"] == {"figure": 3}


@pytest.mark.usefixtures("_pretended")
def test_a_failing_part_records_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(console: Console) -> dict[str, Any]:
        raise gpu.PartFailed("the tests ended with status 1")

    monkeypatch.setattr(gpu, "PARTS", (("first", part),))
    with pytest.raises(typer.Exit) as ended:
        gpu.main()
    assert ended.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_the_limit_of_tiles_is_the_larger_of_bytes_and_products() -> None:
    """By hand: 8192 tasks of 512 tokens of 64 numbers are 1.07 GB."""
    by_bytes = gpu.tile_limit_ms(TILE_64, copy_gb_s=1000.0, tf32_gflop_s=1e9)
    assert by_bytes == pytest.approx(1.074, rel=0.01)
    by_products = gpu.tile_limit_ms(TILE_64, copy_gb_s=1e9, tf32_gflop_s=3e6)
    assert by_products == pytest.approx(2 * 8192 * TILE_64.operations.total / 1e12)
