"""Each check is shown to find what it is for, in a kernel that is broken on purpose, and to pass its mended twin."""

from typing import Any

import numpy as np
import pytest

from tests.virtual_gpu.assembly import ORDERS, Run, module
from tests.virtual_gpu.broken import ELEMENTS, OF_TILE, SHARED, Case
from tests.virtual_gpu.broken_accesses import ACCESSES
from tests.virtual_gpu.broken_orders import ORDERS_OF_THREADS
from virtual_gpu import ALL_CHECKS, Device, LaunchFailed, Module, UnknownInstruction

CASES = [*ACCESSES, *ORDERS_OF_THREADS]


def run(case: Case, part: str, order: int) -> tuple[set[str], Run]:
    options = dict(case.options)
    ignored, zeros = options.pop("ignore", set()), options.pop("zeros", False)
    given = [np.zeros(256, np.uint32) if zeros else np.arange(256, dtype=np.uint32) for _ in range(2)]
    made = Run(module(case.text.format(part)), given, order=order, **options)  # type: ignore[arg-type]
    assert isinstance(ignored, set)
    return made.checks - (ignored if part == case.broken else set()), made


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_reported_and_what_is_right_is_not(case: Case, order: int) -> None:
    assert case.check in run(case, case.broken, order)[0]
    found, mended = run(case, case.right, order)
    assert found == set(), mended.reports


def test_reports_name_the_line_and_count() -> None:
    text = ELEMENTS + ".loc 1 72 3\n ld.global.u32 %r2, [%d0+1024];"
    data = np.zeros(32, np.uint32)
    (report,) = Run(module(text), [data, data.copy()], grid=3).reports
    assert (report.check, report.source, report.kernel, report.count) == ("out-of-bounds", "kernel.cu:72", "kernel", 96)
    assert "argument" in report.detail


def test_races_name_both_lines() -> None:
    text = (
        SHARED
        + OF_TILE
        + ".loc 1 10 0\n st.shared.u32 [%r0], %t;\n .loc 1 20 0\n xor.b32 %r3, %r0, 128; ld.shared.u32 %r2, [%r3];"
    )
    reports = Run(module(text), [np.zeros(1), np.zeros(1)], block=64).reports
    races = [report for report in reports if report.check == "race-shared"]
    assert races
    for race in races:
        other = {"kernel.cu:10": "kernel.cu:20", "kernel.cu:20": "kernel.cu:10"}[race.source]
        assert other in race.detail


FATAL = {
    "trap": "trap;",
    "deadlock": "setp.eq.u32 %p0, %t, 0; @%p0 bra END; bar.sync 0, 64; END:",
    "instruction-limit": "mov.u32 %r2, 0; AGAIN: add.u32 %r2, %r2, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra AGAIN;",
}


@pytest.mark.parametrize("check", FATAL)
def test_a_launch_that_cannot_go_on_fails(check: str) -> None:
    device = Device(90, instruction_limit=10_000)
    with pytest.raises(LaunchFailed) as failed:
        device.launch(module(FATAL[check], parameters=0).kernels["kernel"], 1, 32, b"")
    assert check in {report.check for report in failed.value.reports}
    assert check in {report.check for report in device.take_reports()}
    assert device.take_reports() == []


REFUSED = "launch"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"block": 2048}, "threads"),
        ({"grid": 0}, "grid"),
        ({"shared": 300_000}, "shared memory"),
        ({"arguments": b"1234"}, "arguments"),
        ({"grid": 3, "cluster": 2}, "clusters"),
        ({"grid": 1000, "cooperative": True}, "cooperative"),
        ({"capability": 80}, "sm_90"),
    ],
)
def test_a_launch_that_cannot_be_made_fails(made: dict[str, object], why: str) -> None:
    options: dict[str, object] = {"grid": 1, "block": 32, "arguments": b"", **made}
    capability = options.pop("capability", 90)
    assert isinstance(capability, int)
    kernel = module("", parameters=0).kernels["kernel"]
    with pytest.raises(LaunchFailed, match=why) as failed:
        Device(capability).launch(kernel, **options)  # type: ignore[arg-type]
    assert [report.check for report in failed.value.reports] == [REFUSED]


def test_every_check_finds_something_here() -> None:
    assert {*(case.check for case in CASES), *FATAL, REFUSED} == set(ALL_CHECKS)


def test_the_kernels_bound_of_threads_is_kept() -> None:
    kernel = module("", parameters=0, directives=".maxntid 64, 1, 1").kernels["kernel"]
    assert kernel.threads == 64
    Device(90).launch(kernel, 1, 64, b"")
    with pytest.raises(LaunchFailed, match="threads"):
        Device(90).launch(kernel, 1, 96, b"")


def test_launches_have_the_extents_that_the_kernel_requires() -> None:
    kernel = module("", parameters=0, directives=".reqntid 64, 2 .reqnctapercluster 2").kernels["kernel"]
    Device(90).launch(kernel, 2, (64, 2), b"", cluster=2)
    for grid, block, cluster in [(2, 64, 2), (2, 128, 2), (2, (64, 2), 1)]:
        with pytest.raises(LaunchFailed, match="compiled for"):
            Device(90).launch(kernel, grid, block, b"", cluster=cluster)


def test_a_target_of_one_architecture_runs_on_no_other() -> None:
    kernel = Module(module("", parameters=0).text.replace("sm_90", "sm_90a")).kernels["kernel"]
    Device(90).launch(kernel, 1, 32, b"")
    with pytest.raises(LaunchFailed, match="sm_90 alone"):
        Device(100).launch(kernel, 1, 32, b"")


def test_numbers_that_make_no_device_launch_or_memory_are_refused() -> None:
    options: list[dict[str, Any]] = [{"multiprocessors": 0}, {"order": -1}, {"order": 2**32}, {"instruction_limit": -1}]
    for option in options:
        with pytest.raises(ValueError, match=next(iter(option))):
            Device(90, **option)
    device, kernel = Device(90), module("", parameters=0).kernels["kernel"]
    with pytest.raises(LaunchFailed, match="-16 bytes of shared memory"):
        device.launch(kernel, 1, 32, b"", shared=-16)
    for extent in [(), (1, 1, 1, 1)]:
        with pytest.raises(ValueError, match="directions"):
            device.launch(kernel, extent, 32, b"")
    with pytest.raises(TypeError):
        device.launch(kernel, (1.5,), 32, b"")  # type: ignore[arg-type]
    for address, nbytes in [(-8, 8), (8, -8)]:
        with pytest.raises(ValueError, match="bytes at"):
            device.memory.register(address, nbytes, "nothing")
    assert device.launch(kernel, np.int64(2), [32], bytearray()).grid == (2, 1, 1)  # type: ignore[arg-type]


def test_checks_that_are_not_asked_for_are_not_made() -> None:
    text = SHARED + OF_TILE + "mov.u32 %r4, tile; mov.u32 %r5, 3; st.shared.u32 [%r4], %r5;"
    kernel = module(text, parameters=0).kernels["kernel"]
    device = Device(90, checks={"replicated-store"})
    device.launch(kernel, 1, 64, b"")
    assert {report.check for report in device.take_reports()} == {"replicated-store"}
    with pytest.raises(ValueError, match="unknown checks"):
        Device(90, checks={"everything"})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("frobnicate.u32 %r1, %r2;", "frobnicate"),
        ("add.wobbly.u32 %r1, %r2, %r2;", "wobbly"),
        ("mbarrier.arrive.relaxed.cta.shared::cta.b64 %d1, [%r1];", "relaxed"),
        ("barrier.cluster.arrive.wobbly.aligned;", "wobbly"),
        ("cp.async.bulk.wait_group.read 0;", "read"),
    ],
)
def test_an_unknown_instruction_is_named(text: str, named: str) -> None:
    made: Module = module(text, parameters=0)
    with pytest.raises(UnknownInstruction, match=named):
        _ = made.kernels["kernel"].code
