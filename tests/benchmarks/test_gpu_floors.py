"""The sheet of floors: sizes by hand, the code's figures where it is built, a record that says nothing was measured."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu_floors import H200, Row, as_record, general_gram, general_tokens, kernels, sheet, with_code
from benchmarks.sass import Code, parse


def test_the_headline_rows_by_hand() -> None:
    rows = {row.kernel.name: row for row in sheet(batch=1_000_000, folder=Path("nowhere"))}
    w = rows["response-only, Gram"]
    assert (w.kernel.bytes, w.kernel.multiply_adds) == (508, 1010)
    assert w.memory_ms == pytest.approx(0.508 / 4.3)
    assert w.arithmetic_ms == pytest.approx(2 * 1.010 / 67)
    assert w.predicted_ms == w.memory_ms
    assert w.registers is None
    assert rows["context_gram"].kernel.bytes == 504 + 144
    assert rows["lfom_solve"].kernel.multiply_adds == 4 * 50 + 50


def test_a_processors_clock_is_that_of_its_multiply_adds() -> None:
    assert H200.clock_ghz == pytest.approx(1.98, abs=0.01)


def test_general_networks_by_hand() -> None:
    assert general_gram(2, 3, 1) == 3 * 3 + 3 * (8 + 6 + 24 + 4)
    assert general_tokens(2, 3, 1) == 3 * (9 + 16 + 16 + 8)


def test_the_codes_mix_scales_the_multiply_adds() -> None:
    row = Row(kernels()[0], 1.0, 0.5)
    code = Code("k", "sm_90", 96, 0, 0, Counter({"FFMA": 100, "LDS.128": 10, "LDS": 40, "IADD3": 50, "NOP": 9}))
    # One multiply-add a lane and clock: 132 multiprocessors of 128 lanes.
    multiply_adds = 132 * 128 * H200.clock_ghz * 1e6
    made = with_code(row, code, multiply_adds, H200)
    assert made.issue_ms == pytest.approx(2.0)
    assert made.shared_ms == pytest.approx((10 * 16 + 40 * 4) / 100)
    assert (made.registers, made.fma, made.instructions) == (96, 100, 200)
    assert made.predicted_ms == made.shared_ms


def test_a_count_of_the_run_takes_the_place_of_the_mix() -> None:
    """Four warps of 32 tasks a clock and multiprocessor."""
    kernel = next(kernel for kernel in kernels() if kernel.issued)
    tasks = 132 * 4 * 32 * 1000
    code = Code("k", "sm_90", 168, 0, 0, Counter({"FFMA": 1, "LDS": 10}))
    made = with_code(Row(kernel, 0.0, 0.0), code, tasks * kernel.multiply_adds, H200)
    assert made.issue_ms == pytest.approx(1000 * kernel.issued / H200.clock_ghz / 1e6)
    assert made.shared_ms is None


def test_the_command_writes_a_record_that_says_it_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "floors.json"
    result = CliRunner().invoke(app, ["gpu-floors", "--json", str(path)])
    assert result.exit_code == 0, result.output
    record = json.loads(path.read_text())
    assert record["measured"] is False
    assert len(record["kernels"]) == len(kernels())
    assert all(row["predicted_ms"] > 0 for row in record["kernels"])
    assert "worked out" in result.output


def test_the_records_rows_are_those_of_the_sheet() -> None:
    rows = sheet(folder=Path("nowhere"))
    assert [row["kernel"]["name"] for row in as_record(rows)["kernels"]] == [row.kernel.name for row in rows]


PRINTED = """
Fatbin elf code:
================
arch = sm_90
Resource usage:
 Common:
  GLOBAL:0
 Function _Z1kPf:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0

\t\tFunction : _Z1kPf
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDS.128 R4, [R5] ;                         /* 0x0000000000057919 */
        /*0020*/               @P1 FFMA R3, R3, R4, R5 ;                      /* 0x000000ffff037224 */
        /*0030*/              @UP0 UBLKCP.S.G [UR4], [UR6], UR8 ;             /* 0x000000ffff037224 */
        /*0040*/                   FFMA.FTZ R3, R3, R4, R5 ;                  /* 0x000000ffff037224 */
        /*1050*/                   STL [R1], R4 ;                             /* 0x000000ffff037224 */
\t\t..........
"""


def test_printed_code_is_read() -> None:
    (code,) = parse(PRINTED)
    assert (code.name, code.architecture, code.registers, code.stack, code.shared) == ("_Z1kPf", "sm_90", 40, 16, 1024)
    assert code.instructions == Counter({"LDC": 1, "LDS.128": 1, "FFMA": 1, "FFMA.FTZ": 1, "UBLKCP.S.G": 1, "STL": 1})
    assert code.count("FFMA") == 2
    assert code.count("LDS", "STL", "UBLKCP") == 3
    assert code.count("LD") == 0
