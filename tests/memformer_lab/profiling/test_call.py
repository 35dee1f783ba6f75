"""A profiled call: its plan, its floors, its time; what a GPU's trace says; the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memformer_kernels import build_info
from memformer_lab.cli import app
from memformer_lab.profiling.call import Call, ncu_command, profile_call
from memformer_lab.profiling.gpu_trace import KernelUse, kernels_of
from memformer_lab.profiling.rates import Rates

RATES = Rates(copy_gb_s=20.0, read_gb_s=10.0, fma_gflop_s=100.0)
SMALL = Call(batch=1000)


def test_a_profile_holds_the_plan_the_floors_and_the_time() -> None:
    found = profile_call(SMALL, seconds=0.0, rates=RATES)
    assert found.backend == ("cpu" if build_info().backends["cpu"].available else "torch")
    assert (found.algorithm, found.regime) == ("gram", "tiny Gram")
    assert found.bytes == 508_000
    assert found.floors_ms == pytest.approx({"bytes": 0.0508, "operations": 0.0202})
    q10, median, q90 = found.milliseconds
    assert 0 < q10 <= median <= q90
    assert found.runs == 3
    assert found.of_the_limit == pytest.approx(0.0508 / median)
    assert found.kernels == ()


@pytest.mark.parametrize(
    ("change", "multiply_adds"),
    [
        ({"direction": "forward"}, 630),
        ({"rule": "linear"}, 400 + 180 + 280),
        ({"rule": "lfom_shared"}, 400 + 200 + 320),
        ({"rule": "cgd"}, 400 + 215 + 350),
        ({"heads": 3}, 1010),
        ({"granularity": "full"}, 2030),
        ({"rule": "recursive"}, None),
        ({"structure": "block", "dtype": "float64"}, None),
        ({"structure": "dense", "heads": 2, "dtype": "bfloat16"}, None),
        ({"rule": "gated_heads", "heads": 2}, None),
        ({"algorithm": "token", "backend": "torch"}, None),
        ({"queries": 3}, None),
    ],
)
def test_every_kind_of_call_can_be_profiled(change: dict[str, str | int], multiply_adds: int | None) -> None:
    found = profile_call(replace(SMALL, batch=10, **change), seconds=0.0, rates=RATES)  # type: ignore[arg-type]
    assert found.operations.total > 0
    if multiply_adds is not None:
        assert found.operations.total == multiply_adds


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("dtype", "int8"), ("direction", "backward")])
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*{value}"):
        Call(**{field: value})  # type: ignore[arg-type]


def test_a_trace_says_what_the_driver_knows_of_each_kernel(tmp_path: Path) -> None:
    said = {"registers per thread": 64, "shared memory": 49152, "est. achieved occupancy %": 37}
    events = [
        {"cat": "kernel", "name": "small", "dur": 2.0, "args": {}},
        {"cat": "kernel", "name": "large", "dur": 10.0, "args": said},
        {"cat": "kernel", "name": "large", "dur": 14.0, "args": said},
        {"cat": "cpu_op", "name": "aten::add", "dur": 99.0},
        {"name": "process_name", "ph": "M"},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    assert kernels_of(path) == (
        KernelUse("large", 2, 12.0, 64, 49152, 37.0),
        KernelUse("small", 1, 2.0, None, None, None),
    )
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"trace\.json is not a trace"):
        kernels_of(path)


def test_the_command_for_nsight_profiles_the_same_call() -> None:
    command = ncu_command(replace(SMALL, device="cuda", rule="cgd"))
    assert command.startswith("ncu --nvtx --nvtx-include memformer/ ")
    assert "memformer-lab profile --d 5 --n 20" in command
    assert "--rule cgd" in command
    assert "--granularity" not in command


def test_the_command_prints_it_all_and_writes_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    words = ["profile", "--batch", "500", "--seconds", "0", "--trace", str(trace)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for part in ("B = 500", "regime tiny Gram", "1,010", "of the limit"):
        assert part in done.output
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    bad = CliRunner().invoke(app, ["profile", "--structure", "free"])
    assert bad.exit_code == 2
    assert "structure" in bad.output
